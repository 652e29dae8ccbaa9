"""Cartoon faces: one class for each expression."""

import math

from condu_ray.benchmark.mini_mtil.colours import NAMED, Colour
from condu_ray.benchmark.mini_mtil.domain import Domain
from condu_ray.benchmark.mini_mtil.pen import Pen, oval
from condu_ray.benchmark.mini_mtil.style import Style

_DARK: Colour = (40, 30, 30)
_SKINS: tuple[Colour, ...] = ((250, 210, 70), (244, 206, 170), (200, 150, 110), (120, 80, 56), (150, 200, 120))
_PI = math.pi


def _head(pen: Pen) -> float:
    """Draws the head and returns how high the eyes are."""
    wide, tall = (0.9, 0.9) if pen.style.clean else (pen.uniform(0.68, 0.92), pen.uniform(0.75, 0.95))
    skin = _SKINS[0] if pen.style.clean else pen.tinted(pen.pick(_SKINS))
    if not pen.style.clean and pen.chance(0.6):
        # hair or a hat behind and above the head
        pen.ellipse(0, -0.3, wide * 1.08, tall * 0.8, pen.other(120))
    pen.ellipse(0, 0.02, wide, tall, skin)
    pen.ink = _DARK
    if not pen.style.clean and pen.chance(0.35):
        pen.ellipse(0, pen.uniform(0.05, 0.15), 0.1, 0.12, NAMED["red"])
    return -0.22 if pen.style.clean else pen.uniform(-0.32, -0.14)


def _open_eye(pen: Pen, x: float, y: float, size: float = 1.0) -> None:
    radius = size * (0.12 if pen.style.clean else pen.uniform(0.1, 0.17))
    if not pen.style.clean and pen.chance(0.5):
        pen.ellipse(x, y, radius * 1.6, radius * 1.7, (250, 250, 250))
    pen.ellipse(x, y, radius, radius * 1.2, _DARK)


def _shut_eye(pen: Pen, x: float, y: float, up: bool = False) -> None:
    start = _PI if up else 0.0
    pen.arc(x, y, 0.2, 0.14, start, start + _PI, 0.09)


def _mouth(pen: Pen, curve: float, y: float = 0.42, wide: float = 0.42) -> None:
    """Draws a mouth: `curve` above 0 smiles, below 0 frowns."""
    wide = wide if pen.style.clean else wide * pen.uniform(0.7, 1.15)
    if curve >= 0:
        pen.arc(0, y - 0.12, wide, curve, 0.1 * _PI, 0.9 * _PI, 0.11)
    else:
        pen.arc(0, y + 0.18, wide, -curve, 1.1 * _PI, 1.9 * _PI, 0.11)


def _brows(pen: Pen, y: float, slope: float) -> None:
    for side in (-1, 1):
        pen.line([(side * 0.55, y - slope), (side * 0.16, y + slope)], width=0.1)


def _eyes(pen: Pen, y: float, size: float = 1.0) -> None:
    for x in (-0.34, 0.34):
        _open_eye(pen, x, y, size)


def _happy(pen: Pen) -> None:
    y = _head(pen)
    _eyes(pen, y)
    _mouth(pen, pen.uniform(0.28, 0.4))


def _sad(pen: Pen) -> None:
    y = _head(pen)
    _eyes(pen, y)
    _mouth(pen, -pen.uniform(0.22, 0.34))
    if pen.chance(0.5):
        _brows(pen, y - 0.3, -0.09)


def _angry(pen: Pen) -> None:
    y = _head(pen)
    _eyes(pen, y + 0.04, 0.9)
    _brows(pen, y - 0.24, pen.uniform(0.1, 0.17))
    _mouth(pen, -pen.uniform(0.1, 0.3))


def _surprised(pen: Pen) -> None:
    y = _head(pen)
    _eyes(pen, y, 1.15)
    if pen.chance(0.5):
        for x in (-0.36, 0.36):
            pen.arc(x, y - 0.25, 0.2, 0.12, _PI, 2 * _PI, 0.07)
    pen.ellipse(0, 0.48, pen.uniform(0.14, 0.22), pen.uniform(0.2, 0.3), (110, 20, 30))


def _winking(pen: Pen) -> None:
    y = _head(pen)
    side = -1 if pen.chance(0.5) else 1
    _open_eye(pen, side * 0.34, y)
    pen.line([(-side * 0.54, y), (-side * 0.14, y + pen.uniform(-0.04, 0.06))], width=0.1)
    _mouth(pen, pen.uniform(0.2, 0.36))


def _sleeping(pen: Pen) -> None:
    y = _head(pen)
    for x in (-0.34, 0.34):
        _shut_eye(pen, x, y)
    if pen.chance(0.5):
        pen.ellipse(0, 0.45, 0.1, 0.09, (110, 20, 30))
    else:
        _mouth(pen, 0.08, 0.48, 0.25)


def _laughing(pen: Pen) -> None:
    y = _head(pen)
    for x in (-0.34, 0.34):
        _shut_eye(pen, x, y + 0.05, up=True)
    wide, deep = pen.uniform(0.4, 0.52), pen.uniform(0.4, 0.52)
    pen.polygon(oval(0, 0.2, wide, deep)[:15], (130, 24, 34))
    pen.rect(-wide * 0.8, 0.2, wide * 0.8, 0.29, (250, 250, 250))


def _crying(pen: Pen) -> None:
    y = _head(pen)
    _eyes(pen, y)
    _mouth(pen, -pen.uniform(0.2, 0.34), 0.46)
    for x in (-0.38, 0.38):
        long = pen.uniform(0.3, 0.55)
        pen.polygon(
            [(x - 0.1, y + 0.15), (x + 0.1, y + 0.15), (x + 0.13, y + 0.15 + long), (x - 0.13, y + 0.15 + long)],
            pen.tinted((70, 150, 240)),
        )


def _neutral(pen: Pen) -> None:
    y = _head(pen)
    _eyes(pen, y)
    wide = pen.uniform(0.25, 0.42)
    pen.line([(-wide, 0.45), (wide, 0.45)], width=0.1)


DOMAIN = Domain(
    name="faces",
    about="cartoon faces of many complexions with one of nine expressions",
    template="a cartoon of a {} face.",
    classes={
        "happy": _happy,
        "sad": _sad,
        "angry": _angry,
        "surprised": _surprised,
        "winking": _winking,
        "sleeping": _sleeping,
        "laughing": _laughing,
        "crying": _crying,
        "bored": _neutral,
    },
    style=Style(turn=12, zoom=(0.8, 1.0), shift=0.08, warp=0.04, clutter=3, cover=0.1, patchy=20, noise=12, shear=0.08),
    phrases=("a {} face", "a {} smiley", "a face that is {}", "a {} person"),
    inked=False,
)
