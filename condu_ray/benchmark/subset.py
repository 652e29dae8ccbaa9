"""Tasks that have some images of another task: folders of their own, which load like any other."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from condu_ray.benchmark.tasks import META, TRAIN, Task, TaskError, load_task
from condu_ray.store.artifacts import ArtifactError, publish, read_text, verified
from condu_ray.store.location import Location

_COLUMNS = ("image", "label")
_BATCH_ROWS = 32
_GROUP_BYTES = 32 * 2**20  # encoded images in one row group of what is written


def data_name(tasks: Sequence[Task]) -> str:
    """Returns the name of the folder that the first task lies in, as a part of another folder's name."""
    return re.sub(r"[^A-Za-z0-9._-]", "_", tasks[0].folder.parent.name).lstrip("._-") or "tasks"


def write_subset(
    task: Task, folder: Location, about: Mapping[str, Any], write: Callable[[Path], None], files: Sequence[str]
) -> Task:
    """Publishes a task made of another one's images, or finds it published already.

    Args:
        task: The source, whose `meta.json` the new task has too.
        folder: The new task's folder; its name is the task's.
        about: What `meta.json` says besides: which images these are.
        write: Writes both splits into a folder.
        files: Splits whose content is compared with what was published.

    Raises:
        TaskError: The source cannot be read, or the folder cannot be written.
        ArtifactError: What an earlier call wrote was damaged, changed, or made of something else.
    """
    try:
        meta = json.loads(read_text(task.folder / META))
        found = publish(folder, {**meta, **about}, write)
    except OSError as error:
        raise TaskError(
            f"{folder}: cannot be made ({error}); is there space, and may this user write there?"
        ) from error
    try:
        for name in files:
            verified(folder, name)
        made = load_task(folder)
    except TaskError as error:
        raise ArtifactError(f"{error}\nremove {folder} to have it made again") from error
    if not about.items() <= found.items():
        raise ArtifactError(f"{folder}: differs from {task.folder}; remove {folder} to have it made again")
    return made


def read_labels(task: Task, split: str = TRAIN) -> np.ndarray:
    """Returns the labels of a split, int64 of shape (rows,), without reading an image.

    Args:
        task: the task.
        split: `TRAIN` or `TEST`.

    Raises:
        TaskError: they cannot be read, or one is null or no class; names file and row.
    """
    path = task.train if split == TRAIN else task.test
    try:
        with pq.ParquetFile(path) as file:
            column = file.read(columns=["label"])["label"].cast(pa.int64(), safe=False)
    except (OSError, pa.ArrowException) as error:
        raise TaskError(f"{path}: labels cannot be read ({error}); write or copy the file anew") from error
    labels = column.fill_null(-1).to_numpy()
    outside = np.flatnonzero((labels < 0) | (labels >= len(task.classes)))
    if len(outside):
        row, last = int(outside[0]), len(task.classes) - 1
        raise TaskError(f"{path}: row {row} has label {column[row].as_py()}; write labels from 0 to {last}")
    return labels


def copy_rows(source: Path, target: Path, rows: np.ndarray, metadata: Mapping[str, str]) -> None:
    """Copies rows (ascending) of one split into another, in row groups of about `_GROUP_BYTES`; adds metadata."""
    writer, pending = None, []
    try:
        for batch in read_rows(source, rows):
            writer = writer or pq.ParquetWriter(target, batch.schema.with_metadata(metadata), compression="none")
            pending.append(batch)
            if sum(part.nbytes for part in pending) >= _GROUP_BYTES:
                writer.write_table(pa.Table.from_batches(pending))
                pending = []
        if writer and pending:
            writer.write_table(pa.Table.from_batches(pending))
    finally:
        if writer:
            writer.close()


def read_rows(path: Path, rows: np.ndarray) -> Iterator[pa.RecordBatch]:
    """Yields rows (ascending) of one split; opens only row groups that hold one, and keeps a few pages in memory."""
    try:
        # Without a buffer size pyarrow reads whole row groups.
        with pq.ParquetFile(path, buffer_size=1 << 20, pre_buffer=False) as file:
            edges = np.cumsum([0, *(file.metadata.row_group(group).num_rows for group in range(file.num_row_groups))])
            for group in np.unique(np.searchsorted(edges, rows, side="right") - 1).tolist():
                start = int(edges[group])
                options = {"row_groups": [group], "columns": list(_COLUMNS), "use_threads": False}
                for batch in file.iter_batches(_BATCH_ROWS, **options):
                    first, stop = np.searchsorted(rows, [start, start + batch.num_rows])
                    if first < stop:
                        chosen = pa.array(rows[first:stop] - start)
                        columns = [_plain(batch.column(name)).take(chosen) for name in _COLUMNS]
                        yield pa.RecordBatch.from_arrays(columns, _COLUMNS)
                    start += batch.num_rows
    except (OSError, pa.ArrowException) as error:
        raise TaskError(f"{path}: cannot be read ({error}); the file is damaged, write or copy it anew") from error


def _plain(column: pa.Array) -> pa.Array:
    """Returns a column in a form that rows can be taken of: pyarrow cannot take any of a view."""
    return column.cast(pa.binary()) if pa.types.is_binary_view(column.type) else column
