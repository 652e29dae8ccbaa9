"""The pictures of the unify rule's ablation: what is kept, the error by session, the variants, the bytes.

Each is drawn from results as `ablation_report.write_merging` takes them (`synthetic`: `write_synthetic`), at a path,
which it returns.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, MaxNLocator

from condu_ray.report.style import DASHES, MARKERS, MUTED, PALETTE, save_figure, style_axes, style_sessions
from condu_ray.report.text import as_number
from condu_ray.store.location import Place

FIRST_TASKS = 3
"""Tasks whose fate is drawn one by one."""
_CAP = 2.0
"""Relative L2 errors above this are drawn at the edge: as wrong as the opposite of the delta."""
_LOWEST, _HIGHEST = -100.0, 140.0
"""Shares kept beyond these, in percent, are drawn at the edge."""
_BY_TASK = ListedColormap(colormaps["plasma"](np.linspace(0.0, 0.85, 256)), "by task")  # its end is faint on white


def accuracy_kept(results: Mapping[str, Any], path: Place) -> Place:
    """Draws the share kept of what fine-tuning gained, by session: rules, then ConDU's parts.

    A column for each of the first tasks that fine-tuning gained something on, the last for all learned tasks
    together.
    """
    tasks = list(results["tasks"])
    gained = sorted({row["position"] for row in results["rows"] if row.get("kept") is not None})
    columns: list[tuple[str, list[Any]]] = [
        (f"task {index + 1}: {tasks[index]}", [row for row in results["rows"] if row["position"] == index])
        for index in gained[:FIRST_TASKS]
    ]
    columns.append(("all learned tasks", list(results["summary"])))
    groups = _groups(results)
    figure = Figure(figsize=(2.9 * len(columns) + 1.9, 2.5 * len(groups) + 0.5), layout="constrained")
    panels = figure.subplots(len(groups), len(columns), squeeze=False, sharex=True, sharey=True)
    lowest, beyond = 0.0, False
    for row, (title, names) in enumerate(groups.items()):
        for panel, (column, rows) in zip(panels[row], columns, strict=True):
            for order, name in enumerate(names):
                found = [(each["session"], each["kept"]) for each in rows if _has(each, name, "kept")]
                style = {"color": PALETTE[order], "marker": MARKERS[order], "zorder": 3 - order / 100}
                shares = [min(max(100 * share, _LOWEST), _HIGHEST) for _, share in found]
                beyond = beyond or any(not _LOWEST <= 100 * share <= _HIGHEST for _, share in found)
                panel.plot([session for session, _ in found], shares, lw=1.4, ms=4, label=name, **style)
                lowest = min([lowest, *shares])
            for level in (0, 100):
                panel.axhline(level, color=MUTED, lw=0.8, ls=(0, (4, 2)), zorder=1)
            style_sessions(panel, len(tasks))
            if row == 0:
                panel.set_title(textwrap.fill(column, 34), fontsize=10, loc="left", parse_math=False)
        panels[row][-1].legend(
            title=title, title_fontsize=9, loc="center left", bbox_to_anchor=(1.02, 0.5), frameon=False, fontsize=8
        )
    panels[0][0].set_ylim(lowest - 5, _HIGHEST + 5)
    figure.supxlabel("after session", fontsize=9)
    edges = f"\nbeyond {_LOWEST:g} or {_HIGHEST:g}: at the edge" if beyond else ""
    figure.supylabel(f"share kept of what fine-tuning gained, in % (0: zero-shot, 100: own expert){edges}", fontsize=9)
    return save_figure(figure, path)


def error_by_session(results: Mapping[str, Any], path: Place) -> Place:
    """Draws the relative L2 error of every task by session, a panel a variant, a line a task."""
    names, tasks = list(results["variants"]), list(results["tasks"])
    columns = min(5, len(names))
    lines = math.ceil(len(names) / columns)
    figure = Figure(figsize=(2.3 * columns + 1.2, 2.2 * lines + 0.5), layout="constrained")
    panels = figure.subplots(lines, columns, squeeze=False, sharex=True, sharey=True).flatten()
    colours, scale = _BY_TASK, Normalize(1, max(2, len(tasks)))
    highest = 0.1
    for panel in panels[len(names) :]:
        panel.set_visible(False)
    for panel, name in zip(panels, names, strict=False):
        for position in range(len(tasks)):
            found = [row for row in results["rows"] if row["variant"] == name and row["position"] == position]
            errors = [min(as_number(row["relative_l2"]), _CAP) for row in found]
            sessions = [row["session"] for row in found]
            panel.plot(sessions, errors, color=colours(scale(position + 1)), lw=1.2, marker=".", ms=4)
            highest = max([highest, *errors])
        panel.axhline(1, color=MUTED, lw=0.8, ls=(0, (4, 2)), zorder=1)
        panel.set_title(name, fontsize=10, loc="left")
        style_sessions(panel, len(tasks))
    panels[0].set_ylim(0, highest * 1.05)
    bar = figure.colorbar(ScalarMappable(scale, colours), ax=list(panels), shrink=0.8, aspect=30, pad=0.02)
    bar.set_label("task, in the order of learning", fontsize=9)
    bar.ax.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
    bar.ax.tick_params(labelsize=8)
    figure.supxlabel("after session", fontsize=9)
    figure.supylabel(f"relative L2 error (1: as theta0; {_CAP:g} and more at the edge)", fontsize=9)
    return save_figure(figure, path)


def variant_bars(results: Mapping[str, Any], path: Place) -> Place:
    """Draws error, equal signs and accuracy of every variant after the last session, means over the learned tasks."""
    final = max(found["session"] for found in results["summary"])
    last = [found for found in results["summary"] if found["session"] == final]
    names = [found["variant"] for found in last]
    measures = {"relative_l2": "relative L2 error", "sign_agreement": "share of equal signs"}
    if any(found["accuracy"] is not None for found in last):
        measures["accuracy"] = "accuracy in %"
    figure = Figure(figsize=(2.9 * len(measures) + 1.3, 0.3 * len(names) + 1.1), layout="constrained")
    panels = figure.subplots(1, len(measures), squeeze=False, sharey=True)[0]
    colours = [PALETTE[2] if results["variants"][name]["part"] else PALETTE[0] for name in names]
    for panel, (measure, title) in zip(panels, measures.items(), strict=True):
        values = [as_number(found[measure]) for found in last]
        drawn = [min(value, _CAP) if measure == "relative_l2" else value for value in np.nan_to_num(values)]
        panel.barh(range(len(names)), drawn, color=colours, height=0.7)
        for place, (value, length) in enumerate(zip(values, drawn, strict=True)):
            text = "n/a" if math.isnan(value) else f"{value:.1f}" if measure == "accuracy" else f"{value:.2f}"
            inside = length > 0.3 * max(drawn)
            at, colour = (0, "white") if inside else (length, "black")
            panel.annotate(
                text, (at, place), xytext=(3, 0), textcoords="offset points", va="center", fontsize=8, color=colour
            )
        panel.set_title(title, fontsize=10, loc="left")
        style_axes(panel)
        panel.grid(visible=False)
    handles: list[Any] = [Patch(color=PALETTE[0]), Patch(color=PALETTE[2])]
    labels = ["rule", "part of ConDU exchanged"]
    if "accuracy" in measures:
        for kind, style in (("zero_shot", ":"), ("individual", "--")):
            bounds = [found[kind] for found in results["bounds"].values()]
            handles.append(panels[-1].axvline(sum(bounds) / len(bounds), color="black", lw=1.2, ls=style))
            labels.append(kind.replace("_", "-"))
    figure.legend(handles, labels, loc="outside lower right", ncols=len(labels), frameon=False, fontsize=8)
    panels[0].set_yticks(range(len(names)), names, fontsize=9)
    panels[0].invert_yaxis()
    return save_figure(figure, path)


def storage_growth(results: Mapping[str, Any], path: Place) -> Place:
    """Draws bytes of the unified delta with triggers and of all experts by number of tasks, both axes logarithmic."""
    table = results["storage"]
    counts = [found["tasks"] for found in table]
    figure = Figure(figsize=(5.4, 3.5), layout="constrained")
    axes = figure.add_subplot()
    for key, label, colour, marker in (
        ("experts", "experts' deltas", PALETTE[1], "s"),
        ("unified", "unified delta and triggers", PALETTE[0], "o"),
    ):
        axes.plot(counts, [found[key] / 1e6 for found in table], color=colour, marker=marker, lw=1.6, ms=5, label=label)
    for found in table:
        text = f"{100 * found['share']:.0f} %"
        place = (found["tasks"], found["unified"] / 1e6)
        axes.annotate(text, place, xytext=(0, -12), textcoords="offset points", ha="center", fontsize=8, color=MUTED)
    measured = results["measured"]
    axes.plot([measured["tasks"]], [measured["stored"] / 1e6], "*", ms=12, color="#333333", label="stored by this run")
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xticks(counts, [str(count) for count in counts])
    axes.minorticks_off()
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.margins(y=0.12)
    axes.set_xlabel("tasks", fontsize=9)
    axes.set_ylabel("MB", fontsize=9)
    axes.legend(frameon=False, fontsize=9)
    style_axes(axes)
    return save_figure(figure, path)


def synthetic(results: Mapping[str, Any], path: Place) -> Place:
    """Draws the relative L2 error of the first tasks, and of each task when it was just learned, by session."""
    rows = results["rows"]
    correlations = list(dict.fromkeys(row["correlation"] for row in rows))
    names = list(dict.fromkeys(row["variant"] for row in rows))
    labels = {"condu": "unified at every session", "emr": "unified once"}
    figure = Figure(figsize=(3.3 * len(correlations) + 2.6, 3.3), layout="constrained")
    panels = figure.subplots(1, len(correlations), squeeze=False, sharey=True)[0]
    for panel, rho in zip(panels, correlations, strict=True):
        for name, colour in zip(names, PALETTE, strict=False):
            found = [row for row in rows if (row["correlation"], row["variant"]) == (rho, name)]
            lines = {f"task {k + 1}": [row for row in found if row["position"] == k] for k in range(FIRST_TASKS)}
            lines["the newest task"] = [row for row in found if row["position"] == row["session"] - 1]
            for (which, line), style in zip(lines.items(), DASHES, strict=True):
                errors = [as_number(row["relative_l2"]) for row in line]
                label = f"{labels.get(name, name)}:\n{which}"
                panel.plot([row["session"] for row in line], errors, color=colour, ls=style, lw=1.5, label=label)
        panel.set_title(f"correlation {rho:g}", fontsize=10, loc="left")
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
        style_axes(panel)
    panels[0].set_ylim(bottom=0)  # once all is drawn: what comes after it no longer widens an axis that panels share
    figure.suptitle(f"Synthetic Gaussian deltas, {results['numel']:,} positions", fontsize=11, x=0.01, ha="left")
    figure.supxlabel("after session", fontsize=9)
    panels[0].set_ylabel("relative L2 error", fontsize=9)
    handles, texts = panels[0].get_legend_handles_labels()
    figure.legend(handles, texts, loc="outside right center", frameon=False, fontsize=8)
    return save_figure(figure, path)


def _groups(results: Mapping[str, Any]) -> dict[str, list[str]]:
    """Names of the rules, and of ConDU with its parts exchanged (ConDU itself in both)."""
    found = {"rule": [], "part of ConDU": ["condu"]} if "condu" in results["variants"] else {"rule": [], "part": []}
    for name, variant in results["variants"].items():
        found[list(found)[bool(variant["part"])]].append(name)
    return {title: names for title, names in found.items() if names}


def _has(row: Mapping[str, Any], name: str, key: str) -> bool:
    return row["variant"] == name and row.get(key) is not None
