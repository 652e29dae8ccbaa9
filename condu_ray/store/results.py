"""Result rows: one Parquet file a (method, session), a row a task, with a checksum of the rows in its metadata."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from condu_ray.config import content_hash
from condu_ray.store.artifacts import ArtifactError, draft_of, sync, writing

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
_SEAL = b"condu_ray.rows"


def write_rows(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Writes rows atomically.

    Raises:
        ValueError: a key outside `SCHEMA`.
        WriteError: the disk is full or fails; the file is as it was before.
    """
    unknown = {key for row in rows for key in row} - set(SCHEMA.names)
    if unknown:
        raise ValueError(f"{path}: unknown result columns {sorted(unknown)}")
    table = pa.Table.from_pylist(list(rows), schema=SCHEMA)
    table = table.replace_schema_metadata({_SEAL: _digest(path.stem, table)})
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = draft_of(path)
        try:
            pq.write_table(table, beside)
            sync(beside)
            beside.replace(path)
        finally:
            beside.unlink(missing_ok=True)


def _digest(name: str, table: pa.Table) -> str:
    return content_hash([name, table.schema.names, table.to_pylist()])


def read_file(path: Path) -> list[dict[str, Any]]:
    """Reads one file of rows; one without a checksum was written before there were any.

    Raises:
        ArtifactError: it is missing, no Parquet file of results, or damaged.
    """
    advice = "remove it: the same command writes it again"
    try:
        table = pq.read_table(pa.BufferReader(path.read_bytes()))  # not by name, for pyarrow reads more into a path
        rows: list[dict[str, Any]] = table.to_pylist()
    except OSError as error:
        raise ArtifactError(f"{path}: cannot be read ({error}); {advice}") from error
    except (pa.ArrowException, ValueError) as error:
        raise ArtifactError(f"{path}: damaged ({error}); {advice}") from error
    if not table.schema.equals(SCHEMA, check_metadata=False):
        raise ArtifactError(f"{path}: its columns are not those of results; {advice}")
    seal = (table.schema.metadata or {}).get(_SEAL)
    if seal is not None and seal.decode("ascii", "replace") != _digest(path.stem, table):
        raise ArtifactError(f"{path}: rows differ from their checksum, or are another file's; {advice}")
    return rows


def read_rows(folder: Path) -> list[dict[str, Any]]:
    """Reads all rows below a run's results folder, ordered by method, session and task.

    Raises:
        ArtifactError: as `read_file`.
    """
    rows = [row for path in sorted(folder.glob("*.parquet")) for row in read_file(path)]
    return sorted(rows, key=lambda row: (row["method"], row["session"], row["task_position"]))
