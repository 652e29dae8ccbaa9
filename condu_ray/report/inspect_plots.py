"""The pictures of a page of inspection: layers by tasks, and feature spaces."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

from condu_ray.report.style import MARKERS, MUTED, PALETTE, png


def layer_maps(maps: Mapping[str, tuple[Sequence[str], np.ndarray]], tasks: Sequence[str]) -> bytes:
    """Draws shares by layer and task one below the other, each with a scale of its own.

    Args:
        maps: title to layers and shares [L, T], 0 to 1; nan leaves a cell blank.
        tasks: T names.

    Returns:
        A PNG.
    """
    rows = max(len(names) for names, _ in maps.values())
    words = max(0.0, 0.065 * max(map(len, tasks)) - 1.0)  # inches that the longest name takes, beyond an inch
    size = (3.0 + 0.5 * len(tasks) + 0.6 * words, len(maps) * (1.6 + 0.24 * rows + 0.7 * words))
    figure = Figure(figsize=size, layout="constrained")
    for axes, (title, (names, share)) in zip(
        figure.subplots(len(maps), 1, squeeze=False)[:, 0], maps.items(), strict=True
    ):
        image = axes.imshow(100 * share, cmap="viridis", aspect="auto")
        axes.set_xticks(range(len(tasks)), tasks, rotation=40, ha="right", rotation_mode="anchor", fontsize=8)
        axes.set_yticks(range(len(names)), names, fontsize=7)
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        axes.set_title(title, fontsize=10, loc="left", parse_math=False)
        bar = figure.colorbar(image, ax=axes, fraction=0.05, pad=0.02)
        bar.ax.tick_params(labelsize=7, length=0)
        bar.set_label("% of positions", fontsize=8, color=MUTED)
        bar.outline.set_visible(False)
    return png(figure)


def feature_spaces(spaces: Mapping[str, tuple[np.ndarray, np.ndarray, np.ndarray]], tasks: Sequence[str]) -> bytes:
    """Draws points of test images side by side: a colour a task, a marker a class.

    More tasks than colours can be told apart have their numbers in the middle of their points, too.

    Args:
        spaces: title to points [N, 2], task's places [N] and labels [N].
        tasks: their names.

    Returns:
        A PNG.
    """
    numbered = len(tasks) > len(PALETTE)
    many = colormaps["tab20"](range(20)) if len(tasks) <= 20 else colormaps["turbo"](np.linspace(0, 1, len(tasks)))
    colours, names = many if numbered else PALETTE, list(tasks)
    if numbered:
        names = [f"{place}  {name}" for place, name in enumerate(tasks, start=1)]
    width = 3.6 * len(spaces)
    columns = max(1, min(6, len(tasks), int(width / (0.065 * max(map(len, names)) + 0.45))))
    lines = -(-len(tasks) // columns)
    figure = Figure(figsize=(width, 4.02 + 0.18 * lines), layout="constrained")
    for axes, (title, (points, places, labels)) in zip(
        figure.subplots(1, len(spaces), squeeze=False)[0], spaces.items(), strict=True
    ):
        for place in range(len(tasks)):
            for label in np.unique(labels[places == place]):
                here = (places == place) & (labels == label)
                style = {"color": colours[place], "marker": MARKERS[label % 8]}
                axes.scatter(*points[here].T, s=14, alpha=0.8, linewidths=0, **style)
        for place in range(len(tasks) if numbered else 0):
            if (places == place).any():
                middle = np.median(points[places == place], axis=0)
                style = {"fontsize": 8, "fontweight": "bold", "ha": "center", "va": "center"}
                axes.text(
                    *middle, str(place + 1), **style, path_effects=[withStroke(linewidth=2.5, foreground="white")]
                )
        axes.set_xticks([])
        axes.set_yticks([])
        axes.spines[:].set_color("#cccccc")
        axes.set_title(title, fontsize=10, loc="left", parse_math=False)
    # One mark a task, whichever classes it has.
    handles = [
        figure.axes[0].scatter([], [], color=colours[place], s=30, label=name) for place, name in enumerate(names)
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=columns, fontsize=8, frameon=False)
    return png(figure)
