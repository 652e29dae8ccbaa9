"""Land seen from above, as a satellite sees it or as a map draws it."""

import itertools
import math

import numpy as np

from condu_ray.benchmark.mini_mtil.colours import Colour, shade
from condu_ray.benchmark.mini_mtil.domain import Domain
from condu_ray.benchmark.mini_mtil.pen import Pen
from condu_ray.benchmark.mini_mtil.style import Style

_GRASS: Colour = (134, 168, 92)
_WOOD: Colour = (44, 92, 54)
_WATER: Colour = (52, 110, 176)
_SAND: Colour = (222, 196, 140)
_ROAD: Colour = (120, 120, 124)
_GROUNDS: tuple[Colour, ...] = (_GRASS, (170, 168, 112), (112, 140, 84), (150, 130, 96))
_ROOFS: tuple[Colour, ...] = ((190, 84, 60), (150, 70, 56), (120, 120, 130), (220, 220, 220))


def _ground(pen: Pen, colour: Colour | None = None) -> None:
    colour = colour or (_GRASS if pen.style.clean else pen.pick(_GROUNDS))
    pen.paper = pen.tinted(colour)
    if pen.style.clean:
        pen.fill_paper(pen.paper)
        return
    # patches of soil and growth, as coarse noise
    cells = np.array(pen.paper) + pen.rng.normal(0, 16, (9, 9, 1)) + pen.rng.normal(0, 5, (9, 9, 3))
    pen.lay(cells.clip(0, 255).astype(np.uint8))
    if pen.chance(0.5):
        for _ in range(pen.whole(1, 6)):
            x, y = pen.rng.uniform(-1, 1, 2).tolist()
            pen.ellipse(x, y, 0.12, 0.12, pen.tinted(_WOOD))


def _bend(pen: Pen, swing: float) -> list[tuple[float, float]]:
    """Returns a line that crosses the picture from left to right with a bend of about `swing`."""
    phase, pace, level = pen.uniform(0, 6.3), pen.uniform(1.5, 2.6), pen.uniform(-0.3, 0.3)
    return [(x, level + swing * math.sin(pace * x + phase)) for x in np.linspace(-2, 2, 24).tolist()]


def _river(pen: Pen) -> None:
    _ground(pen)
    path, width = _bend(pen, pen.uniform(0.25, 0.5)), pen.uniform(0.16, 0.42)
    if pen.chance(0.4):
        pen.line(path, pen.tinted(_SAND), width + 0.12)
    pen.line(path, pen.tinted(_WATER), width)


def _lake(pen: Pen) -> None:
    _ground(pen)
    wide, tall, wave = pen.uniform(0.45, 0.8), pen.uniform(0.35, 0.7), pen.uniform(0, 6)
    angles = np.linspace(0, 2 * math.pi, 26)[:-1]
    radius = 1 + 0.14 * np.sin(3 * angles + wave) + 0.08 * np.sin(5 * angles)
    shore = np.stack([wide * radius * np.cos(angles), tall * radius * np.sin(angles)], axis=1)
    if pen.chance(0.4):
        pen.polygon(shore * 1.12, pen.tinted(_SAND))
    pen.polygon(shore, pen.tinted(_WATER))


def _coast(pen: Pen) -> None:
    _ground(pen)
    shore = _bend(pen, pen.uniform(0.06, 0.2))
    drop = [(x, y - pen.uniform(0.18, 0.24)) for x, y in shore]
    pen.polygon([*drop, (2.5, 3), (-2.5, 3)], pen.tinted(_SAND))
    pen.polygon([*shore, (2.5, 3), (-2.5, 3)], pen.tinted(_WATER))


def _forest(pen: Pen) -> None:
    _ground(pen, shade(_WOOD, 0.8))
    for _ in range(70):
        x, y = pen.rng.uniform(-1.3, 1.3, 2).tolist()
        size = pen.uniform(0.1, 0.2)
        pen.ellipse(x, y, size, size, shade(pen.tinted(_WOOD), pen.uniform(0.8, 1.3)))


def _orchard(pen: Pen) -> None:
    _ground(pen)
    step = pen.uniform(0.36, 0.55)
    for x in np.arange(-1.8, 1.8, step).tolist():
        for y in np.arange(-1.8, 1.8, step).tolist():
            pen.ellipse(x, y, 0.33 * step, 0.33 * step, pen.tinted(_WOOD))


def _fields(pen: Pen) -> None:
    _ground(pen)
    crops: tuple[Colour, ...] = ((210, 190, 90), (150, 180, 80), (96, 140, 60), (170, 130, 80), (230, 214, 150))
    xs = [-1.9, *sorted(pen.rng.uniform(-1, 1, pen.whole(1, 3)).tolist()), 1.9]
    ys = [-1.9, *sorted(pen.rng.uniform(-1, 1, pen.whole(1, 3)).tolist()), 1.9]
    for x0, x1 in itertools.pairwise(xs):
        for y0, y1 in itertools.pairwise(ys):
            crop = pen.tinted(pen.pick(crops))
            pen.rect(x0 + 0.03, y0 + 0.03, x1 - 0.03, y1 - 0.03, crop)
            if pen.chance(0.6):
                for y in np.arange(y0 + 0.1, y1, 0.2).tolist():
                    pen.line([(x0 + 0.04, y), (x1 - 0.04, y)], shade(crop, 0.85), 0.05)


def _road(pen: Pen, path: list[tuple[float, float]], width: float) -> None:
    pen.line(path, pen.tinted(_ROAD), width)
    if pen.chance(0.5):
        pen.line(path, (236, 236, 220), 0.05)


def _crossroads(pen: Pen) -> None:
    _ground(pen)
    width, x, y = pen.uniform(0.18, 0.36), pen.uniform(-0.3, 0.3), pen.uniform(-0.3, 0.3)
    _road(pen, [(-2.5, y), (2.5, y)], width)
    _road(pen, [(x, -2.5), (x + pen.uniform(-0.4, 0.4), 2.5)], width)


def _highway(pen: Pen) -> None:
    _ground(pen)
    path = _bend(pen, pen.uniform(0.02, 0.25))
    width = pen.uniform(0.2, 0.28)
    for side in (-1, 1):
        lane = [(x, y + side * (0.06 + width / 2)) for x, y in path]
        pen.line(lane, pen.tinted(_ROAD), width)
        for x, y in lane[2:-2:2]:
            if pen.chance(0.35):
                pen.rect(x - 0.1, y - 0.05, x + 0.1, y + 0.05, pen.tinted(pen.pick(_ROOFS)))
    pen.line(path, (240, 236, 210), 0.06)


def _houses(pen: Pen) -> None:
    _ground(pen)
    step = pen.uniform(0.5, 0.72)
    for x in np.arange(-1.6, 1.6, step).tolist():
        for y in np.arange(-1.6, 1.6, step).tolist():
            if pen.chance(0.12):
                continue
            x1, y1 = x + pen.uniform(0.26, 0.4), y + pen.uniform(0.26, 0.4)
            roof = pen.tinted(pen.pick(_ROOFS))
            pen.rect(x + 0.07, y + 0.07, x1 + 0.07, y1 + 0.07, shade(pen.paper, 0.6))
            pen.rect(x, y, x1, y1, roof)
            pen.rect(x, y, x1, (y + y1) / 2, shade(roof, 0.8))


def _desert(pen: Pen) -> None:
    _ground(pen, _SAND)
    for level in np.arange(-1.7, 1.7, pen.uniform(0.32, 0.5)).tolist():
        ridge = [(x, y + level) for x, y in _bend(pen, pen.uniform(0.08, 0.16))]
        pen.line(ridge, shade(pen.paper, pen.uniform(0.74, 0.88)), pen.uniform(0.08, 0.16))


DOMAIN = Domain(
    name="land",
    about="land from above, as a satellite sees it",
    template="a satellite image of {}.",
    classes={
        "a river": _river,
        "a lake": _lake,
        "a coast": _coast,
        "a forest": _forest,
        "an orchard": _orchard,
        "crop fields": _fields,
        "a crossroads": _crossroads,
        "a highway": _highway,
        "houses": _houses,
        "a sandy desert": _desert,
    },
    style=Style(turn=180, zoom=(0.6, 1.1), shift=0.1, shear=0.1, clutter=0, cover=0.25, patchy=0, noise=30, light=0.35),
    phrases=("{}", "{} on a map", "{} from above"),
    inked=False,
    framed=False,
)
