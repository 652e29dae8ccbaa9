"""Plain shapes, filled, hollow or two-toned, at many angles."""

import math
from collections.abc import Callable

from condu_ray.benchmark.mini_mtil.colours import shade
from condu_ray.benchmark.mini_mtil.domain import Domain
from condu_ray.benchmark.mini_mtil.pen import Pen, Points, arc, oval, spokes
from condu_ray.benchmark.mini_mtil.style import Style


def _heart() -> Points:
    angles = [2 * math.pi * step / 28 for step in range(28)]
    return [
        (
            math.sin(a) ** 3,
            -(13 * math.cos(a) - 5 * math.cos(2 * a) - 2 * math.cos(3 * a) - math.cos(4 * a)) / 16,
        )
        for a in angles
    ]


def _crescent() -> Points:
    outer = arc(0.2, 0.0, 0.95, 0.95, math.radians(55), math.radians(305), 20)
    inner = arc(0.52, 0.0, 0.8, 0.8, math.radians(285), math.radians(75), 16)
    return [*outer, *inner]


_CROSS = [(-0.3, -0.9), (0.3, -0.9), (0.3, -0.3), (0.9, -0.3), (0.9, 0.3), (0.3, 0.3)]
_CROSS += [(-x, -y) for x, y in _CROSS]
_ARROW = [(-0.95, -0.22), (0.1, -0.22), (0.1, -0.65), (0.95, 0.0), (0.1, 0.65), (0.1, 0.22), (-0.95, 0.22)]


def _shape(points: Points) -> Callable[[Pen], None]:
    def draw(pen: Pen) -> None:
        if pen.style.clean or pen.chance(0.6):
            pen.polygon(points)
        elif pen.chance(0.6):
            pen.outline([tuple(point) for point in points], width=pen.uniform(0.1, 0.22))
        else:
            # two tones, and an edge
            pen.polygon(points, shade(pen.ink, pen.uniform(1.2, 1.6)))
            pen.outline([tuple(point) for point in points], width=0.12)

    return draw


def _ring(pen: Pen) -> None:
    pen.outline([tuple(point) for point in oval(0, 0, 0.75, 0.75)], width=pen.uniform(0.3, 0.4))
    # a second edge sets the ring apart from a hollow circle
    pen.outline([tuple(point) for point in oval(0, 0, 0.3, 0.3)], width=0.1)


DOMAIN = Domain(
    name="shapes",
    about="plain shapes, filled or hollow, at many angles before a cluttered background",
    template="a drawing of a {}.",
    classes={
        "circle": _shape(oval(0, 0, 0.85, 0.85)),
        "triangle": _shape([(0, -0.95), (0.95, 0.75), (-0.95, 0.75)]),
        "square": _shape([(-0.8, -0.8), (0.8, -0.8), (0.8, 0.8), (-0.8, 0.8)]),
        "hexagon": _shape(spokes(3, 0.95, 0.95)),
        "star": _shape(spokes(5, 0.42, 1.0)),
        "heart": _shape(_heart()),
        "cross": _shape(_CROSS),
        "crescent": _shape(_crescent()),
        "arrow": _shape(_ARROW),
        "target": _ring,
    },
    style=Style(turn=30, zoom=(0.65, 0.95), shift=0.08, warp=0.04, clutter=4, cover=0.25, patchy=20, noise=16),
    phrases=("a {}", "a {} shape", "one big {}"),
)
