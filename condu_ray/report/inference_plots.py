"""The pictures of the aggregated prediction's ablation.

Each is drawn from results as `ablation_report.write_inference` takes them, at a path, which it returns.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from condu_ray.report.style import MARKERS, PALETTE, save_figure, style_axes, value_limits
from condu_ray.report.text import as_number
from condu_ray.store.location import Place

_MARKS = ("o", "s", "D")
"""Shapes around options that have a name."""
_KINDS = {"both": "image and text", "image": "image alone", "text": "text alone"}


def options_by_k(results: Mapping[str, Any], path: Place) -> Place:
    """Draws Transfer (top) and Last over the union (bottom) by number of candidates, a column a kind of prototypes."""
    options = results["options"]
    steps = sorted({found["top_k"] for found in options}, key=lambda k: math.inf if k is None else k)
    kinds = [kind for kind in _KINDS if any(found["prototypes"] == kind for found in options)]
    figure = Figure(figsize=(3.0 * len(kinds) + 0.8, 5.6), layout="constrained")
    panels = figure.subplots(2, len(kinds), squeeze=False, sharey="row", sharex=True)
    read = {
        "Transfer, in %": lambda found: found["transfer"],
        "Last over the union, in %": lambda f: f["union"]["last"],
    }
    for row, (title, value) in enumerate(read.items()):
        for panel, kind in zip(panels[row], kinds, strict=True):
            for aggregation, colour in (("weighted", PALETTE[0]), ("mean", PALETTE[1])):
                for pretrained in (True, False):
                    chosen = {
                        found["top_k"]: as_number(value(found))
                        for found in options
                        if (found["aggregation"], found["include_pretrained"], found["prototypes"])
                        == (aggregation, pretrained, kind)
                    }
                    label = f"{aggregation}, {'with' if pretrained else 'without'} theta0"
                    style = {"color": colour, "ls": "-" if pretrained else "--", "marker": "o" if pretrained else "s"}
                    points = sorted((steps.index(k), height) for k, height in chosen.items())
                    panel.plot(
                        [at for at, _ in points], [height for _, height in points], lw=1.5, ms=4, label=label, **style
                    )
            for (name, mark), shape in zip(results["marks"].items(), _MARKS, strict=False):
                if mark["prototypes"] == kind and mark["top_k"] in steps:
                    at, height = steps.index(mark["top_k"]), _height(options, mark, value)
                    panel.plot([at], [height], shape, ms=11, mfc="none", mec="black", label=name)
            panel.set_xticks(range(len(steps)), ["all" if k is None else str(k) for k in steps])
            panel.margins(x=0.12)
            style_axes(panel)
            if row == 0:
                panel.set_title(f"prototypes: {_KINDS[kind]}", fontsize=10, loc="left")
        panels[row][0].set_ylabel(title, fontsize=9)
        panels[row][0].set_ylim(*value_limits(np.array([as_number(value(found)) for found in options])))
    figure.supxlabel("candidates K, theta0 among them where it is one (K = 1 with theta0 is zero-shot)", fontsize=9)
    found = [panel.get_legend_handles_labels() for panel in panels[0]]
    by_label = {label: handle for handles, labels in found for handle, label in zip(handles, labels, strict=True)}
    figure.legend(by_label.values(), by_label, loc="outside upper center", ncols=4, frameon=False, fontsize=9)
    return save_figure(figure, path)


def _height(options: Sequence[Any], mark: Mapping[str, Any], value: Any) -> float:
    found = next((each for each in options if all(each[key] == mark[key] for key in mark)), None)
    return math.nan if found is None else as_number(value(found))


def cost(results: Mapping[str, Any], path: Place) -> Place:
    """Draws images a second, milliseconds of one image, and bytes by number of experts."""
    found, memory = results["cost"], results["memory"]
    counts = [each["experts"] for each in found]
    figure = Figure(figsize=(10.2, 3.3), layout="constrained")
    speed, latency, size = figure.subplots(1, 3)
    names = {"swapped": "put together in turn", "held": "held as whole models"}
    for (key, label), colour, marker in zip(names.items(), PALETTE, MARKERS, strict=False):
        style = {"color": colour, "marker": marker, "lw": 1.5, "ms": 4, "label": label}
        speed.plot(counts, [each[key] for each in found], **style)
        latency.plot(counts, [1000 * each[f"{key}_latency"] for each in found], **style)
    for key, label, colour, marker in (
        ("unified", "unified delta, K triggers,\none working model", PALETTE[0], "o"),
        ("whole", "K whole models", PALETTE[1], "s"),
    ):
        values = [each[key] / 1e6 for each in memory]
        size.plot(counts, values, color=colour, marker=marker, lw=1.5, ms=4, label=label)
    batch = found[0]["batch"]
    for panel, title in (
        (speed, f"images a second (batches of {batch})"),
        (latency, "milliseconds (one image)"),
        (size, "MB beside theta0 (counted)"),
    ):
        panel.set_title(title, fontsize=10, loc="left")
        panel.set_ylim(bottom=0)
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
        panel.legend(frameon=False, fontsize=8)
        style_axes(panel)
    figure.supxlabel("experts K that every image is encoded by", fontsize=9)
    return save_figure(figure, path)
