"""The table of a run's methods, for its page and for the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from condu_ray.config import Protocol
from condu_ray.metrics import COSTS, METRICS, STORAGE, Column
from condu_ray.report.protocols import by_method, measured
from condu_ray.report.text import number_text


def whole_columns(results: Mapping[str, Any]) -> dict[str, Column]:
    """Returns the columns of what a method takes as a whole, whatever the protocol."""
    counted = any(entry.get("bits") is not None for entry in results["methods"].values())
    return {"seconds": COSTS["seconds"]} | (STORAGE if counted else {})


def summary_rows(results: Mapping[str, Any], protocol: Protocol) -> list[dict[str, str]]:
    """Returns a table of the methods that were measured by a protocol, to print.

    Args:
        results: The results, as `condu_ray.report.run_report` describes them.
        protocol: What is shown.

    Returns:
        One dict a method: column heading -> text ("Method", "Transfer", ... "Seconds"), in the order of the columns;
        seconds and bits, which are those of the whole method, only in the first protocol's table; bits where they
        were counted.
    """
    first = measured(results["methods"].values())[0] == protocol
    columns = METRICS | (whole_columns(results) if first else {})
    rows = []
    for name, found in by_method(results, protocol).items():
        values = {**found, **{key: results["methods"][name].get(key) for key in whole_columns(results)}}
        cells = {column.heading: number_text(values.get(key), column.digits) for key, column in columns.items()}
        rows.append({"Method": name, **cells})
    return rows
