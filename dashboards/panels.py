"""Grafana's JSON: panels, their places, and the dashboard around them (dashboard schema 38, Grafana 10.1 to 12)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

Kind = Literal["stat", "timeseries", "table", "bargauge", "state-timeline"]
Needs = Literal["", "gpu", "sweep", "report"]
SOURCE = {"type": "prometheus", "uid": "${datasource}"}
WIDTH = 24
"""Columns of Grafana's grid."""
TAG = "condu-ray"
"""Dashboards of this tag link to one another."""
GREEN, YELLOW, RED, BLUE = "green", "yellow", "red", "blue"


@dataclass(frozen=True)
class Panel:
    """One panel.

    Attributes:
        title: short; unique in its dashboard.
        description: what it shows, what is good, and what to do when it is not.
        queries: PromQL and the legend of its series, `{{label}}` filled in.
        kind: Grafana's panel type.
        unit: Grafana's unit.
        steps: thresholds as (from, colour), the first from None.
        width, height: in the grid.
        low, high: ends of the axis.
        empty: what a stat says when there is nothing.
        mappings: text and colour for values.
        matrix: for a table: label of its rows and of its columns.
        sparkline: whether a stat has one: of numbers that change.
        needs: what has to be there for it to have data: a GPU, a sweep, or calls of ray.train.report.
    """

    title: str
    description: str
    queries: Sequence[tuple[str, str]]
    kind: Kind = "timeseries"
    unit: str = "short"
    steps: Sequence[tuple[float | None, str]] = ((None, BLUE),)
    width: int = 8
    height: int = 8
    low: float | None = None
    high: float | None = None
    empty: str = "no data"
    mappings: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    matrix: tuple[str, str] | None = None
    sparkline: bool = False
    needs: Needs = ""

    def json(self, number: int, x: int, y: int) -> dict[str, Any]:
        """Returns the panel as Grafana reads it, at a place of the grid."""
        return {
            "id": number,
            "type": self.kind,
            "title": self.title,
            "description": self.description,
            "datasource": SOURCE,
            "gridPos": {"h": self.height, "w": self.width, "x": x, "y": y},
            "targets": [self._target(index, *query) for index, query in enumerate(self.queries)],
            "fieldConfig": {"defaults": self._defaults(), "overrides": []},
            "options": self._options(),
            "transformations": self._transformations(),
        }

    @property
    def over_time(self) -> bool:
        """Whether its queries are asked for a range, and not for one moment."""
        return self.kind in ("timeseries", "state-timeline") or self.sparkline

    def _target(self, index: int, expression: str, legend: str) -> dict[str, Any]:
        return {
            "refId": chr(ord("A") + index),
            "datasource": SOURCE,
            "editorMode": "code",
            "expr": expression,
            "legendFormat": legend,
            "instant": not self.over_time,
            "range": self.over_time,
            "format": "table" if self.kind == "table" else "time_series",
        }

    def _defaults(self) -> dict[str, Any]:
        steps = [{"color": colour, "value": value} for value, colour in self.steps]
        several = len(self.steps) > 1
        found: dict[str, Any] = {
            "unit": self.unit,
            "color": {"mode": "thresholds" if several and self.kind != "timeseries" else "palette-classic"},
            "thresholds": {"mode": "absolute", "steps": steps},
            "noValue": self.empty,
            "mappings": [],
        }
        if self.kind == "stat" and not several:
            found["color"] = {"mode": "fixed", "fixedColor": self.steps[0][1]}
        if self.mappings:
            options = {
                value: {"text": text, "color": colour, "index": index}
                for index, (value, (text, colour)) in enumerate(self.mappings.items())
            }
            found["mappings"] = [{"type": "value", "options": options}]
        if self.low is not None:
            found["min"] = self.low
        if self.high is not None:
            found["max"] = self.high
        if self.kind == "timeseries":
            found["custom"] = {
                "drawStyle": "line",
                "lineWidth": 2,
                "fillOpacity": 8,
                "showPoints": "auto",
                "spanNulls": False,
                "axisSoftMin": 0,
                "thresholdsStyle": {"mode": "line" if several else "off"},
            }
        if self.kind == "table":
            found["custom"] = {"cellOptions": {"type": "color-background", "mode": "basic"}, "align": "auto"}
        return found

    def _options(self) -> dict[str, Any]:
        reduce = {"calcs": ["lastNotNull"], "fields": "", "values": False}
        if self.kind == "stat":
            return {
                "reduceOptions": reduce,
                "colorMode": "background" if len(self.steps) > 1 or self.mappings else "value",
                "graphMode": "area" if self.sparkline else "none",
                "textMode": "auto",
            }
        if self.kind == "bargauge":
            return {"reduceOptions": reduce, "orientation": "horizontal", "displayMode": "basic", "showUnfilled": True}
        if self.kind == "table":
            return {"showHeader": True, "cellHeight": "sm"}
        if self.kind == "state-timeline":
            return {"mergeValues": True, "showValue": "auto", "rowHeight": 0.8}
        return {
            "legend": {"displayMode": "table", "placement": "bottom", "calcs": ["lastNotNull", "max"]},
            "tooltip": {"mode": "multi", "sort": "desc"},
        }

    def _transformations(self) -> list[dict[str, Any]]:
        if self.matrix is None:
            return []
        row, column = self.matrix
        return [
            {
                "id": "groupingToMatrix",
                "options": {"rowField": row, "columnField": column, "valueField": "Value", "emptyValue": "null"},
            }
        ]


@dataclass(frozen=True)
class Board:
    """One dashboard: its rows, each a title and panels that fill lines of `WIDTH` columns."""

    uid: str
    title: str
    description: str
    rows: Sequence[tuple[str, Sequence[Panel]]]

    @property
    def panels(self) -> list[Panel]:
        """All panels in order."""
        return [panel for _, row in self.rows for panel in row]

    def json(self) -> dict[str, Any]:
        """Returns the dashboard as Grafana reads it."""
        placed: list[dict[str, Any]] = []
        y = 0
        for title, panels in self.rows:
            line = {"h": 1, "w": WIDTH, "x": 0, "y": y}
            placed.append(
                {
                    "id": len(placed) + 1,
                    "type": "row",
                    "title": title,
                    "collapsed": False,
                    "gridPos": line,
                    "panels": [],
                }
            )
            y, x, tallest = y + 1, 0, 0
            for panel in panels:
                if x + panel.width > WIDTH:
                    y, x, tallest = y + tallest, 0, 0
                placed.append(panel.json(len(placed) + 1, x, y))
                x, tallest = x + panel.width, max(tallest, panel.height)
            y += tallest
        return {
            "uid": self.uid,
            "title": self.title,
            "description": self.description,
            "tags": [TAG],
            "schemaVersion": 38,
            "editable": True,
            "graphTooltip": 1,
            "refresh": "10s",
            "time": {"from": "now-1h", "to": "now"},
            "timezone": "browser",
            "links": _links(),
            "templating": {"list": _variables()},
            "annotations": {"list": [_alerts()]},
            "panels": placed,
        }


def _links() -> list[dict[str, Any]]:
    """Links to the other dashboards and, by two variables, to Ray's dashboard and to MLflow."""
    shared = {"includeVars": False, "keepTime": False, "targetBlank": True, "tags": [], "asDropdown": False}
    return [
        {
            "type": "dashboards",
            "title": "condu_ray",
            "tags": [TAG],
            "asDropdown": False,
            "includeVars": True,
            "keepTime": True,
            "targetBlank": False,
            "icon": "external link",
        },
        shared | {"type": "link", "title": "Ray dashboard", "url": "${ray_dashboard}", "icon": "external link"},
        shared | {"type": "link", "title": "MLflow", "url": "${mlflow}", "icon": "external link"},
    ]


def _variables() -> list[dict[str, Any]]:
    names = "label_values(ray_condu_experts_wanted, run)"  # only drivers export it: trials of sweeps are no runs
    return [
        {"name": "datasource", "label": "Prometheus", "type": "datasource", "query": "prometheus", "refresh": 1},
        {
            "name": "run",
            "label": "Run",
            "type": "query",
            "datasource": SOURCE,
            "definition": names,
            "query": {"query": names, "refId": "run"},
            "refresh": 2,
            "sort": 1,
            "multi": True,
            "includeAll": True,
            "allValue": ".*",
            "current": {"selected": True, "text": ["All"], "value": ["$__all"]},
        },
        _text("ray_dashboard", "Ray dashboard", "http://localhost:8265"),
        _text("mlflow", "MLflow", "http://localhost:5000"),
    ]


def _text(name: str, label: str, value: str) -> dict[str, Any]:
    chosen = {"selected": True, "text": value, "value": value}
    return {"name": name, "label": label, "type": "textbox", "query": value, "current": chosen, "options": [chosen]}


def _alerts() -> dict[str, Any]:
    """Marks on every time axis when one of our alerts fires."""
    return {
        "name": "Alerts",
        "datasource": SOURCE,
        "enable": True,
        "iconColor": RED,
        "expr": 'max by (alertname) (ALERTS{alertname=~"Condu.*", alertstate="firing"})',
        "titleFormat": "{{alertname}}",
        "step": "15s",
    }
