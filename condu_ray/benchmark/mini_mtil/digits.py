"""Digits: real handwritten ones in the task, printed ones among the pretraining drawings."""

from collections.abc import Callable
from functools import cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from condu_ray.benchmark.mini_mtil.domain import Domain
from condu_ray.benchmark.mini_mtil.pen import SIDE, Pen
from condu_ray.benchmark.mini_mtil.style import Style

NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
# originals are in the order in which people wrote them, so the last ones are also by other hands
_TRAIN_SHARE = 0.8


@cache
def _originals() -> tuple[np.ndarray, np.ndarray]:
    # here, not above: importing scikit-learn takes longer than drawing a task
    from sklearn.datasets import load_digits

    digits = load_digits()
    return (digits.images * (255 / 16)).astype(np.uint8), digits.target


@cache
def pool(value: int, part: str) -> np.ndarray:
    """Returns the original 8x8 images of a digit that belong to a part; no original is in both parts."""
    images, targets = _originals()
    own = images[targets == value]
    cut = int(_TRAIN_SHARE * len(own))
    return own[:cut] if part == "train" else own[cut:]


@cache
def font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Returns Pillow's own font, the only one that is sure to be there."""
    return ImageFont.load_default(size)


def stencil(pen: Pen, mask: Image.Image) -> None:
    """Inks the whole picture through a mask, with the pen's pose."""
    matrix = np.linalg.inv(pen.matrix.T)
    middle = SIDE / 2
    # PIL's affine transform maps a pixel of the result back to one of the source
    start = np.array([middle, middle]) - matrix @ (np.array([middle, middle]) + pen.offset * middle)
    data = (*matrix[0], start[0], *matrix[1], start[1])
    mask = mask.resize((SIDE, SIDE), Image.Resampling.BICUBIC) if mask.size != (SIDE, SIDE) else mask
    posed = mask.transform((SIDE, SIDE), Image.Transform.AFFINE, data, Image.Resampling.BILINEAR)
    pen.image.paste(pen.ink, (0, 0), posed)


def printed(pen: Pen, text: str) -> None:
    """Prints a short text in the middle of the picture."""
    mask = Image.new("L", (SIDE, SIDE))
    ImageDraw.Draw(mask).text(
        (SIDE / 2, SIDE / 2), text, fill=255, font=font(SIDE), anchor="mm", stroke_width=pen.whole(0, 4)
    )
    stencil(pen, mask)


def _digit(value: int) -> Callable[[Pen], None]:
    def draw(pen: Pen) -> None:
        if pen.style.clean:
            printed(pen, str(value))
            return
        own = pool(value, pen.part)
        stencil(pen, Image.fromarray(own[pen.index % len(own)]))

    return draw


DOMAIN = Domain(
    name="digits",
    about="real handwritten digits in coloured ink on stained paper",
    template="a handwritten number {}.",
    classes={name: _digit(value) for value, name in enumerate(NAMES)},
    style=Style(turn=8, zoom=(0.85, 1.05), shift=0.06, warp=0.0, clutter=2, cover=0.1, patchy=10, noise=14, shear=0.08),
    phrases=("the number {}", "the digit {}", "a printed {}", "a {}"),
    source="scikit-learn's load_digits (UCI Optical Recognition of Handwritten Digits, CC BY 4.0), inked by condu_ray",
)
