"""Result rows: one Parquet file a (method, session), a row a task."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

SCHEMA = pa.schema(
    [
        ("method", pa.string()),
        ("seed", pa.int64()),
        ("session", pa.int64()),
        ("learned_task", pa.string()),
        ("task", pa.string()),
        ("task_position", pa.int64()),
        ("seen", pa.bool_()),
        ("label_space", pa.string()),
        ("correct", pa.int64()),
        ("images", pa.int64()),
        ("accuracy", pa.float64()),
        ("relative_l2", pa.float64()),
        ("sign_agreement", pa.float64()),
        ("rescaler", pa.float64()),
        ("state", pa.string()),
        ("expert", pa.string()),
    ]
)
"""Columns of the rows; accuracy in percent, session and task_position 0-based."""


def write_rows(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Writes rows atomically; a key outside `SCHEMA` is an error."""
    unknown = {key for row in rows for key in row} - set(SCHEMA.names)
    if unknown:
        raise ValueError(f"{path}: unknown result columns {sorted(unknown)}")
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    pq.write_table(pa.Table.from_pylist(list(rows), schema=SCHEMA), beside)
    beside.replace(path)


def read_rows(folder: Path) -> list[dict[str, Any]]:
    """Reads all rows below a run's results folder, ordered by method, session and task."""
    tables = [pq.read_table(path, schema=SCHEMA) for path in sorted(folder.glob("*.parquet"))]
    if not tables:
        return []
    rows: list[dict[str, Any]] = pa.concat_tables(tables).to_pylist()
    return sorted(rows, key=lambda row: (row["method"], row["session"], row["task_position"]))
