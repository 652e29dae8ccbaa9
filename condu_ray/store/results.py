"""Result rows: one Parquet file a (method, session), a row a task, with a checksum of the rows in its metadata."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePath
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from condu_ray.settings import content_hash
from condu_ray.store.artifacts import ArtifactError, names, read_bytes, write_bytes
from condu_ray.store.location import Place
from condu_ray.store.seal import told

SCHEMA = pa.schema(
    [
        ("method", pa.string()),
        ("seed", pa.int64()),
        ("session", pa.int64()),
        ("learned_task", pa.string()),
        ("task", pa.string()),
        ("task_position", pa.int64()),
        ("seen", pa.bool_()),
        ("protocol", pa.string()),
        ("measured_on", pa.string()),
        ("correct", pa.int64()),
        ("images", pa.int64()),
        ("accuracy", pa.float64()),
        ("relative_l2", pa.float64()),
        ("sign_agreement", pa.float64()),
        ("rescaler", pa.float64()),
        ("state", pa.string()),
        ("expert", pa.string()),
        ("temperature", pa.float64()),
        ("calibration_before", pa.float64()),
        ("calibration_after", pa.float64()),
        ("relative_l2_error", pa.float64()),
    ]
)
"""Columns of the rows; accuracy in percent, session and task_position 0-based; `measured_on` is test or validation."""
_CALIBRATION, _ERROR = ("temperature", "calibration_before", "calibration_after"), ("relative_l2_error",)
"""Columns that earlier versions had not."""
_SEAL = b"condu_ray.rows"
_OLD_COLUMN = "label_space"
"""What `protocol` was called before."""
_MEASURED_ON = SCHEMA.get_field_index("measured_on")


def write_rows(path: Place, rows: Sequence[dict[str, Any]]) -> None:
    """Writes rows atomically.

    Raises:
        ValueError: a key outside `SCHEMA`.
        WriteError: the disk is full or fails; the file is as it was before.
    """
    unknown = {key for row in rows for key in row} - set(SCHEMA.names)
    if unknown:
        raise ValueError(f"{path}: unknown result columns {sorted(unknown)}")
    table = pa.Table.from_pylist(list(rows), schema=SCHEMA)
    table = table.replace_schema_metadata({_SEAL: _digest(_stem(path), table, table.to_pylist())})
    content = pa.BufferOutputStream()
    pq.write_table(table, content)
    write_bytes(path, content.getvalue().to_pybytes())


def _stem(path: Place) -> str:
    return PurePath(path.name).stem


def _digest(name: str, table: pa.Table, rows: list[dict[str, Any]]) -> str:
    return content_hash([name, table.schema.names, rows])


def read_file(path: Place) -> list[dict[str, Any]]:
    """Reads one file of rows; one without a checksum was written before there were any.

    Raises:
        ArtifactError: it is missing, no Parquet file of results, or damaged.
    """
    advice = "remove it: the same command writes it again"
    try:
        table = pq.read_table(pa.BufferReader(read_bytes(path)))  # not by name, for pyarrow reads more into a path
        rows: list[dict[str, Any]] = table.to_pylist()
    except PermissionError as error:
        raise ArtifactError(f"{path}: {told(error, '', '')}") from error
    except OSError as error:
        raise ArtifactError(f"{path}: cannot be read ({error}); {advice}") from error
    except (pa.ArrowException, ValueError) as error:
        raise ArtifactError(f"{path}: damaged ({error}); {advice}") from error
    today = {name: "protocol" if name == _OLD_COLUMN else name for name in table.schema.names}
    schema = table.rename_columns(list(today.values())).schema
    latest = pa.schema([one for one in SCHEMA if one.name not in _ERROR])
    earlier = pa.schema([one for one in latest if one.name not in _CALIBRATION])
    earliest = earlier.remove(_MEASURED_ON)  # when there were test images alone
    if not any(schema.equals(known, check_metadata=False) for known in (SCHEMA, latest, earlier, earliest)):
        raise ArtifactError(f"{path}: its columns are not those of results; {advice}")
    seal = (table.schema.metadata or {}).get(_SEAL)
    if seal is not None and seal.decode("ascii", "replace") != _digest(_stem(path), table, rows):
        raise ArtifactError(f"{path}: rows differ from their checksum, or are another file's; {advice}")
    since = {"measured_on": "test"} | dict.fromkeys((*_CALIBRATION, *_ERROR))
    return [since | {today[name]: value for name, value in row.items()} for row in rows]


def read_rows(folder: Place) -> list[dict[str, Any]]:
    """Reads all rows below a run's results folder, ordered by method, session and task.

    Raises:
        ArtifactError: as `read_file`.
    """
    rows = [row for name in names(folder) if name.endswith(".parquet") for row in read_file(folder / name)]
    return sorted(rows, key=lambda row: (row["method"], row["session"], row["task_position"]))
