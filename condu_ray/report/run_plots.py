"""The pictures of a run's report: matrices, and accuracy over the sessions."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from condu_ray.config import Protocol
from condu_ray.report.protocols import by_method
from condu_ray.report.style import MUTED, PALE, SIDE_BY_SIDE, line_style, save_figure, style_axes, value_limits
from condu_ray.report.text import as_matrix, as_number, counted
from condu_ray.store.location import Place

_TITLE = 28  # characters of a task's name that fit above its panel
_NUMBERED = 32  # tasks of a matrix whose cells have numbers
_NAMED = 48  # tasks whose names stand at a matrix
_PANELS = 24  # tasks that have a panel each
_SEEN = LinearSegmentedColormap.from_list("seen", ["#f7fbff", "#9ecae1", "#4292c6", "#08519c"])
_UNSEEN = LinearSegmentedColormap.from_list("unseen", ["#ffffff", "#c9c9c9"])


def heat_map(accuracy: Sequence[Sequence[float | None]], tasks: Sequence[str], title: str, path: Place) -> Place:
    """Draws an accuracy matrix: a row per session, a column per task, of up to 32 tasks the number in each cell.

    Args:
        accuracy: Percent, shape (T, T); [t][i] is task i after session t. None or nan leaves a cell blank.
        tasks: T names, in the order in which they were learned.
        title: The picture's title.
        path: Where the PNG goes.

    Returns:
        The path.
    """
    values = as_matrix(accuracy, len(tasks))
    count = len(tasks)
    cell = 0.55 if count <= _NUMBERED else max(0.14, 17.6 / count)
    words = max(1.1, 0.075 * (max(map(len, tasks)) + 4))  # inches that the longest name takes beside its row
    size = (max(4.2, cell * count + 1.5 + words), max(2.2, cell * count + 1.1 + max(0.8, 0.7 * words)))
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.add_subplot()
    unseen = np.triu(np.ones((count, count), dtype=bool), 1)
    seen = np.ma.masked_array(values, unseen | np.isnan(values))
    ahead = np.ma.masked_array(values, ~unseen | np.isnan(values))
    # One scale for all pictures, so that they can be compared.
    image = axes.imshow(seen, cmap=_SEEN, vmin=0, vmax=100)
    axes.imshow(ahead, cmap=_UNSEEN, vmin=0, vmax=100)
    for row, column in zip(*np.nonzero(~np.isnan(values)), strict=True) if count <= _NUMBERED else ():
        value = values[row, column]
        dark = not unseen[row, column] and value > 62
        axes.text(
            column,
            row,
            "100" if value > 99.95 else f"{value:.1f}",
            ha="center",
            va="center",
            fontsize=9,
            color="white" if dark else MUTED if unseen[row, column] else "black",
            fontweight="bold" if row == column else "normal",
            style="italic" if unseen[row, column] else "normal",
        )
    if count <= _NUMBERED:  # the colours of more of them need no seams
        axes.set_xticks(np.arange(-0.5, count), minor=True)
        axes.set_yticks(np.arange(-0.5, count), minor=True)
        axes.grid(which="minor", color="white", linewidth=1.5)
    # The staircase just right of the diagonal: what is above it was not learned yet.
    stairs = np.arange(count - 1)
    edge = np.stack([stairs - 0.5, stairs + 0.5], axis=1).ravel()
    axes.plot(np.repeat(stairs + 0.5, 2), edge, color="#D55E00", lw=1.8, solid_capstyle="butt")
    axes.set_xlim(-0.5, count - 0.5)
    axes.set_ylim(count - 0.5, -0.5)
    axes.tick_params(which="both", length=0)
    told = range(0, count, math.ceil(count / _NAMED))
    names = [tasks[index] for index in told]
    axes.set_xticks(told, names, rotation=40, ha="right", rotation_mode="anchor", fontsize=9)
    axes.set_yticks(told, [f"{index + 1}  {name}" for index, name in zip(told, names, strict=True)], fontsize=9)
    axes.set_xlabel("accuracy on task", fontsize=10)
    axes.set_ylabel("after session", fontsize=10)
    axes.spines[:].set_visible(False)
    axes.set_title(title, fontsize=12, fontweight="bold", loc="left", parse_math=False)
    figure.colorbar(image, ax=axes, shrink=0.8, aspect=30, pad=0.02).set_label("accuracy in %", fontsize=9)
    if count > 1:
        labels = [Patch(facecolor=_SEEN(0.6), label="learned"), Patch(facecolor=_UNSEEN(0.8), label="not learned yet")]
        figure.legend(handles=labels, loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    return save_figure(figure, path)


def accuracy_over_sessions(results: Mapping[str, Any], path: Place, protocol: Protocol = "task") -> Place:
    """Draws one panel per task: its accuracy (percent) after each session, a line per method.

    Of more than eight methods the eight that are highest in the end have a colour each, the others are grey. Of more
    than 24 tasks there are two panels: the means over the tasks learned so far, and over those that are not.

    Args:
        results: Results of a run, as `condu_ray.report.run_report.write_report` takes them.
        path: Where the PNG goes.
        protocol: What is shown; methods that were not measured by it are left out.

    Returns:
        The path.
    """
    tasks, methods = list(results["tasks"]), by_method(results, protocol)
    matrices = {name: as_matrix(entry["accuracy"], len(tasks)) for name, entry in methods.items()}
    styles = _styles(methods)
    if len(tasks) > _PANELS:
        return _means_over_sessions(matrices, styles, path, protocol)
    columns = min(4, len(tasks))
    rows = math.ceil(len(tasks) / columns)
    legend_columns = min(len(methods), max(2, 2 * columns))
    titles = [textwrap.fill(name, _TITLE) for name in tasks]  # names have no spaces: long ones break anywhere
    row_height = 2.2 + 0.17 * max(title.count("\n") for title in titles)
    height = row_height * rows + 0.8 + 0.22 * math.ceil(_told(methods) / max(1, legend_columns))
    figure = Figure(figsize=(max(5.0, 2.9 * columns), height), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).flatten()
    sessions = np.arange(1, len(tasks) + 1)
    lines: list[Any] = []
    for position, panel in enumerate(panels):
        if position >= len(tasks):
            panel.set_visible(False)
            continue
        panel.axvspan(sessions[0] - 0.4, position + 1, color="#f0f0f0", linewidth=0)
        panel.axvline(position + 1, color=MUTED, linewidth=1.0, linestyle=(0, (4, 2)))
        lines = []
        for name, values in matrices.items():
            lines += panel.plot(sessions, values[:, position], ms=4, **styles[name])
        panel.set_title(titles[position], fontsize=10, loc="left")
        panel.set_xlim(sessions[0] - 0.4, sessions[-1] + 0.4)
        panel.set_ylim(*value_limits(np.array([values[:, position] for values in matrices.values()])))
        panel.set_xticks(sessions[:: math.ceil(len(tasks) / 10)])
        panel.yaxis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 5, 10], min_n_ticks=4))
        style_axes(panel)
    figure.supxlabel("session (shaded: before the task is learned; dashed: the session that learns it)", fontsize=10)
    figure.supylabel(f"accuracy in %, protocol {protocol}", fontsize=10)
    if lines:
        _legend(figure, lines, legend_columns)
    return save_figure(figure, path)


def _styles(methods: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Returns how each method's line is drawn, with its label; the first lies on top where lines meet."""
    last = {name: as_number(entry.get("last")) for name, entry in methods.items()}
    order = sorted(last, key=lambda name: -math.inf if math.isnan(last[name]) else last[name], reverse=True)
    shown = [name for name in methods if name in order[:SIDE_BY_SIDE]]
    grey = {"color": PALE, "lw": 0.9, "zorder": 1.5, "label": counted(len(methods) - len(shown), "other")}
    return {
        name: {**line_style(shown.index(name)), "lw": 1.5, "zorder": 3 - shown.index(name) / 100, "label": name}
        if name in shown
        else grey
        for name in methods
    }


def _told(methods: Mapping[str, Any]) -> int:
    """Returns how many entries a legend of methods has."""
    return min(len(methods), SIDE_BY_SIDE + 1)


def _legend(figure: Figure, lines: Sequence[Any], columns: int) -> None:
    """Names lines above the panels, those of one label once and the grey ones behind the others."""
    handles = {line.get_label(): line for line in lines}
    order = sorted(handles, key=lambda label: handles[label].get_color() == PALE)
    figure.legend(
        handles=[handles[label] for label in order],
        loc="outside upper center",
        ncols=columns,
        frameon=False,
        fontsize=9,
    )


def _means_over_sessions(
    matrices: Mapping[str, np.ndarray], styles: Mapping[str, dict[str, Any]], path: Place, protocol: Protocol
) -> Place:
    """As `accuracy_over_sessions`, for more tasks than there is room for a panel each."""
    legend_columns = min(len(matrices), 4)
    height = 3.9 + 0.22 * math.ceil(_told(matrices) / max(1, legend_columns))
    figure = Figure(figsize=(11.0, height), layout="constrained")
    parts = {"mean of the tasks learned so far": False, "mean of the tasks not learned yet": True}
    lines: list[Any] = []
    for panel, (title, ahead) in zip(figure.subplots(1, 2), parts.items(), strict=True):
        shown = {}
        for name, values in matrices.items():
            chosen = np.triu(np.ones(values.shape, dtype=bool), 1) == ahead
            kept = [row[at & ~np.isnan(row)] for row, at in zip(values, chosen, strict=True)]
            shown[name] = np.array([row.mean() if len(row) else math.nan for row in kept])
        sessions = np.arange(1, 1 + len(next(iter(shown.values()), ())))
        lines = []
        for name, means in shown.items():
            lines += panel.plot(sessions, means, **{**styles[name], "marker": ""})
        panel.set_title(title, fontsize=10, loc="left")
        panel.set_ylim(*value_limits(np.array(list(shown.values()))))
        panel.set_xlim(0.5, len(sessions) + 0.5)
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
        style_axes(panel)
    figure.supxlabel("session", fontsize=10)
    figure.supylabel(f"accuracy in %, protocol {protocol}", fontsize=10)
    if lines:
        _legend(figure, lines, legend_columns)
    return save_figure(figure, path)
