"""The pictures of the ablation of routing.

Each is drawn from results as `routing_report.write_routing` takes them, at a path, which it returns.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from condu_ray.report.style import MUTED, line_style, save_figure, style_axes
from condu_ray.report.text import counted
from condu_ray.store.location import Place

_SHOWN = 12
"""Tasks up to which the cells of a confusion matrix have their numbers."""


def curves(results: Mapping[str, Any], path: Place) -> Place:
    """Draws accuracy on learned against accuracy on unlearned tasks, a line a novelty rule, a panel a session."""
    sessions = sorted({found["session"] for found in results["curves"]})
    columns = min(3, len(sessions))
    rows = -(-len(sessions) // columns)
    figure = Figure(figsize=(3.9 * columns + 0.3, 4.1 * rows + 0.3), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).flatten()
    for panel, session in zip(panels, sessions, strict=False):
        for index, found in enumerate(one for one in results["curves"] if one["session"] == session):
            seen, unseen = np.array(found["points"]).T
            style = {**line_style(index), "markevery": 3, "ms": 3.5, "lw": 1.4}
            panel.plot(unseen, seen, label=f"{found['rule']}, AUROC {found['auroc']:.2f}", **style)
        by_rule = {
            row["rule"]: row for row in results["rows"] if (row["session"], row["protocol"]) == (session, "union")
        }
        for name, marker in (("paper", "*"), ("zero-shot", "X"), ("mixture, gaussian", "o")):
            row = by_rule[name]  # named below: where two are near, a name beside one is read as the other's
            panel.plot([row["unlearned"]], [row["learned"]], marker, ms=11, mfc="none", mec="black", label=name)
        panel.set_title(f"after {counted(session, 'task')}", fontsize=10, loc="left")
        place = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.1)}
        panel.legend(frameon=False, fontsize=7, labelspacing=0.8, ncols=2, **place)
        panel.set_ylim(bottom=0)
        panel.set_xlim(left=0)
        style_axes(panel)
    for panel in panels[len(sessions) :]:
        panel.set_visible(False)
    figure.supxlabel("accuracy on unlearned tasks, over the union of all classes, in %", fontsize=9)
    figure.supylabel("accuracy on learned tasks, in %", fontsize=9)
    return save_figure(figure, path)


def confusion(results: Mapping[str, Any], path: Place) -> Place:
    """Draws to which task each router sends the images of each learned task, in percent, a panel a router."""
    found = results["routing"]
    tasks, routers = found["tasks"], found["confusion"]
    size = max(2.6, 0.34 * len(tasks) + 0.6)
    words = max(0.5, 0.065 * max(map(len, tasks)))  # inches that the longest name takes
    across = max(size, 0.9 * words)  # names beside the first panel, and aslant below each
    figure = Figure(figsize=(across * len(routers) + words + 0.4, size + 0.9 * words + 0.6), layout="constrained")
    panels = figure.subplots(1, len(routers), squeeze=False, sharey=True)[0]
    for panel, (name, rows) in zip(panels, routers.items(), strict=True):
        matrix = np.array(rows)
        image = panel.imshow(matrix, cmap="Blues", vmin=0, vmax=100)
        if len(tasks) <= _SHOWN:
            for row, column in zip(*np.nonzero(matrix.round() >= 1), strict=True):
                value = matrix[row, column]
                colour = "white" if value > 55 else "black"
                panel.text(column, row, f"{value:.0f}", ha="center", va="center", fontsize=7, color=colour)
        panel.set_xticks(range(len(tasks)), tasks, rotation=60, ha="right", rotation_mode="anchor", fontsize=8)
        panel.set_yticks(range(len(tasks)), tasks, fontsize=8)
        panel.set_title(f"{name}:\n{np.diag(matrix).mean():.0f} % to their own", fontsize=10, loc="left")
        panel.tick_params(color=MUTED, length=2)
        panel.spines[:].set_visible(False)
    if len(tasks) > _SHOWN:  # what has no numbers needs a scale
        bar = figure.colorbar(image, ax=list(panels), shrink=0.8, aspect=30, pad=0.02)
        bar.set_label("% of the task's images", fontsize=8)
        bar.ax.tick_params(labelsize=7)
    figure.supxlabel("most likely task by the router", fontsize=9)
    panels[0].set_ylabel("images of", fontsize=9)
    return save_figure(figure, path)
