"""Grafana's dashboards by matplotlib: panels keep their places, units and thresholds; colours and fonts do not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from reading import POINTS, Series

COLOURS = {"green": "#56a64b", "yellow": "#e0b400", "red": "#e02f44", "blue": "#3274d9", "text": "#333333"}
MOST = 10
"""Series in a legend; the others are drawn without a name."""


def shown(value: float, unit: str) -> str:
    """Returns a number in one of the units that our dashboards use."""
    if value != value:
        return "-"
    if unit == "percentunit":
        return f"{100 * value:.3g} %"
    if unit == "bytes":
        for power, name in ((4, "TiB"), (3, "GiB"), (2, "MiB"), (1, "KiB")):
            if abs(value) >= 1024**power:
                return f"{value / 1024**power:.3g} {name}"
        return f"{value:.0f} B"
    if unit == "s":
        if abs(value) >= 3600:
            return f"{value / 3600:.3g} h"
        if abs(value) >= 120:
            return f"{value / 60:.3g} min"
        return f"{value:.3g} s" if abs(value) >= 1 or value == 0 else f"{1000 * value:.3g} ms"
    if unit.startswith("suffix:"):
        return f"{value:.3g} {unit.removeprefix('suffix:').strip()}"
    return f"{value:.4g}"


def colour(value: float, steps: Sequence[Mapping[str, Any]]) -> str:
    """Returns the colour of the highest threshold that a value reaches."""
    reached = [step["color"] for step in steps if step["value"] is None or value >= step["value"]]
    return COLOURS.get(reached[-1], COLOURS["blue"]) if reached else COLOURS["blue"]


def _stat(axes: Any, panel: Mapping[str, Any], found: Sequence[tuple[str, Series]]) -> None:
    defaults = panel["fieldConfig"]["defaults"]
    texts = {value: entry for mapping in defaults["mappings"] for value, entry in mapping["options"].items()}
    several, steps = len(defaults["thresholds"]["steps"]) > 1, defaults["thresholds"]["steps"]
    axes.set_xticks([])
    axes.set_yticks([])
    if not found:
        axes.text(0.5, 0.5, defaults["noValue"], ha="center", va="center", fontsize=13, color="#888888")
    for index, (name, series) in enumerate(found):
        value = series.values[-1]
        text = texts.get(f"{value:g}", {}).get("text") or shown(value, defaults["unit"])
        if several and index == 0:
            axes.set_facecolor(colour(value, steps))
        x = (index + 0.5) / len(found)
        ink = "white" if several else COLOURS["blue"]
        axes.text(x, 0.55, text, ha="center", va="center", fontsize=17, color=ink, transform=axes.transAxes)
        if len(found) > 1:
            axes.text(x, 0.12, name, ha="center", va="center", fontsize=8, color=ink, transform=axes.transAxes)


def _curves(axes: Any, panel: Mapping[str, Any], found: Sequence[tuple[str, Series]], start: float, end: float) -> None:
    defaults = panel["fieldConfig"]["defaults"]
    step = 2.5 * max(1.0, (end - start) / POINTS)
    for index, (name, series) in enumerate(sorted(found, key=lambda pair: pair[0])):
        times: list[float] = []
        values: list[float] = []
        for at, value in zip(series.times, series.values, strict=True):
            if times and at - start - 60 * times[-1] > step:  # a gap stays one
                times.append(times[-1])
                values.append(float("nan"))
            times.append((at - start) / 60)
            values.append(value)
        axes.plot(times, values, ".-", linewidth=1.3, markersize=2, label=name if index < MOST else None)
    for line in defaults["thresholds"]["steps"][1:]:
        axes.axhline(line["value"], color=COLOURS.get(line["color"], "grey"), linewidth=0.8, linestyle="--")
    axes.set_xlim(0, (end - start) / 60)
    low, high = axes.get_ylim()
    axes.set_ylim(defaults.get("min", min(0.0, low)), defaults.get("max", high))
    axes.yaxis.set_major_formatter(lambda value, _: shown(value, defaults["unit"]))
    axes.tick_params(labelsize=7)
    axes.grid(alpha=0.25)
    if found:
        axes.legend(fontsize=6, loc="best", framealpha=0.6)


def _bars(axes: Any, panel: Mapping[str, Any], found: Sequence[tuple[str, Series]]) -> None:
    defaults, rows = panel["fieldConfig"]["defaults"], sorted(found, key=lambda pair: pair[0], reverse=True)
    axes.barh([name for name, _ in rows], [series.values[-1] for _, series in rows], color=COLOURS["blue"], height=0.6)
    for index, (_, series) in enumerate(rows):
        axes.text(series.values[-1], index, " " + shown(series.values[-1], defaults["unit"]), va="center", fontsize=8)
    axes.set_xlim(0, defaults.get("max", 1.25 * max([1e-9, *(series.values[-1] for _, series in rows)])))
    axes.tick_params(labelsize=8)
    axes.xaxis.set_visible(False)


def _matrix(axes: Any, panel: Mapping[str, Any], found: Sequence[tuple[str, Series]]) -> None:
    defaults, options = panel["fieldConfig"]["defaults"], panel["transformations"][0]["options"]
    cells = {(one.labels[options["rowField"]], one.labels[options["columnField"]]): one.values[-1] for _, one in found}
    rows, columns = (list(dict.fromkeys(key[place] for key in cells)) for place in (0, 1))
    axes.set_xticks(range(len(columns)), columns, fontsize=8)
    axes.set_yticks(range(len(rows)), rows, fontsize=8)
    axes.set_xlim(-0.5, len(columns) - 0.5)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    for (row, column), value in cells.items():
        x, y = columns.index(column), rows.index(row)
        axes.fill_between(
            [x - 0.48, x + 0.48], y - 0.46, y + 0.46, color=colour(value, defaults["thresholds"]["steps"]), linewidth=0
        )
        axes.text(x, y, shown(value, defaults["unit"]), ha="center", va="center", fontsize=8, color="white")


def draw(dashboard: Mapping[str, Any], data: Mapping[int, list[tuple[str, Series]]], start: float, end: float) -> Any:
    """Draws a dashboard.

    Args:
        dashboard: Grafana's JSON.
        data: series of every panel by its id, as `fetch` returns them.
        start: beginning of the time shown, Unix seconds.
        end: its end.

    Returns:
        The matplotlib figure.
    """
    from matplotlib.figure import Figure

    height = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in dashboard["panels"])
    figure = Figure(figsize=(18, 0.42 * height + 0.6), dpi=100)
    begin = datetime.fromtimestamp(start).strftime("%Y-%m-%d %H:%M:%S")
    figure.suptitle(f"{dashboard['title']}: {(end - start) / 60:.1f} minutes from {begin}", fontsize=12, y=0.997)

    def placed(where: Mapping[str, int], margins: Sequence[float]) -> tuple[float, float, float, float]:
        left, right, bottom, top = margins
        x, y = (where["x"] + left) / 24, 1 - (where["y"] + where["h"] - bottom) / height
        return x, 0.985 * y, (where["w"] - left - right) / 24, 0.985 * (where["h"] - bottom - top) / height

    for panel in dashboard["panels"]:
        where = panel["gridPos"]
        if panel["type"] == "row":
            y = 0.985 * (1 - (where["y"] + 0.8) / height)
            figure.text(0.006, y, panel["title"], fontsize=11, weight="bold")
            continue
        found, wide = data[panel["id"]], panel["type"] in ("bargauge", "table", "state-timeline")
        margins = (0.25, 0.25, 0.3, 0.9) if panel["type"] == "stat" else (2.2 if wide else 1.2, 0.25, 0.9, 0.9)
        axes = figure.add_axes(placed(where, margins))
        axes.set_title(panel["title"], fontsize=9, loc="left")
        if panel["type"] == "stat":
            _stat(axes, panel, found)
        elif not found:
            axes.text(0.5, 0.5, "no data", ha="center", va="center", color="#888888", transform=axes.transAxes)
            axes.set_xticks([])
            axes.set_yticks([])
        elif panel["type"] == "bargauge":
            _bars(axes, panel, found)
        elif panel["type"] == "table":
            _matrix(axes, panel, found)
        elif panel["type"] == "state-timeline":
            rows = list(dict.fromkeys(sorted(name for name, _ in found)))
            for name, series in found:
                axes.plot([(at - start) / 60 for at in series.times], [rows.index(name)] * len(series.times), "s", ms=4)
            axes.set_yticks(range(len(rows)), rows, fontsize=6)
            axes.set_xlim(0, (end - start) / 60)
        else:
            _curves(axes, panel, found, start, end)
    return figure
