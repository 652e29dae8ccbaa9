"""Vehicles from the side, as silhouettes before land, sea or sky."""

from condu_ray.benchmark.mini_mtil.colours import Colour, shade
from condu_ray.benchmark.mini_mtil.domain import Domain
from condu_ray.benchmark.mini_mtil.pen import Pen, oval
from condu_ray.benchmark.mini_mtil.style import Style

_GLASS: Colour = (190, 220, 240)


def _scene(pen: Pen, ground: Colour) -> None:
    """Lays sky and ground behind a task's vehicle; an icon keeps its plain paper."""
    if pen.style.clean:
        return
    level = pen.uniform(0.2, 0.7)
    pen.rect(-3, level, 3, 4, pen.tinted(ground if pen.chance(0.7) else shade(pen.paper, 0.6)))
    for _ in range(pen.whole(0, 4)):
        x = pen.uniform(-1.5, 1.5)
        pen.rect(
            x,
            level - pen.uniform(0.2, 0.9),
            x + pen.uniform(0.1, 0.5),
            level,
            shade(pen.paper, pen.uniform(0.75, 0.95)),
        )


def _land(pen: Pen) -> None:
    _scene(pen, (150, 150, 140))


def _sea(pen: Pen) -> None:
    _scene(pen, (60, 120, 190))


def _windows(pen: Pen, boxes: list[tuple[float, float, float, float]]) -> None:
    """Draws windows; a backlit silhouette has none."""
    if pen.style.clean or pen.chance(0.5):
        for box in boxes:
            pen.rect(*box, fill=_GLASS)


def _wheels(pen: Pen, xs: tuple[float, ...], y: float, radius: float) -> None:
    dark = shade(pen.ink, 0.5) if not pen.style.clean else (30, 30, 34)
    for x in xs:
        pen.ellipse(x, y, radius, radius, dark)
        if pen.style.clean:
            pen.ellipse(x, y, radius * 0.45, radius * 0.45, (190, 190, 190))


def _car(pen: Pen) -> None:
    _land(pen)
    top, nose = pen.uniform(-0.45, -0.3), pen.uniform(0.85, 0.95)
    pen.polygon(
        [(-0.92, 0.3), (-0.92, 0.0), (-0.6, -0.05), (-0.4, top), (0.25, top), (0.52, -0.02), (nose, 0.06), (0.95, 0.3)]
    )
    _windows(pen, [(-0.38, top + 0.1, -0.1, -0.05), (0.0, top + 0.1, 0.26, -0.05)])
    _wheels(pen, (-0.52, 0.52), 0.32, 0.22)


def _bus(pen: Pen) -> None:
    _land(pen)
    top = pen.uniform(-0.65, -0.5)
    pen.rect(-0.95, top, 0.95, 0.4)
    _windows(pen, [(x, top + 0.14, x + 0.26, -0.12) for x in (-0.84, -0.48, -0.12, 0.24, 0.6)])
    _wheels(pen, (-0.58, 0.58), 0.42, 0.2)


def _truck(pen: Pen) -> None:
    _land(pen)
    top = pen.uniform(-0.7, -0.5)
    pen.rect(-0.98, top, 0.38, 0.32, pen.ink if not pen.style.clean else shade(pen.ink, 1.5))
    pen.polygon([(0.45, 0.35), (0.45, -0.3), (0.75, -0.3), (0.95, 0.02), (0.95, 0.35)])
    pen.rect(-0.98, 0.28, 0.9, 0.38)
    _windows(pen, [(0.55, -0.2, 0.74, 0.02)])
    _wheels(pen, (-0.7, -0.28, 0.66), 0.42, 0.19)


def _train(pen: Pen) -> None:
    _land(pen)
    pen.rect(-0.95, -0.6, -0.3, 0.32)
    pen.rect(-0.3, -0.15, 0.78, 0.32)
    pen.rect(0.42, -0.6 - pen.uniform(0, 0.15), 0.6, -0.1)
    pen.polygon([(0.78, 0.32), (0.78, 0.05), (1.0, 0.42)])
    for step in range(pen.whole(1, 3)):
        pen.ellipse(0.4 - 0.22 * step, -0.8 - 0.06 * step, 0.13, 0.1, pen.tinted((200, 200, 204)))
    _windows(pen, [(-0.82, -0.45, -0.45, -0.1)])
    _wheels(pen, (-0.72, -0.34, 0.04, 0.42), 0.4, 0.18)
    pen.line([(-2, 0.62), (2, 0.62)], shade(pen.ink, 0.5), 0.06)


def _bicycle(pen: Pen) -> None:
    _land(pen)
    width = pen.uniform(0.08, 0.12)
    for x in (-0.5, 0.5):
        pen.outline([tuple(point) for point in oval(x, 0.25, 0.38, 0.38)], width=width)
    frame = [(-0.5, 0.25), (-0.2, -0.3), (0.32, -0.3), (0.0, 0.25), (-0.5, 0.25)]
    pen.line(frame, width=width)
    pen.line([(0.5, 0.25), (0.28, -0.5), (0.48, -0.56)], width=width)
    pen.line([(0.0, 0.25), (-0.26, -0.45)], width=width)
    pen.line([(-0.4, -0.47), (-0.12, -0.47)], width=width * 1.3)


def _sailing_boat(pen: Pen) -> None:
    _sea(pen)
    sail = pen.ink if not pen.style.clean else (250, 250, 244) if pen.paper_name != "white" else shade(pen.ink, 1.4)
    pen.polygon([(-0.8, 0.4), (0.85, 0.4), (0.55, 0.75), (-0.55, 0.75)])
    pen.line([(0, -0.95), (0, 0.45)], width=0.08)
    pen.polygon([(0.07, -0.9), (0.07, 0.3), (0.7 + pen.uniform(-0.1, 0.1), 0.3)], sail)
    pen.polygon([(-0.07, -0.75), (-0.07, 0.3), (-0.55 + pen.uniform(-0.1, 0.1), 0.3)], sail)


def _airplane(pen: Pen) -> None:
    if not pen.style.clean:
        for _ in range(pen.whole(0, 3)):
            pen.ellipse(pen.uniform(-1, 1), pen.uniform(-1, 1), pen.uniform(0.2, 0.5), 0.14, shade(pen.paper, 1.3))
    pen.ellipse(0, 0, 0.95, pen.uniform(0.15, 0.2))
    pen.polygon([(-0.9, 0), (-0.98, -0.5), (-0.75, -0.5), (-0.45, -0.05)])
    pen.polygon([(0.2, 0), (-0.35, 0.6), (-0.12, 0.6), (0.5, 0.05)])
    pen.polygon([(0.2, -0.1), (-0.12, -0.5), (0.05, -0.5), (0.48, -0.08)], shade(pen.ink, 0.75))
    _windows(pen, [(x, -0.08, x + 0.08, 0.0) for x in (-0.35, -0.15, 0.05, 0.25, 0.55)])


def _helicopter(pen: Pen) -> None:
    pen.ellipse(0.25, 0.1, pen.uniform(0.42, 0.52), 0.36)
    pen.polygon([(-0.05, -0.05), (-0.95, -0.12), (-0.95, -0.02), (-0.05, 0.25)])
    pen.line([(-0.95, -0.35), (-0.88, 0.18)], width=0.1)
    pen.line([(0.2, -0.2), (0.2, -0.5)], width=0.1)
    pen.line([(-0.6, -0.52), (0.98, -0.52)], width=0.08)
    pen.line([(-0.2, 0.62), (0.75, 0.62)], width=0.08)
    for x in (0.05, 0.5):
        pen.line([(x, 0.35), (x, 0.62)], width=0.07)
    _windows(pen, [(0.38, -0.1, 0.62, 0.12)])


def _rocket(pen: Pen) -> None:
    wide = pen.uniform(0.22, 0.3)
    pen.polygon([(0, -0.98), (wide, -0.5), (wide, 0.5), (-wide, 0.5), (-wide, -0.5)])
    for side in (-1, 1):
        pen.polygon([(side * wide, 0.05), (side * (wide + 0.32), 0.62), (side * wide, 0.5)], shade(pen.ink, 0.7))
    if pen.style.clean or pen.chance(0.6):
        pen.polygon([(-0.15, 0.52), (0.15, 0.52), (0, 0.98)], (244, 150, 40))
    _windows(pen, [(-0.1, -0.35, 0.1, -0.15)])


def _submarine(pen: Pen) -> None:
    if not pen.style.clean:
        _sea(pen)
        for _ in range(pen.whole(0, 5)):
            pen.ellipse(pen.uniform(-1, 1), pen.uniform(-1, 1), 0.06, 0.06, shade(pen.paper, 1.4))
    pen.ellipse(0, 0.2, 0.85, pen.uniform(0.32, 0.4))
    pen.rect(-0.15, -0.4, 0.3, 0.0)
    pen.line([(0.1, -0.4), (0.1, -0.75), (0.32, -0.75)], width=0.09)
    pen.polygon([(-0.8, 0.2), (-1.0, -0.1), (-1.0, 0.5)])
    _windows(pen, [(x, 0.1, x + 0.16, 0.26) for x in (-0.4, 0.0, 0.4)])


DOMAIN = Domain(
    name="vehicles",
    about="silhouettes of vehicles before land, sea or sky",
    template="a silhouette of a {}.",
    classes={
        "car": _car,
        "bus": _bus,
        "truck": _truck,
        "train": _train,
        "bicycle": _bicycle,
        "sailing boat": _sailing_boat,
        "airplane": _airplane,
        "helicopter": _helicopter,
        "rocket": _rocket,
        "submarine": _submarine,
    },
    style=Style(
        turn=12, zoom=(0.65, 1.0), shift=0.12, shear=0.15, warp=0.04, clutter=3, cover=0.2, patchy=20, noise=16
    ),
    phrases=("a {}", "a toy {}", "one {}"),
)
