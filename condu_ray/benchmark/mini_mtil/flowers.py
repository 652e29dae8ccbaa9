"""Flowers: ten species, told apart by the form, the number and the colour of their petals."""

import math
from collections.abc import Callable

import numpy as np

from condu_ray.benchmark.mini_mtil.colours import Colour, shade
from condu_ray.benchmark.mini_mtil.domain import Domain
from condu_ray.benchmark.mini_mtil.pen import Pen
from condu_ray.benchmark.mini_mtil.style import Style

_LEAF: Colour = (60, 130, 60)


def _garden(pen: Pen) -> None:
    """Lays the meadow: a clean icon keeps its plain paper."""
    if pen.style.clean:
        return
    pen.paper = pen.tinted(pen.pick(((70, 110, 60), (120, 150, 90), (190, 214, 236), (90, 80, 60), (220, 224, 200))))
    cells = np.array(pen.paper) + pen.rng.normal(0, 22, (6, 6, 3))
    pen.lay(cells.clip(0, 255).astype(np.uint8))
    for _ in range(pen.whole(2, 7)):
        x, y = pen.rng.uniform(-1.4, 1.4, 2).tolist()
        pen.ellipse(x, y, pen.uniform(0.2, 0.5), 0.09, pen.tinted(_LEAF), pen.uniform(0, 3))


def _stem(pen: Pen, top: float) -> None:
    pen.line([(0, top), (pen.uniform(-0.15, 0.15), 1.4)], pen.tinted(_LEAF), 0.1)
    if pen.chance(0.6):
        pen.ellipse(0.25, 0.85, 0.26, 0.09, pen.tinted(_LEAF), -0.6)


def _petals(pen: Pen, y: float, count: int, reach: float, wide: float, colour: Colour, start: float = 0.0) -> None:
    """Draws a wheel of petals whose far ends are `reach` from the middle."""
    for step in range(count):
        angle = start + 2 * math.pi * step / count
        half = reach / 2
        pen.ellipse(
            half * math.cos(angle),
            y + half * math.sin(angle),
            half,
            wide,
            shade(colour, pen.uniform(0.86, 1.12)),
            angle,
        )


def _wheel(
    colour_options: tuple[Colour, ...], counts: tuple[int, int], reach: float, wide: float, heart: Colour, core: float
) -> Callable[[Pen], None]:
    """Returns a drawing of a flower that is a wheel of petals around a heart."""

    def draw(pen: Pen) -> None:
        _garden(pen)
        y, far = -0.15, reach if pen.style.clean else reach * pen.uniform(0.85, 1.1)
        colour = pen.tinted(colour_options[0] if pen.style.clean else pen.pick(colour_options))
        if pen.chance(0.7):
            _stem(pen, y)
        _petals(pen, y, pen.whole(*counts), far, wide, colour, pen.uniform(0, 3))
        pen.ellipse(0, y, core, core, pen.tinted(heart))

    return draw


def _sunflower(pen: Pen) -> None:
    _garden(pen)
    _stem(pen, -0.1)
    colour = pen.tinted((246, 190, 30))
    for start in (0.0, 0.2):
        _petals(pen, -0.1, 13, 0.85, 0.13, shade(colour, 1 - start), start)
    pen.ellipse(0, -0.1, 0.42, 0.42, pen.tinted((84, 50, 26)))


def _tulip(pen: Pen) -> None:
    _garden(pen)
    _stem(pen, 0)
    colour = pen.tinted((220, 50, 60) if pen.style.clean else pen.pick(((220, 50, 60), (240, 150, 40), (200, 90, 180))))
    low, wide = 0.3, pen.uniform(0.42, 0.55)
    cup = [
        (-wide, -0.7),
        (-wide / 2, -0.3),
        (0, -0.8),
        (wide / 2, -0.3),
        (wide, -0.7),
        (wide, 0),
        (0.25, low),
        (-0.25, low),
    ]
    pen.polygon([*cup, (-wide, 0)], colour)
    pen.ellipse(0, -0.15, 0.2, 0.5, shade(colour, 1.2))


def _rose(pen: Pen) -> None:
    _garden(pen)
    _stem(pen, 0)
    colour = pen.tinted(
        (200, 30, 60) if pen.style.clean else pen.pick(((200, 30, 60), (240, 160, 180), (244, 226, 190)))
    )
    # layers of petals wound ever tighter
    for layer, radius in enumerate((0.72, 0.56, 0.4, 0.26, 0.13)):
        turn = pen.uniform(0, 6)
        for step in range(3):
            angle = turn + 2.1 * step
            tone = shade(colour, 0.72 + 0.1 * layer + (0.12 if step == 0 else 0))
            pen.ellipse(
                0.2 * radius * math.cos(angle),
                -0.15 + 0.2 * radius * math.sin(angle),
                radius,
                radius * 0.85,
                tone,
                angle,
            )


def _lavender(pen: Pen) -> None:
    _garden(pen)
    for x in (-0.45, 0.0, 0.45)[: pen.whole(2, 3)]:
        lean = pen.uniform(-0.15, 0.15)
        pen.line([(x + lean, -0.6), (x, 1.4)], pen.tinted(_LEAF), 0.07)
        colour = pen.tinted((136, 100, 190))
        for step in range(7):
            share = step / 6
            y = -0.85 + share
            size = 0.09 + 0.08 * share
            for side in (-1, 1):
                pen.ellipse(
                    x + lean * (1 - share) + side * size * 0.8,
                    y,
                    size,
                    size * 0.8,
                    shade(colour, pen.uniform(0.8, 1.25)),
                )


def _cornflower(pen: Pen) -> None:
    _garden(pen)
    _stem(pen, -0.1)
    colour = pen.tinted((60, 90, 210))
    for step in range(9):
        angle = 2 * math.pi * step / 9
        points = [(0.15, -0.05), (0.8, -0.24), (0.66, -0.08), (0.86, 0.0), (0.66, 0.08), (0.8, 0.24), (0.15, 0.05)]
        cos, sin = math.cos(angle), math.sin(angle)
        pen.polygon(
            [(x * cos - y * sin, -0.1 + x * sin + y * cos) for x, y in points], shade(colour, pen.uniform(0.85, 1.15))
        )
    pen.ellipse(0, -0.1, 0.2, 0.2, pen.tinted((70, 40, 120)))


_GOLD: Colour = (240, 196, 40)
DOMAIN = Domain(
    name="flowers",
    about="ten species of flowers in a meadow",
    template="a painting of a {}, a kind of flower.",
    classes={
        "sunflower": _sunflower,
        "daisy": _wheel(((250, 250, 250), (244, 220, 236)), (11, 15), 0.78, 0.1, _GOLD, 0.22),
        "tulip": _tulip,
        "rose": _rose,
        "poppy": _wheel(((226, 50, 36), (236, 100, 40), (240, 160, 150)), (4, 4), 0.86, 0.42, (34, 26, 30), 0.18),
        "lily": _wheel(((250, 244, 240), (246, 150, 60), (240, 150, 180)), (6, 6), 0.95, 0.17, (214, 180, 70), 0.13),
        "violet": _wheel(((110, 60, 170), (150, 110, 210), (90, 80, 190)), (5, 5), 0.7, 0.25, _GOLD, 0.1),
        "buttercup": _wheel(((250, 216, 50), (246, 200, 30)), (5, 5), 0.72, 0.3, (220, 160, 30), 0.16),
        "cornflower": _cornflower,
        "lavender": _lavender,
    },
    style=Style(turn=30, zoom=(0.65, 1.0), shift=0.12, warp=0.08, clutter=3, cover=0.2, noise=18, light=0.3, tint=26),
    phrases=("a {}", "a {} flower", "one {}"),
    inked=False,
)
