"""The table of a run's methods, for its page and for the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from condu_ray.metrics import COSTS, METRICS
from condu_ray.report.text import number_text


def summary_rows(results: Mapping[str, Any], space: str = "task") -> list[dict[str, str]]:
    """Returns a table of the methods, to print.

    Args:
        results: The results, as `condu_ray.report.run_report` describes them.
        space: Label space: `task`, or `union` for those methods that were measured over it.

    Returns:
        One dict a method: column heading -> text ("Method", "Transfer", ... "Seconds"), in the order of the columns;
        over the union without the seconds, which are those of the whole method.
    """
    columns = METRICS if space == "union" else {**METRICS, "seconds": COSTS["seconds"]}
    rows = []
    for name, entry in results["methods"].items():
        measured = entry if space == "task" else entry.get("union")
        if measured is not None:
            cells = {column.heading: number_text(measured.get(key), column.digits) for key, column in columns.items()}
            rows.append({"Method": name, **cells})
    return rows
