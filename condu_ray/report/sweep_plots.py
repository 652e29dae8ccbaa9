"""The pictures of a sweep over orders, as PNG files with the same bytes for the same numbers.

A group is a method, with its settings where the sweep varied them; its trials are orders and seeds.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from condu_ray.config import Protocol
from condu_ray.metrics import METRICS
from condu_ray.report.style import MUTED, PALETTE, line_style, save_figure, style_axes, value_limits
from condu_ray.store.location import Place

_TOGETHER = 6  # so many lines and bands are told apart in one panel; more get a panel each
_BAND = "mean over orders and seeds, shaded: ± standard error"
_AROUND = LinearSegmentedColormap.from_list("around", ["#b35806", "#f7b565", "#ffffff", "#79b4dd", "#08589e"])


def methods_over_orders(
    values: Mapping[str, Mapping[str, Sequence[float]]], path: Place, protocol: Protocol = "task"
) -> Place:
    """Draws one panel a metric: a row a group, a dot a trial, and over them mean and standard deviation.

    Args:
        values: By metric's heading, by group, the values (percent) of its trials; nan is left out. All metrics have
            the same groups.
        path: Where the PNG goes.
        protocol: By which the values were measured.

    Returns:
        The path.
    """
    groups = list(next(iter(values.values())))
    labels = [_wrapped(group, 28) for group in groups]
    heights = np.array([0.17 + 0.19 * max(1, label.count("\n") + 1) for label in labels])
    places = np.cumsum(heights) - heights / 2  # in inches, from above
    # Space between the panels, so that the last number of one keeps away from the first of the next.
    layout = ConstrainedLayoutEngine(wspace=0.06)
    figure = Figure(figsize=(2.2 + 2.2 * len(values), 1.25 + heights.sum()), layout=layout)
    panels = figure.subplots(1, len(values), squeeze=False, sharey=True)[0]
    for panel, (metric, by_group) in zip(panels, values.items(), strict=True):
        shown = []
        for index, (group, place) in enumerate(zip(groups, places, strict=True)):
            numbers = np.array([value for value in by_group[group] if not math.isnan(value)])
            if not len(numbers):
                panel.text(0.5, place, "no value", transform=panel.get_yaxis_transform(), color=MUTED, fontsize=8,
                           ha="center", va="center")  # fmt: skip
                continue
            # Steps of the golden ratio spread any number of dots evenly, and always in the same way.
            jitter = ((np.arange(len(numbers)) * 0.618034 + 0.5) % 1 - 0.5) * 0.12
            panel.scatter(
                numbers, place - 0.06 + jitter, s=18, color=PALETTE[index % 8], alpha=0.6, linewidths=0, zorder=2
            )
            deviation = numbers.std(ddof=1) if len(numbers) > 1 else 0.0
            panel.errorbar(numbers.mean(), place + 0.09, xerr=deviation, fmt="|", color="black", ms=8, mew=1.8, lw=1.2,
                           capsize=2, zorder=3)  # fmt: skip
            shown += [*numbers, numbers.mean() - deviation, numbers.mean() + deviation]
        panel.set_title(metric, fontsize=11, loc="left")
        panel.set_xlim(*_range(shown))
        if shown:
            panel.xaxis.set_major_locator(MaxNLocator(nbins=5, steps=[1, 2, 5, 10], min_n_ticks=3))
        else:  # no number of an axis that nothing is on
            panel.set_xticks([])
        style_axes(panel, "x")
        for edge in np.cumsum(heights)[:-1]:
            panel.axhline(edge, color="#ededed", linewidth=0.6, zorder=0)
        panel.tick_params(axis="y", length=0)
    panels[0].set_yticks(places, labels, fontsize=9)
    panels[0].set_ylim(heights.sum(), 0)
    figure.supxlabel(f"percent, protocol {protocol}", fontsize=9)
    handles = [
        Line2D([], [], ls="", marker="o", ms=5, color=MUTED, alpha=0.6, mew=0, label="one trial"),
        Line2D([], [], ls="-", lw=1.2, marker="|", ms=8, mew=1.8, color="black", label="mean ± standard deviation"),
    ]
    figure.legend(handles=handles, loc="outside upper right", ncols=2, frameon=False, fontsize=9)
    return save_figure(figure, path)


def accuracy_by_position(
    matrices: Mapping[str, Sequence[np.ndarray]], path: Place, protocol: Protocol = "task"
) -> Place:
    """Draws the accuracy after the last session against the position at which a task was learned.

    Args:
        matrices: By group, the accuracy matrices of its trials: percent, (T, T), tasks in the order of the trial.
        path: Where the PNG goes.
        protocol: By which the values were measured.

    Returns:
        The path.
    """
    curves = {group: np.array([matrix[-1] for matrix in found]) for group, found in matrices.items()}
    ends = (
        "position of the task in the order (1: learned first)",
        f"accuracy after the last session, in %\nprotocol {protocol}",
    )
    return save_figure(_curves(curves, 1, *ends, zero=False), path)


def forgetting_curve(matrices: Mapping[str, Sequence[np.ndarray]], path: Place, protocol: Protocol = "task") -> Place:
    """Draws the change of the accuracy on a task in the sessions after the one that learned it.

    At k sessions later it is the mean of A[i+k, i] - A[i, i] over the T - k tasks that were learned so early.

    Args:
        matrices: By group, the accuracy matrices of its trials: percent, (T, T), tasks in the order of the trial.
        path: Where the PNG goes.
        protocol: By which the values were measured.

    Returns:
        The path.
    """
    curves = {}
    for group, found in matrices.items():
        curves[group] = np.array([_change_since_learned(matrix) for matrix in found])
    ends = ("sessions since the task was learned", f"change of the accuracy since then, in points\nprotocol {protocol}")
    return save_figure(_curves(curves, 0, *ends, zero=True), path)


def order_heat_map(values: Mapping[str, Mapping[str, float]], path: Place, protocol: Protocol = "task") -> Place:
    """Draws Last in a cell for each order (row) and group (column), coloured by what the order changes.

    Args:
        values: By group, by order's name, percent. An order that a group lacks, or nan, is a grey cell.
        path: Where the PNG goes.
        protocol: By which the values were measured.

    Returns:
        The path.
    """
    groups = list(values)
    orders = list(dict.fromkeys(order for by_order in values.values() for order in by_order))
    table = np.array([[values[group].get(order, math.nan) for group in groups] for order in orders])
    counts = np.maximum((~np.isnan(table)).sum(axis=0), 1)
    change = table - np.nansum(table, axis=0) / counts
    # At least one point, so that noise stays pale.
    limit = max(1.0, float(np.nanmax(np.abs(change), initial=0.0)))
    labels = [_wrapped(group, 24) for group in groups]
    lines = max(label.count("\n") + 1 for label in labels)
    size = (max(4.4, max(0.62, 0.27 * lines) * len(groups) + 2.8), max(2.6, 0.36 * len(orders) + 2.4))
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.add_subplot()
    image = axes.imshow(np.ma.masked_invalid(change), cmap=_AROUND, vmin=-limit, vmax=limit, aspect="auto")
    for row, column in zip(*np.nonzero(~np.isnan(table)), strict=True):
        red, green, blue, _ = image.to_rgba(change[row, column])
        dark = 0.299 * red + 0.587 * green + 0.114 * blue < 0.5
        axes.text(column, row, f"{table[row, column]:.1f}", ha="center", va="center", fontsize=9,
                  color="white" if dark else "black")  # fmt: skip
    axes.set_facecolor("#ececec")  # what was not measured
    axes.set_xticks(np.arange(0.5, len(groups) - 1), minor=True)
    axes.set_yticks(np.arange(0.5, len(orders) - 1), minor=True)
    axes.grid(which="minor", color="#d8d8d8", linewidth=0.8)
    axes.tick_params(which="both", length=0)
    axes.set_xticks(range(len(groups)), labels, rotation=40, ha="right", rotation_mode="anchor", fontsize=9)
    axes.set_yticks(range(len(orders)), orders, fontsize=9)
    axes.spines[:].set_color("#d8d8d8")
    axes.set_title(f"{METRICS['last'].heading} in %, by order, protocol {protocol}", fontsize=11, loc="left")
    bar = figure.colorbar(image, ax=axes, aspect=25, pad=0.02)
    bar.set_label("minus the method's mean\nover the orders, in points", fontsize=9)
    bar.ax.tick_params(labelsize=8)
    bar.outline.set_visible(False)
    return save_figure(figure, path)


def _change_since_learned(matrix: np.ndarray) -> np.ndarray:
    """Shape (T,): [k] is the mean over tasks of the accuracy k sessions after learning minus that at learning."""
    learned = np.diagonal(matrix)
    count = len(matrix)
    return np.array([(np.diagonal(matrix, -later) - learned[: count - later]).mean() for later in range(count)])


def _curves(curves: Mapping[str, np.ndarray], start: int, x_label: str, y_label: str, *, zero: bool) -> Figure:
    """A line a group with its band: in one panel, or, of many groups, in a panel each, all others pale behind it."""
    means = {group: found.mean(axis=0) for group, found in curves.items()}
    bands = {group: _standard_error(found) for group, found in curves.items()}
    ends = [means[group] + sign * bands[group] for group in means for sign in (-1, 1)]
    together = len(curves) <= _TOGETHER
    columns = 1 if together else 4 if len(curves) > 9 else 3
    rows = 1 if together else math.ceil(len(curves) / columns)
    size = (6.4, 4.4) if together else (2.35 * columns + 0.5, 2.1 * rows + 0.9)
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True).flatten()
    places = np.arange(start, start + len(next(iter(means.values()))))
    styles = {group: line_style(index) for index, group in enumerate(curves)}
    for position, panel in enumerate(panels):
        if not together and position >= len(curves):
            panel.set_visible(False)
            continue
        if zero:
            panel.axhline(0, color=MUTED, linewidth=0.8, zorder=1)
        for index, (group, mean) in enumerate(means.items()):
            if not together and index != position:
                panel.plot(places, mean, color="#d4d4d4", linewidth=0.9, zorder=1)
                continue
            low, high = mean - bands[group], mean + bands[group]
            panel.fill_between(places, low, high, color=styles[group]["color"], alpha=0.16, linewidth=0, zorder=2)
            panel.plot(places, mean, label=group, lw=1.6, ms=4.5, zorder=4 - index / 100, **styles[group])
            if not together:
                panel.set_title(_wrapped(group, 26), fontsize=9.5, loc="left")
        panel.set_xlim(places[0] - 0.4, places[-1] + 0.4)
        panel.set_ylim(*(_change_limits(ends) if zero else value_limits(np.array(ends))))
        if len(places) > 1:
            panel.xaxis.set_major_locator(MaxNLocator(nbins=9 if together else 6, integer=True, steps=[1, 2, 5, 10]))
        else:  # which would be given fractions
            panel.set_xticks(places)
        panel.yaxis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 5, 10]))
        style_axes(panel)
        panel.tick_params(axis="x", labelbottom=True)  # below all of them: the last row may have gaps
    figure.supxlabel(f"{x_label}\n{_BAND}" if together else x_label, fontsize=10)
    figure.supylabel(y_label, fontsize=10)
    if together:
        handles: list[Any] = panels[0].get_legend_handles_labels()[0]
    else:
        handles = [
            Patch(facecolor="#bdbdbd", alpha=0.6, label=_BAND),
            Line2D([], [], color="#d4d4d4", lw=1.2, label="the other methods"),
        ]
    longest = max(len(handle.get_label()) for handle in handles)
    fitting = max(1, int(figure.get_figwidth() / (0.075 * longest + 0.5))) if together else len(handles)
    filled = math.ceil(len(handles) / math.ceil(len(handles) / fitting))
    figure.legend(handles=handles, loc="outside upper center", ncols=filled, frameon=False, fontsize=9)
    return figure


def _standard_error(found: np.ndarray) -> np.ndarray:
    """Of the mean over the rows, shape (columns,); 0 for a single row."""
    if len(found) < 2:
        return np.zeros(found.shape[1])
    return np.asarray(found.std(axis=0, ddof=1) / math.sqrt(len(found)))


def _range(values: Sequence[float]) -> tuple[float, float]:
    """An axis that shows the spread, but at least 2 points of it."""
    if not values:
        return 0.0, 1.0
    low, high = min(values), max(values)
    half = max(1.0, (high - low) * 0.56)
    return (low + high) / 2 - half, (low + high) / 2 + half


def _change_limits(values: Sequence[np.ndarray]) -> tuple[float, float]:
    """An axis with zero on it that shows at least 5 points."""
    low, high = min(0.0, float(np.min(values))), max(0.0, float(np.max(values)))
    low = min(low, high - 5)
    return low - 0.05 * (high - low), high + 0.05 * (high - low)


def _wrapped(text: str, width: int) -> str:
    return "\n".join(textwrap.wrap(text, width, break_on_hyphens=False)) or text
