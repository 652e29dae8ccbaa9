"""What a dashboard's panels ask Prometheus, and what it answers: Grafana's part, without Grafana."""

from __future__ import annotations

import json
import re
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

POINTS = 240
"""Points of a curve."""


class PrometheusError(RuntimeError):
    """Prometheus does not answer, or not what was asked; the message has its words."""


@dataclass(frozen=True)
class Series:
    """One series: its labels, times (Unix seconds) and values."""

    labels: Mapping[str, str]
    times: Sequence[float]
    values: Sequence[float]


def ask(server: str, path: str, **parameters: object) -> list[Series]:
    """Asks Prometheus' HTTP API.

    Args:
        server: address, such as `http://127.0.0.1:9090`.
        path: `query` or `query_range`.
        **parameters: as the API has them (prometheus.io/docs/prometheus/latest/querying/api).

    Raises:
        PrometheusError: it does not answer, or refuses the query.
    """
    address = f"{server.rstrip('/')}/api/v1/{path}"
    body = urllib.parse.urlencode({name: str(value) for name, value in parameters.items()}).encode()
    try:
        with urllib.request.urlopen(address, data=body, timeout=60) as answer:
            found = json.load(answer)
    except urllib.error.HTTPError as error:
        raise PrometheusError(f"{address}: {error.read().decode(errors='replace')}") from error
    except OSError as error:
        raise PrometheusError(
            f"{address} does not answer: {error}; is Prometheus there (dashboards/README.md)?"
        ) from error
    result = found["data"]["result"]
    if found["data"]["resultType"] == "scalar":
        result = [{"metric": {}, "value": result}]
    series = []
    for entry in result:
        pairs = entry.get("values") or [entry["value"]]
        series.append(Series(entry["metric"], [float(at) for at, _ in pairs], [float(value) for _, value in pairs]))
    return series


def filled_in(expression: str, *, seconds: float, step: float, run: str = ".*") -> str:
    """Returns a panel's query with Grafana's variables filled in, as Grafana would.

    Args:
        expression: PromQL with `$run`, `$__range` and `$__rate_interval`.
        seconds: time that is shown.
        step: seconds between points.
        run: the chosen runs, a regular expression.
    """
    interval = max(20, round(4 * step))  # Grafana: four scrape intervals at least, which are five seconds each
    filled = expression.replace("$__rate_interval", f"{interval}s").replace("$__range", f"{max(1, round(seconds))}s")
    return filled.replace("$run", run)


def legend(template: str, labels: Mapping[str, str]) -> str:
    """Returns a legend with its `{{label}}` filled in; the labels themselves where there is no template."""
    if not template:
        return ", ".join(f"{name}={value}" for name, value in sorted(labels.items()) if name != "__name__")
    return re.sub(r"\{\{\s*(\w+)\s*\}\}", lambda found: labels.get(found[1], ""), template)


def fetch(server: str, panel: Mapping[str, Any], start: float, end: float, run: str) -> list[tuple[str, Series]]:
    """Returns a panel's series with their legends, over the time or, where that is what it shows, at its end."""
    step = max(1.0, (end - start) / POINTS)
    found = []
    for target in panel["targets"]:
        expression = filled_in(target["expr"], seconds=end - start, step=step, run=run)
        if target["range"]:
            series = ask(server, "query_range", query=expression, start=start, end=end, step=step)
        else:
            series = ask(server, "query", query=expression, time=end)
        found += [(legend(target["legendFormat"], one.labels), one) for one in series]
    return found
