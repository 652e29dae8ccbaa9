"""Colours and lines that all pictures share, and how a picture becomes a PNG with the same bytes for the same numbers.

Only matplotlib's object interface is used: no pyplot, no global state, no display.
"""

from __future__ import annotations

import io
from typing import Any, Literal

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from condu_ray.report.text import write
from condu_ray.store.location import Place

#: Colours of Okabe and Ito, told apart with any colour vision; their yellow is left out, it is faint on white.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#333333", "#8C6D46")
#: One a colour of the palette, so that lines differ without colour, too.
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
#: One a turn through the palette.
DASHES = ("-", "--", ":", "-.")
#: Text and lines that stand back.
MUTED = "#5a5a5a"
#: Lines and bars behind those that are compared.
PALE = "#c8c8c8"
#: Methods that one group of bars can hold, and lines of a panel that are told apart.
SIDE_BY_SIDE = 8
_GRID: dict[str, Any] = {"color": "#e4e4e4", "linewidth": 0.8}


def line_style(index: int) -> dict[str, Any]:
    """Returns colour, dashes and marker of the line with this number, 32 of them different."""
    return {"color": PALETTE[index % 8], "linestyle": DASHES[index // 8 % 4], "marker": MARKERS[index % 8]}


def style_axes(axes: Any, grid: Literal["x", "y"] = "y") -> None:
    """Takes away what is not data: upper and right frame lines; ticks and the lines of one axis' grid become pale."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#b0b0b0")
    axes.tick_params(labelsize=8, color="#b0b0b0")
    axes.grid(axis=grid, **_GRID)
    axes.set_axisbelow(True)


def style_sessions(axes: Any, count: int) -> None:
    """As `style_axes`, with the sessions 1 to count from left to right."""
    axes.set_xlim(0.5, count + 0.5)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
    style_axes(axes)


def value_limits(values: np.ndarray) -> tuple[float, float]:
    """Returns an axis' limits (percent) that show the spread, but at least 20 points of it, so that noise stays small.

    Args:
        values: Percent, any shape; nan counts for nothing, and nan alone gives the whole axis.
    """
    if np.isnan(values).all():
        return 0.0, 100.0
    low, high = float(np.nanmin(values)), float(np.nanmax(values))
    middle, half = (low + high) / 2, max(10.0, (high - low) * 0.55)
    middle = min(max(middle, half), max(100 - half, half))
    return max(-3.0, middle - half - 2), min(103.0, middle + half + 2)


def png(figure: Figure) -> bytes:
    """Returns a picture as PNG at 150 dots an inch, cut to what is drawn."""
    buffer = io.BytesIO()
    # No date and no version: the same numbers give the same file.
    figure.savefig(buffer, format="png", dpi=150, bbox_inches="tight", pad_inches=0.12, metadata={"Software": None})
    return buffer.getvalue()


def save_figure(figure: Figure, path: Place) -> Place:
    """Writes a picture as `png` makes it; returns the path."""
    return write(path, png(figure))
