"""The pen that every drawing is made with: it poses, warps, inks and at last wears the picture."""

import math
from collections.abc import Sequence
from typing import TypeVar

import numpy as np
from PIL import Image, ImageDraw

from condu_ray.benchmark.mini_mtil import colours
from condu_ray.benchmark.mini_mtil.colours import NAMED, Colour
from condu_ray.benchmark.mini_mtil.style import Style

SIZE = 48
# Drawn this much larger, then averaged down: PIL's polygons have no anti-aliasing of their own.
SCALE = 3
SIDE = SIZE * SCALE
_ROUND = np.linspace(0.0, 2.0 * math.pi, 28, endpoint=False)
_CIRCLE = np.stack([np.cos(_ROUND), np.sin(_ROUND)], axis=1)
T = TypeVar("T")
Points = Sequence[tuple[float, float]] | np.ndarray


class Pen:
    """Draws one picture; x goes right and y goes down, the subject fills [-1, 1] in both.

    Attributes:
        rng: The picture's own random numbers.
        style: The world that the picture belongs to.
        part: `train` or `test`: a domain made from stored originals takes them from disjoint pools.
        index: How many pictures of the same class and part come before this one.
        ink_name: What a caption calls the main colour.
        paper_name: What a caption calls the background.
        draw: PIL's own pen, in pixels, for what has no pose.
    """

    def __init__(self, rng: np.random.Generator, style: Style, *, part: str = "train", index: int = 0) -> None:
        self.rng, self.style, self.part, self.index = rng, style, part, index
        papers = ("white", "white", "yellow", "gray", "turquoise", "pink", "black", "green", "blue", "orange")
        self.paper_name = self.pick(papers)
        self.ink_name = colours.contrasting(rng, NAMED[self.paper_name])
        self.paper = colours.jitter(rng, NAMED[self.paper_name], style.tint)
        self.ink = colours.jitter(rng, NAMED[self.ink_name], style.tint)
        angle = math.radians(self.uniform(-style.turn, style.turn))
        zoom, shear = self.uniform(*style.zoom), self.uniform(-style.shear, style.shear)
        cos, sin = zoom * math.cos(angle), zoom * math.sin(angle)
        self.zoom = zoom
        self.matrix = np.array([[1.0, 0.0], [shear, 1.0]]) @ np.array([[cos, sin], [-sin, cos]])
        # a small subject may wander further from the middle without leaving the picture
        self.offset = rng.uniform(-1.0, 1.0, 2) * (style.shift + 0.5 * (1.0 - zoom) * (style.shift > 0.1))
        self._wave = rng.uniform((1.5, 0.0), (3.5, 2.0 * math.pi), (2, 2))
        self.image = Image.new("RGB", (SIDE, SIDE), self.paper)
        self.draw = ImageDraw.Draw(self.image)

    def uniform(self, low: float, high: float) -> float:
        """Returns a random number between `low` and `high`."""
        return low + (high - low) * float(self.rng.random())

    def chance(self, probability: float) -> bool:
        """Returns True with this probability."""
        return float(self.rng.random()) < probability

    def whole(self, low: int, high: int) -> int:
        """Returns a random whole number from `low` to `high`, both included."""
        return int(self.rng.integers(low, high + 1))

    def pick(self, options: Sequence[T]) -> T:
        """Returns one of the options."""
        return options[int(self.rng.integers(len(options)))]

    def tinted(self, colour: Colour) -> Colour:
        """Returns a colour as this world's tint varies it."""
        return colours.jitter(self.rng, colour, self.style.tint)

    def other(self, least: int) -> Colour:
        """Returns a colour that stands out against the paper."""
        return self.tinted(NAMED[colours.contrasting(self.rng, self.paper, least)])

    def place(self, points: Points) -> list[float]:
        """Returns the points in pixels, posed and warped, as PIL's flat list."""
        xy = np.asarray(points, dtype=float)
        if self.style.warp:
            xy = xy + self.style.warp * np.sin(xy[:, ::-1] * self._wave[:, 0] + self._wave[:, 1])
        return ((xy @ self.matrix + self.offset + 1.0) * (SIDE / 2)).ravel().tolist()

    def polygon(self, points: Points, fill: Colour | None = None) -> None:
        """Fills a polygon, with the ink where no colour is given."""
        self.draw.polygon(self.place(points), fill=fill or self.ink)

    def line(self, points: Points, fill: Colour | None = None, width: float = 0.1) -> None:
        """Draws a line through the points; `width` is in half pictures."""
        pixels = max(1, round(width * self.zoom * SIDE / 2))
        self.draw.line(self.place(points), fill=fill or self.ink, width=pixels, joint="curve")

    def outline(self, points: Points, width: float) -> None:
        """Draws a polygon's edge in ink."""
        self.line([*points, *points[:2]], width=width)

    def ellipse(self, x: float, y: float, rx: float, ry: float, fill: Colour | None = None, turn: float = 0.0) -> None:
        """Fills an ellipse, turned by `turn` radians about its own middle."""
        self.polygon(oval(x, y, rx, ry, turn), fill)

    def rect(self, x0: float, y0: float, x1: float, y1: float, fill: Colour | None = None) -> None:
        """Fills a rectangle."""
        self.polygon([(x0, y0), (x1, y0), (x1, y1), (x0, y1)], fill)

    def sector(self, x: float, y: float, radius: float, start: float, stop: float, fill: Colour | None = None) -> None:
        """Fills a slice of a disc between two angles in radians."""
        self.polygon([(x, y), *arc(x, y, radius, radius, start, stop)], fill)

    def arc(self, x: float, y: float, rx: float, ry: float, start: float, stop: float, width: float = 0.1) -> None:
        """Draws a part of an ellipse's edge in ink."""
        self.line(arc(x, y, rx, ry, start, stop), None, width)

    def fill_paper(self, colour: Colour) -> None:
        """Lays a plain background."""
        self.draw.rectangle((0, 0, SIDE, SIDE), fill=colour)

    def lay(self, picture: Image.Image | np.ndarray) -> None:
        """Replaces the whole picture, which may be of any size, by this one."""
        picture = Image.fromarray(picture) if isinstance(picture, np.ndarray) else picture
        self.image.paste(picture.resize((SIDE, SIDE), Image.Resampling.BILINEAR))


def oval(x: float, y: float, rx: float, ry: float, turn: float = 0.0) -> np.ndarray:
    """Returns the points of an ellipse."""
    points = _CIRCLE * (rx, ry)
    if turn:
        cos, sin = math.cos(turn), math.sin(turn)
        points = points @ np.array([[cos, sin], [-sin, cos]])
    return np.add(points, (x, y))


def arc(
    x: float, y: float, rx: float, ry: float, start: float, stop: float, steps: int = 14
) -> list[tuple[float, float]]:
    """Returns points along an ellipse from one angle to another, in radians, clockwise on the screen."""
    angles = np.linspace(start, stop, steps).tolist()
    return [(x + rx * math.cos(angle), y + ry * math.sin(angle)) for angle in angles]


def spokes(count: int, inner: float, outer: float) -> list[tuple[float, float]]:
    """Returns a star's points; with `inner` = `outer` those of a regular polygon of twice the count."""
    angles = [math.pi * step / count - math.pi / 2 for step in range(2 * count)]
    radii = [outer, inner] * count
    return [(r * math.cos(a), r * math.sin(a)) for r, a in zip(radii, angles, strict=True)]
