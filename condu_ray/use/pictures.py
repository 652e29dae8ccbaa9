"""Pictures as people have them (paths, bytes, PIL images, arrays, tensors) to the pixels that a model gets."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from condu_ray.benchmark.images import ImageError, as_seen, decode
from condu_ray.benchmark.ingest.source import unread
from condu_ray.vlm.preprocess import Preprocessor

Picture = str | os.PathLike[str] | bytes | bytearray | memoryview | Image.Image | np.ndarray | Tensor
"""A file's path, its bytes, an opened picture, uint8 [H, W], [H, W, 3] or [H, W, 4], or a tensor [3, H, W]."""


def single(images: object) -> bool:
    """Whether this is one picture, and no sequence of them."""
    if isinstance(images, np.ndarray | Tensor):
        return images.ndim < 4
    return isinstance(images, str | os.PathLike | bytes | bytearray | memoryview | Image.Image)


def each(images: Picture | Iterable[Picture]) -> Iterator[Picture]:
    """Yields the pictures of a sequence or a batch of four dimensions; a single one by itself."""
    yield from [images] if single(images) else images  # type: ignore[misc, list-item]


def name_of(image: Picture, place: int) -> str:
    """What messages and rows call a picture: its path, or its 0-based place among those that were given."""
    if isinstance(image, str | os.PathLike):
        return os.fspath(image)
    return str(getattr(image, "filename", "") or f"image {place}")


def pixels(image: Picture, preprocessor: Preprocessor) -> np.ndarray:
    """Returns uint8 [H, W, 3] as the evaluators make it of a test image.

    Raises:
        ImageError: it is no picture, or of a form that has no right picture of 8 bits; the message does not name it.
    """
    try:
        return preprocessor.prepared(_seen(image))
    except ImageError:
        raise
    except UnidentifiedImageError:
        known = unread(os.fspath(image)) if isinstance(image, str | os.PathLike) else ""
        raise ImageError(known or "is not an image in a known format") from None
    except OSError as error:
        raise ImageError(f"cannot be read ({error.strerror or error})") from error
    except Exception as error:  # decoders raise SyntaxError, ValueError, struct.error and more
        raise ImageError(f"does not decode ({error})") from error


def _seen(image: Picture) -> Image.Image:
    if isinstance(image, bytes | bytearray | memoryview):
        return decode(bytes(image))
    if isinstance(image, str | os.PathLike):
        return decode(Path(image).read_bytes())
    if isinstance(image, Image.Image):
        return as_seen(image)
    if isinstance(image, Tensor):
        return as_seen(Image.fromarray(_channels_last(image)))
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[2] not in (1, 3, 4)):
            raise ImageError(
                f"is an array {image.dtype} {list(image.shape)}; give uint8 [H, W], [H, W, 3] or [H, W, 4], 0 to 255"
            )
        return as_seen(Image.fromarray(image[..., 0] if image.shape[2:] == (1,) else image))
    raise ImageError(f"is a {type(image).__name__}; give a path, bytes, a PIL image, an array or a tensor")


def _channels_last(image: Tensor) -> np.ndarray:
    """uint8 [H, W, 3] of a tensor as torchvision has it: [3, H, W], uint8, or floats from 0 to 1."""
    if image.ndim != 3 or image.shape[0] not in (1, 3):
        raise ImageError(f"is a tensor {list(image.shape)}; give [3, H, W], uint8 or floats from 0 to 1")
    image = image.detach().cpu()
    if image.is_floating_point():
        if not bool(((image >= 0) & (image <= 1)).all()):
            raise ImageError("is a tensor of floats beyond 0 to 1; give pixels before any normalisation")
        image = image.mul(255).round().to(torch.uint8)
    if image.dtype != torch.uint8:
        raise ImageError(f"is a tensor of {image.dtype}; give uint8, or floats from 0 to 1")
    found: np.ndarray = image.expand(3, -1, -1).permute(1, 2, 0).contiguous().numpy()
    return found
