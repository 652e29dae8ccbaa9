"""The picture of a run's metrics: Transfer, Average and Last as bars."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from condu_ray.config import Protocol
from condu_ray.metrics import HEADLINE, METRICS
from condu_ray.report.protocols import by_method
from condu_ray.report.style import MUTED, PALE, PALETTE, SIDE_BY_SIDE, save_figure, style_axes
from condu_ray.report.sweep_tables import BOUNDS
from condu_ray.report.text import as_number, number_text
from condu_ray.store.location import Place


def metrics_bars(results: Mapping[str, Any], path: Place, protocol: Protocol = "task") -> Place:
    """Draws Transfer, Average and Last (percent) of all methods as grouped bars; a metric without a value is "n/a".

    Args:
        results: Results of a run, as `condu_ray.report.run_report.write_report` takes them.
        path: Where the PNG goes.
        protocol: What is shown; methods that were not measured by it are left out.

    Returns:
        The path.
    """
    methods = by_method(results, protocol)
    if len(methods) > SIDE_BY_SIDE:
        return _metrics_rows(methods, path, protocol)
    legend_columns = min(len(methods), 4)
    lines = math.ceil(len(methods) / max(1, legend_columns))
    figure = Figure(figsize=(max(6.0, 1.8 + 0.42 * 3 * (len(methods) + 1)), 3.7 + 0.22 * lines), layout="constrained")
    axes = figure.add_subplot()
    width = 0.84 / max(1, len(methods))
    for index, (name, entry) in enumerate(methods.items()):
        places = np.arange(len(HEADLINE)) + (index - (len(methods) - 1) / 2) * width
        heights = np.array([as_number(entry.get(metric)) for metric in HEADLINE])
        axes.bar(
            places,
            np.nan_to_num(heights),
            width * 0.92,
            label=name,
            color=PALETTE[index],
            edgecolor="white",
            linewidth=0,
        )
        for place, height in zip(places, heights, strict=True):
            text = "n/a" if math.isnan(height) else number_text(height, 1)
            axes.annotate(
                text,
                (place, 0 if math.isnan(height) else height),
                xytext=(0, 2),
                textcoords="offset points",
                ha="center",
                va="bottom",
                fontsize=8,
                color="black" if text != "n/a" else MUTED,
            )
    axes.set_xticks(range(len(HEADLINE)), [METRICS[metric].heading for metric in HEADLINE], fontsize=11)
    axes.set_ylim(0, 105)
    axes.set_yticks(range(0, 101, 20))
    axes.set_ylabel(f"{METRICS['last'].unit}, protocol {protocol}", fontsize=10)
    style_axes(axes)
    axes.tick_params(axis="x", length=0, labelsize=11)
    if methods:
        figure.legend(loc="outside upper center", ncols=legend_columns, frameon=False, fontsize=9)
    return save_figure(figure, path)


def _metrics_rows(methods: Mapping[str, Any], path: Place, protocol: Protocol) -> Place:
    """As `metrics_bars`, a panel a metric and a row a method: names stand at their bars, however many there are."""
    names = list(methods)
    figure = Figure(figsize=(9.5, 1.1 + 0.24 * len(names)), layout="constrained")
    panels = figure.subplots(1, len(HEADLINE), sharey=True)
    places = np.arange(len(names))
    for panel, metric in zip(panels, HEADLINE, strict=True):
        widths = np.array([as_number(methods[name].get(metric)) for name in names])
        printed = np.round(widths, 1)  # what prints the same is the same
        compared = [value for name, value in zip(names, printed, strict=True) if name not in BOUNDS and value == value]
        best = max(compared, default=math.nan)
        colours = [
            PALE if name in BOUNDS else PALETTE[0] if width == best else PALETTE[4]
            for name, width in zip(names, printed, strict=True)
        ]
        panel.barh(places, np.nan_to_num(widths), 0.72, color=colours, linewidth=0)
        for place, width in zip(places, widths, strict=True):
            text = "n/a" if math.isnan(width) else f"{width:.1f}"
            panel.text((0 if math.isnan(width) else width) + 1.5, place, text, va="center", fontsize=8)
        panel.set_title(METRICS[metric].heading, fontsize=11, loc="left")
        panel.set_xlim(0, 112)
        panel.set_xticks(range(0, 101, 25))
        style_axes(panel, "x")
        panel.tick_params(axis="y", length=0, labelsize=9)
    panels[0].set_yticks(places, names)
    panels[0].set_ylim(len(names) - 0.4, -0.6)
    bounds = (
        f"; grey: {' and '.join(found)}, not compared" if (found := [one for one in BOUNDS if one in names]) else ""
    )
    figure.supxlabel(f"{METRICS['last'].unit}, protocol {protocol} (dark: the highest{bounds})", fontsize=10)
    return save_figure(figure, path)
