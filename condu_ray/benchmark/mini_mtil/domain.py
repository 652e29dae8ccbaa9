"""A domain of drawings: its classes, how they are drawn and how its task words them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from PIL import Image

from condu_ray.benchmark.mini_mtil import wear
from condu_ray.benchmark.mini_mtil.pen import Pen
from condu_ray.benchmark.mini_mtil.style import CLEAN, Style


@dataclass(frozen=True)
class Domain:
    """One visual world.

    Attributes:
        name: Its name, also the name of its task.
        about: What its pictures are, in a few words.
        template: The task's prompt, with `{}` for the class name.
        classes: The drawing of each class, by the class's name in words.
        style: How the task's pictures look.
        phrases: How the captions of its pretraining drawings name a class, with `{}`.
        source: Where the pictures come from.
        inked: Whether a class may have any colour, so that a caption can name it.
        framed: Whether the subject stands before a background that a caption can name.
    """

    name: str
    about: str
    template: str
    classes: Mapping[str, Callable[[Pen], None]]
    style: Style
    phrases: tuple[str, ...] = ("a {}",)
    source: str = "drawn by condu_ray"
    inked: bool = True
    framed: bool = True

    @property
    def names(self) -> tuple[str, ...]:
        """The classes' names, in the order of the labels."""
        return tuple(self.classes)

    def picture(self, name: str, rng: np.random.Generator, *, part: str = "train", index: int = 0) -> Image.Image:
        """Returns one of the task's pictures of a class."""
        return self._draw(name, Pen(rng, self.style, part=part, index=index))

    def icon(self, name: str, rng: np.random.Generator) -> tuple[Image.Image, Pen]:
        """Returns a clean drawing of a class, and the pen, which knows the colours used."""
        pen = Pen(rng, CLEAN)
        return self._draw(name, pen), pen

    def _draw(self, name: str, pen: Pen) -> Image.Image:
        wear.backdrop(pen)
        self.classes[name](pen)
        wear.cover(pen)
        return wear.finish(pen)
