"""Images to pixels: open_clip's own transforms, stopped before the tensor so that uint8 travels between processes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from condu_ray.benchmark.images import decode

CROP_SCALE, CROP_RATIO = (0.9, 1.0), (3 / 4, 4 / 3)
"""Share of a picture's area that a training crop has, and the ratio of its sides: open_clip's and torchvision's."""


class Preprocessor:
    """Encoded bytes to a uint8 array [H, W, 3], as open_clip resizes and crops, with or without augmentation.

    Args:
        preprocess: open_clip's PreprocessCfg as a dict.
        augment: whether `pixels` uses the training transform (random resized crop).
    """

    def __init__(self, preprocess: Mapping[str, Any], augment: bool = False) -> None:
        self._augment = augment
        self._steps: list[Callable[[Image.Image], Image.Image]]
        if augment:
            self._steps = [RandomCrop(*shape(preprocess))]
            return
        from open_clip.transform import PreprocessCfg, image_transform_v2

        whole = image_transform_v2(PreprocessCfg(**preprocess), is_train=False)
        self._steps = whole.transforms[:-2]  # the last two make a float tensor and normalise it: `normalise` below

    def pixels(self, encoded: bytes, seed: int = 0) -> np.ndarray:
        """Decodes one image; `seed` fixes its augmentation (torchvision draws from torch's global generator).

        Raises:
            ImageError: it is too large, too long, or of a form that has no right picture of 8 bits.
            OSError: it does not decode.
        """
        return self.prepared(decode(encoded), seed)

    def prepared(self, image: Image.Image, seed: int = 0) -> np.ndarray:
        """Resizes and crops a decoded image, as `pixels` does."""
        if self._augment:
            torch.default_generator.manual_seed(seed)  # torch.manual_seed formats a traceback for CUDA at each call
        for step in self._steps:
            image = step(image)
        return np.asarray(image, dtype=np.uint8)


class RandomCrop:
    """torchvision's RandomResizedCrop as open_clip trains by it: the same draws of torch's generator, the same pixels.

    Written out, for processes that only decode would take three seconds and 200 MB to load open_clip for it.

    Args:
        height, width: of what it returns.
    """

    def __init__(self, height: int, width: int) -> None:
        self._size = (width, height)
        self._ratio = torch.log(torch.tensor(CROP_RATIO))

    def __call__(self, image: Image.Image) -> Image.Image:
        """Crops and resizes, bicubic."""
        left, top, width, height = self._box(*image.size)
        return image.crop((left, top, left + width, top + height)).resize(self._size, Image.Resampling.BICUBIC)

    def _box(self, width: int, height: int) -> tuple[int, int, int, int]:
        """Draws a box by area, then ratio, then place; the largest in the middle when ten draws stick out."""
        for _ in range(10):
            area = width * height * torch.empty(1).uniform_(*CROP_SCALE).item()
            ratio = torch.exp(torch.empty(1).uniform_(self._ratio[0], self._ratio[1])).item()  # type: ignore[arg-type]
            wide, high = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < wide <= width and 0 < high <= height:
                top = int(torch.randint(0, height - high + 1, size=(1,)).item())
                return int(torch.randint(0, width - wide + 1, size=(1,)).item()), top, wide, high
        wide, high = width, height
        if width / height < min(CROP_RATIO):
            high = round(width / min(CROP_RATIO))
        elif width / height > max(CROP_RATIO):
            wide = round(height * max(CROP_RATIO))
        return (width - wide) // 2, (height - high) // 2, wide, high


def shape(preprocess: Mapping[str, Any]) -> tuple[int, int]:
    """Returns height and width of a prepared picture."""
    size = preprocess["size"]
    return (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))


def normalise(pixels_BHWC: Tensor, preprocess: Mapping[str, Any]) -> Tensor:
    """uint8 [B, H, W, 3] to the model's float32 input [B, 3, H, W] on the same device."""
    mean, std = (_channels(tuple(preprocess[name]), pixels_BHWC.device) for name in ("mean", "std"))
    return pixels_BHWC.permute(0, 3, 1, 2).float().div(255).sub(mean).div(std)


@lru_cache(maxsize=32)
def _channels(values: tuple[float, ...], device: torch.device) -> Tensor:
    """A number a channel, as images take them; kept, for a copy to a GPU waits for all that it has to do."""
    return torch.tensor(values, device=device).view(1, 3, 1, 1)


def on_device(array: np.ndarray, device: torch.device) -> Tensor:
    """Returns a copy of an array on a device, of which later changes of the array are no part.

    Plain, for memory that was pinned for each step cost more than it saved: on an H100 a step of ViT-B/16 took 112 ms
    with it and 65 without (RESULTS.md, "A training step on a GPU").
    """
    if device.type != "cuda":
        return torch.from_numpy(np.array(array)).to(device)
    # CUDA has read pageable memory when the call returns, whatever the flag says; it spares waiting for the stream.
    return torch.from_numpy(np.require(array, requirements="W")).to(device, non_blocking=True)
