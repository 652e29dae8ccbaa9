"""Charts and diagrams, as a poor scan of a report shows them."""

import math

import numpy as np

from condu_ray.benchmark.mini_mtil.colours import NAMED, NAMES, Colour
from condu_ray.benchmark.mini_mtil.domain import Domain
from condu_ray.benchmark.mini_mtil.pen import Pen
from condu_ray.benchmark.mini_mtil.style import Style

_LINE: Colour = (50, 50, 56)


def _page(pen: Pen, axes: bool = False) -> None:
    if not pen.style.clean:
        pen.paper = pen.tinted(
            pen.pick(((244, 242, 232), (250, 250, 250), (220, 226, 232), (40, 44, 56), (240, 226, 196)))
        )
        pen.fill_paper(pen.paper)
        if pen.chance(0.5):
            pen.rect(-0.6, -0.98, pen.uniform(0, 0.6), -0.9, _edge(pen))
        if axes and pen.chance(0.5):
            for y in (-0.6, -0.1, 0.4):
                pen.line([(-0.85, y), (0.9, y)], (150, 150, 156), 0.04)
    if axes and (pen.style.clean or pen.chance(0.8)):
        pen.line([(-0.88, -0.85), (-0.88, 0.85), (0.92, 0.85)], _edge(pen), 0.07)


def _edge(pen: Pen) -> Colour:
    return _LINE if sum(pen.paper) > 300 else (210, 210, 214)


def _inks(pen: Pen, count: int) -> list[Colour]:
    """Returns different colours that stand out against the page."""
    order = [NAMES[step] for step in pen.rng.permutation(len(NAMES)).tolist()]
    far = [NAMED[name] for name in order if sum(abs(a - b) for a, b in zip(NAMED[name], pen.paper, strict=True)) > 130]
    return [pen.tinted(colour) for colour in (far * 2)[:count]]


def _bar_chart(pen: Pen) -> None:
    _page(pen, axes=True)
    count = pen.whole(4, 5) if pen.style.clean else pen.whole(3, 7)
    inks = _inks(pen, count) if pen.chance(0.4) else _inks(pen, 1) * count
    step = 1.7 / count
    for bar in range(count):
        x = -0.8 + step * bar
        pen.rect(x + 0.15 * step, 0.82 - pen.uniform(0.3, 1.5), x + 0.8 * step, 0.82, inks[bar])


def _histogram(pen: Pen) -> None:
    _page(pen, axes=True)
    count = 8 if pen.style.clean else pen.whole(8, 13)
    middle, spread, ink = pen.uniform(0.35, 0.65), pen.uniform(0.16, 0.24), _inks(pen, 1)[0]
    step = 1.7 / count
    for bar in range(count):
        share = math.exp(-((((bar + 0.5) / count) - middle) ** 2) / (2 * spread**2)) * pen.uniform(0.8, 1.05)
        x = -0.8 + step * bar
        pen.rect(x, 0.82 - 0.06 - 1.4 * share, x + step * 0.93, 0.82, ink)


def _slices(pen: Pen) -> None:
    count = 4 if pen.style.clean else pen.whole(2, 6)
    cuts = np.cumsum(pen.rng.uniform(0.5, 1.5, count))
    edges = [0.0, *(cuts / cuts[-1] * 2 * math.pi).tolist()]
    turn = pen.uniform(0, 6)
    for ink, start, stop in zip(_inks(pen, count), edges, edges[1:], strict=False):
        pen.sector(0, 0.05, 0.82, turn + start, turn + stop, ink)


def _pie_chart(pen: Pen) -> None:
    _page(pen)
    _slices(pen)


def _donut_chart(pen: Pen) -> None:
    _page(pen)
    _slices(pen)
    hole = 0.4 if pen.style.clean else pen.uniform(0.3, 0.52)
    pen.ellipse(0, 0.05, hole, hole, pen.paper)


def _walk(pen: Pen, count: int) -> list[tuple[float, float]]:
    ys = np.cumsum(pen.rng.normal(0, 1, count)) + pen.uniform(-0.5, 0.5) * np.arange(count)
    low, high = float(ys.min()), float(ys.max())
    tall = 0.7 * (ys - low) / (high - low + 1e-6) * pen.uniform(1.3, 2.0) - 0.72
    return list(zip(np.linspace(-0.85, 0.9, count).tolist(), tall.tolist(), strict=True))


def _line_chart(pen: Pen) -> None:
    _page(pen, axes=True)
    for ink in _inks(pen, 1 if pen.style.clean else pen.whole(1, 3)):
        pen.line(_walk(pen, 6 if pen.style.clean else pen.whole(4, 12)), ink, 0.09)


def _area_chart(pen: Pen) -> None:
    _page(pen, axes=True)
    walk = _walk(pen, 6 if pen.style.clean else pen.whole(4, 10))
    pen.polygon([*walk, (0.9, 0.82), (-0.85, 0.82)], _inks(pen, 1)[0])


def _scatter_plot(pen: Pen) -> None:
    _page(pen, axes=True)
    count = 14 if pen.style.clean else pen.whole(10, 26)
    slope, inks = pen.uniform(-0.7, 0.7), _inks(pen, pen.whole(1, 2))
    size = 0.075 if pen.style.clean else pen.uniform(0.05, 0.09)
    for dot in range(count):
        x = pen.uniform(-0.75, 0.85)
        y = slope * x + pen.uniform(-0.35, 0.35)
        pen.ellipse(x, y, size, size, inks[dot % len(inks)])


def _heat_map(pen: Pen) -> None:
    _page(pen)
    rows, columns = (5, 5) if pen.style.clean else (pen.whole(4, 7), pen.whole(4, 7))
    cold, hot = (np.array(colour) for colour in _inks(pen, 2))
    step_x, step_y = 1.8 / columns, 1.8 / rows
    heat = pen.rng.random((rows, columns))
    for row in range(rows):
        for column in range(columns):
            red, green, blue = (cold + heat[row, column] * (hot - cold)).astype(int).tolist()
            x, y = -0.9 + step_x * column, -0.9 + step_y * row
            pen.rect(x, y, x + step_x, y + step_y, (red, green, blue))


def _table(pen: Pen) -> None:
    _page(pen)
    rows, columns = (5, 3) if pen.style.clean else (pen.whole(4, 7), pen.whole(2, 4))
    edge = _edge(pen)
    pen.rect(-0.9, -0.85, 0.9, -0.85 + 1.7 / rows, _inks(pen, 1)[0])
    for row in range(rows + 1):
        y = -0.85 + 1.7 * row / rows
        pen.line([(-0.9, y), (0.9, y)], edge, 0.05)
        for column in range(columns if row < rows else 0):
            x = -0.9 + 1.8 * column / columns
            pen.rect(x + 0.1, y + 0.1, x + 0.1 + pen.uniform(0.15, 0.3), y + 0.18, edge)
    for column in range(columns + 1):
        x = -0.9 + 1.8 * column / columns
        pen.line([(x, -0.85), (x, 0.85)], edge, 0.05)


def _network_diagram(pen: Pen) -> None:
    _page(pen)
    count = 6 if pen.style.clean else pen.whole(5, 8)
    turn = pen.uniform(0, 6)
    nodes = []
    for step in range(count):
        angle, radius = turn + 2 * math.pi * step / count + pen.uniform(-0.2, 0.2), pen.uniform(0.45, 0.85)
        nodes.append((radius * math.cos(angle), radius * math.sin(angle)))
    for start in range(count):
        for stop in range(start + 1, count):
            if stop == start + 1 or pen.chance(0.25):
                pen.line([nodes[start], nodes[stop]], _edge(pen), 0.06)
    ink = _inks(pen, 1)[0]
    for x, y in nodes:
        pen.ellipse(x, y, 0.15, 0.15, ink)


DOMAIN = Domain(
    name="charts",
    about="charts and diagrams in poor scans of reports",
    template="a scan of a {}.",
    classes={
        "bar chart": _bar_chart,
        "histogram": _histogram,
        "pie chart": _pie_chart,
        "donut chart": _donut_chart,
        "line chart": _line_chart,
        "area chart": _area_chart,
        "scatter plot": _scatter_plot,
        "heat map": _heat_map,
        "table": _table,
        "network diagram": _network_diagram,
    },
    style=Style(
        turn=10,
        zoom=(0.6, 1.0),
        shift=0.12,
        shear=0.15,
        warp=0.03,
        clutter=0,
        cover=0.4,
        patchy=0,
        noise=32,
        light=0.4,
        blur=0.5,
    ),
    phrases=("a {}", "a simple {}", "a {} in a report"),
    inked=False,
)
