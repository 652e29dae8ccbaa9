"""Things that are in no task: they widen what the backbone is pretrained on."""

import math
from collections.abc import Callable

from condu_ray.benchmark.mini_mtil.colours import Colour, shade
from condu_ray.benchmark.mini_mtil.digits import printed
from condu_ray.benchmark.mini_mtil.domain import Domain
from condu_ray.benchmark.mini_mtil.pen import Pen, oval, spokes
from condu_ray.benchmark.mini_mtil.style import CLEAN

_LEAF: Colour = (60, 130, 60)
_BARK: Colour = (116, 76, 44)
Strokes = Callable[[Pen], None]


def _tree(pen: Pen) -> None:
    pen.rect(-0.12, 0.2, 0.12, 0.95, _BARK)
    pen.ellipse(0, -0.25, 0.6, 0.65)


def _fir(pen: Pen) -> None:
    pen.rect(-0.1, 0.5, 0.1, 0.95, _BARK)
    for y in (-0.9, -0.5, -0.1):
        pen.polygon([(0, y), (0.35 + 0.3 * (y + 0.9), y + 0.7), (-0.35 - 0.3 * (y + 0.9), y + 0.7)])


def _house(pen: Pen) -> None:
    pen.rect(-0.65, -0.15, 0.65, 0.85)
    pen.polygon([(-0.85, -0.1), (0, -0.9), (0.85, -0.1)], shade(pen.ink, 0.6))
    pen.rect(-0.15, 0.3, 0.15, 0.85, shade(pen.ink, 1.6))


def _fish(pen: Pen) -> None:
    pen.ellipse(-0.1, 0, 0.65, 0.4)
    pen.polygon([(0.4, 0), (0.95, -0.45), (0.95, 0.45)])
    pen.ellipse(-0.45, -0.1, 0.08, 0.08, (250, 250, 250))


def _sun(pen: Pen) -> None:
    pen.polygon(spokes(12, 0.6, 0.95))
    pen.ellipse(0, 0, 0.55, 0.55, shade(pen.ink, 1.3))


def _cloud(pen: Pen) -> None:
    for x, y, radius in ((-0.5, 0.15, 0.38), (0, -0.1, 0.5), (0.5, 0.15, 0.38)):
        pen.ellipse(x, y, radius, radius)
    pen.rect(-0.5, 0.1, 0.5, 0.53)


def _umbrella(pen: Pen) -> None:
    pen.polygon(oval(0, 0, 0.9, 0.8)[14:])
    pen.line([(0, 0), (0, 0.8), (0.2, 0.9), (0.3, 0.75)], width=0.09)


def _cup(pen: Pen) -> None:
    pen.outline([tuple(point) for point in oval(0.55, 0.05, 0.3, 0.3)], width=0.12)
    pen.polygon([(-0.6, -0.5), (0.55, -0.5), (0.4, 0.7), (-0.45, 0.7)])


def _key(pen: Pen) -> None:
    pen.outline([tuple(point) for point in oval(-0.55, 0, 0.32, 0.32)], width=0.17)
    pen.line([(-0.25, 0), (0.9, 0)], width=0.15)
    for x in (0.6, 0.85):
        pen.rect(x - 0.06, 0, x + 0.06, 0.35)


def _mushroom(pen: Pen) -> None:
    pen.rect(-0.25, 0, 0.25, 0.85, (240, 230, 214))
    pen.polygon(oval(0, 0.05, 0.85, 0.85)[14:])


def _apple(pen: Pen) -> None:
    pen.ellipse(-0.25, 0.15, 0.5, 0.65)
    pen.ellipse(0.25, 0.15, 0.5, 0.65)
    pen.line([(0, -0.4), (0.1, -0.85)], _BARK, 0.09)
    pen.ellipse(0.3, -0.7, 0.22, 0.1, _LEAF)


def _balloon(pen: Pen) -> None:
    pen.ellipse(0, -0.3, 0.5, 0.6)
    pen.line([(0, 0.3), (0.08, 0.6), (-0.05, 0.95)], width=0.05)


def _candle(pen: Pen) -> None:
    pen.rect(-0.22, -0.3, 0.22, 0.9)
    pen.ellipse(0, -0.58, 0.13, 0.27, (250, 170, 40))


def _bottle(pen: Pen) -> None:
    pen.polygon(
        [(-0.13, -0.9), (0.13, -0.9), (0.13, -0.4), (0.4, 0), (0.4, 0.9), (-0.4, 0.9), (-0.4, 0), (-0.13, -0.4)]
    )


def _flag(pen: Pen) -> None:
    pen.line([(-0.6, -0.9), (-0.6, 0.95)], width=0.1)
    pen.rect(-0.55, -0.85, 0.75, 0.0)


def _mountain(pen: Pen) -> None:
    pen.polygon([(-1, 0.8), (-0.2, -0.8), (0.3, 0.1), (0.5, -0.2), (1, 0.8)])
    pen.polygon([(-0.2, -0.8), (-0.38, -0.42), (-0.2, -0.5), (0.02, -0.42)], (250, 250, 250))


def _cat(pen: Pen) -> None:
    pen.polygon([(-0.7, -0.9), (-0.1, -0.5), (-0.7, 0.1)])
    pen.polygon([(0.7, -0.9), (0.1, -0.5), (0.7, 0.1)])
    pen.ellipse(0, 0.1, 0.72, 0.62)
    for side in (-1, 1):
        pen.ellipse(side * 0.28, 0, 0.1, 0.14, pen.paper)


def _bird(pen: Pen) -> None:
    pen.ellipse(0, 0.15, 0.55, 0.35)
    pen.ellipse(0.5, -0.25, 0.26, 0.26)
    pen.polygon([(0.7, -0.32), (0.98, -0.2), (0.7, -0.12)], (244, 150, 40))
    pen.polygon([(-0.4, 0.1), (-0.95, -0.2), (-0.9, 0.25)])
    for x in (-0.1, 0.15):
        pen.line([(x, 0.45), (x, 0.85)], width=0.07)


def _butterfly(pen: Pen) -> None:
    for side in (-1, 1):
        pen.ellipse(side * 0.48, -0.3, 0.45, 0.36, turn=side * -0.4)
        pen.ellipse(side * 0.38, 0.4, 0.33, 0.28, shade(pen.ink, 0.75))
    pen.ellipse(0, 0, 0.08, 0.65, (50, 40, 40))


def _clock(pen: Pen) -> None:
    pen.ellipse(0, 0, 0.85, 0.85)
    pen.ellipse(0, 0, 0.7, 0.7, (250, 250, 250))
    for angle, reach in ((pen.uniform(0, 6.3), 0.58), (pen.uniform(0, 6.3), 0.38)):
        pen.line([(0, 0), (reach * math.cos(angle), reach * math.sin(angle))], (30, 30, 30), 0.1)


def _envelope(pen: Pen) -> None:
    pen.rect(-0.9, -0.55, 0.9, 0.55)
    pen.line([(-0.9, -0.55), (0, 0.1), (0.9, -0.55)], shade(pen.ink, 0.5), 0.08)


def _ladder(pen: Pen) -> None:
    for x in (-0.35, 0.35):
        pen.line([(x, -0.95), (x, 0.95)], width=0.12)
    for y in (-0.7, -0.3, 0.1, 0.5):
        pen.line([(-0.35, y), (0.35, y)], width=0.1)


def _snowman(pen: Pen) -> None:
    pen.ellipse(0, 0.45, 0.48, 0.48)
    pen.ellipse(0, -0.3, 0.34, 0.34)
    pen.rect(-0.25, -0.95, 0.25, -0.55, shade(pen.ink, 0.4))


def _letter(letter: str) -> Strokes:
    return lambda pen: printed(pen, letter)


THINGS = Domain(
    name="things",
    about="things of every day",
    template="a drawing of a {}.",
    classes={
        "tree": _tree,
        "fir tree": _fir,
        "house": _house,
        "fish": _fish,
        "sun": _sun,
        "cloud": _cloud,
        "umbrella": _umbrella,
        "cup": _cup,
        "key": _key,
        "mushroom": _mushroom,
        "apple": _apple,
        "balloon": _balloon,
        "candle": _candle,
        "bottle": _bottle,
        "flag": _flag,
        "mountain": _mountain,
        "cat": _cat,
        "bird": _bird,
        "butterfly": _butterfly,
        "clock": _clock,
        "letter": _envelope,
        "ladder": _ladder,
        "snowman": _snowman,
    },
    style=CLEAN,
    phrases=("a {}", "one {}", "a toy {}"),
)
LETTERS = Domain(
    name="letters",
    about="printed letters",
    template="the letter {}.",
    classes={letter: _letter(letter) for letter in "ABCDEFGHIJKLMNOPQRSTUVWXYZ"},
    style=CLEAN,
    phrases=("the letter {}", "a printed {}", "a capital {}"),
)
EXTRAS = (THINGS, LETTERS)
