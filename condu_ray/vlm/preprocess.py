"""Images to pixels: open_clip's own transforms, stopped before the tensor so that uint8 travels between processes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from PIL import Image

from condu_ray.benchmark.images import decode

CROP_SCALE, CROP_RATIO = (0.9, 1.0), (3 / 4, 4 / 3)
"""Share of a picture's area that a training crop has, and the ratio of its sides: open_clip's and torchvision's."""
LOG_RATIO = (-0.28768205642700195, 0.28768211603164673)
"""`torch.log(torch.tensor(CROP_RATIO))`, in float32 as torch's x86 builds have it."""


class Preprocessor:
    """Encoded bytes to a uint8 array [H, W, 3], as open_clip resizes and crops, with or without augmentation.

    Args:
        preprocess: open_clip's PreprocessCfg as a dict.
        augment: whether `pixels` uses the training transform (random resized crop).
    """

    def __init__(self, preprocess: Mapping[str, Any], augment: bool = False) -> None:
        self._steps: list[Callable[[Image.Image], Image.Image]] = []
        self._crop = RandomCrop(*shape(preprocess)) if augment else None
        if augment:
            return
        from condu_ray.vlm.library import open_clip

        whole = open_clip.transform.image_transform_v2(open_clip.transform.PreprocessCfg(**preprocess), is_train=False)
        self._steps = whole.transforms[:-2]  # the last two make a float tensor and normalise it: inputs.py

    def pixels(self, encoded: bytes, seed: int = 0) -> np.ndarray:
        """Decodes one image; `seed` fixes its augmentation.

        Raises:
            ImageError: it is too large, too long, or of a form that has no right picture of 8 bits.
            OSError: it does not decode.
        """
        return self.prepared(decode(encoded), seed)

    def prepared(self, image: Image.Image, seed: int = 0) -> np.ndarray:
        """Resizes and crops a decoded image, as `pixels` does."""
        if self._crop is not None:
            image = self._crop(image, seed)
        for step in self._steps:
            image = step(image)
        return np.asarray(image, dtype=np.uint8)


class RandomCrop:
    """torchvision's RandomResizedCrop as open_clip trains by it: torch's draws, the same pixels.

    Written out, and without torch, for processes that only decode would take four seconds and 400 MB to load both.

    Args:
        height, width: of what it returns.
    """

    def __init__(self, height: int, width: int) -> None:
        self._size, self._draws = (width, height), Draws()

    def __call__(self, image: Image.Image, seed: int) -> Image.Image:
        """Crops by the draws that follow `torch.manual_seed(seed)`, and resizes, bicubic."""
        left, top, width, height = self._box(*image.size, self._draws.seed(seed))
        return image.crop((left, top, left + width, top + height)).resize(self._size, Image.Resampling.BICUBIC)

    @staticmethod
    def _box(width: int, height: int, draws: Draws) -> tuple[int, int, int, int]:
        """Draws a box by area, then ratio, then place; the largest in the middle when ten draws stick out."""
        for _ in range(10):
            area = width * height * draws.uniform(*CROP_SCALE)
            wide, high = _sides(area, draws.uniform(*LOG_RATIO))
            if 0 < wide <= width and 0 < high <= height:
                top = draws.integer(height - high + 1)
                return draws.integer(width - wide + 1), top, wide, high
        wide, high = width, height
        if width / height < min(CROP_RATIO):
            high = round(width / min(CROP_RATIO))
        elif width / height > max(CROP_RATIO):
            wide = round(height * max(CROP_RATIO))
        return (width - wide) // 2, (height - high) // 2, wide, high


class Draws:
    """What torch's CPU generator draws after `torch.manual_seed`: a Mersenne Twister, seeded as NumPy's old one is."""

    def __init__(self) -> None:
        self._twister = np.random.RandomState(0)
        self._words: Iterator[int] = iter(())

    def seed(self, seed: int) -> Draws:
        """Begins anew; like torch, of the seed the lower 32 bits count."""
        self._twister.seed(seed & 0xFFFFFFFF)
        # As many as a crop takes at most: ten times area and ratio, and a place.
        self._words = iter(np.frombuffer(self._twister.bytes(4 * 22), dtype="<u4").tolist())
        return self

    def uniform(self, low: float, high: float) -> float:
        """`torch.empty(1).uniform_(low, high).item()`: 24 random bits, scaled and moved by one rounding."""
        span = float(np.float32(np.float32(high) - np.float32(low)))
        return float(np.float32((next(self._words) & 0xFFFFFF) * 2.0**-24 * span + float(np.float32(low))))

    def integer(self, below: int) -> int:
        """`torch.randint(0, below, size=(1,)).item()`."""
        return next(self._words) % below


def _sides(area: float, log_ratio: float) -> tuple[int, int]:
    """Returns width and height of a box in whole pixels, as with `torch.exp(log_ratio)` in float32.

    That may differ from the exactly rounded one in its last bit; where a side would then be another one (some ten in a
    million at 48 pixels) torch is asked.
    """
    ratio = float(np.float32(math.exp(log_ratio)))
    sides = math.sqrt(area * ratio), math.sqrt(area / ratio)
    if any(abs(side % 1 - 0.5) < side * 2.0**-23 for side in sides):
        import torch

        ratio = torch.exp(torch.tensor([log_ratio])).item()
        sides = math.sqrt(area * ratio), math.sqrt(area / ratio)
    return round(sides[0]), round(sides[1])


def shape(preprocess: Mapping[str, Any]) -> tuple[int, int]:
    """Returns height and width of a prepared picture."""
    size = preprocess["size"]
    return (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))
