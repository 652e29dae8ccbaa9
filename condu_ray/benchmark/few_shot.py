"""Few-shot tasks: the same tasks with a few training images of each class, as folders that load like any other.

The protocol of ConDU's few-shot MTIL (arXiv 2503.10705, five images a class): the first `shots` images of a seeded
permutation of each class. The permutation depends on the seed, the label and the number of the class's images alone, so
more shots keep the images that fewer had, and other classes do not matter. Test splits stay as they are. (The public
code takes the first five of its loader's shuffled order.)

What a run makes of all images that the shots were drawn from (prototypes, as the public code does) is asked for by
their fingerprint, which is part of the few-shot file's own content and so of every identity that has that one.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from condu_ray.benchmark.tasks import META, TEST, TRAIN, Task, TaskError, load_task
from condu_ray.store.artifacts import ArtifactError, link, publish, read_text, verified
from condu_ray.store.layout import few_shot_folder
from condu_ray.store.location import Location, Place

logger = logging.getLogger(__name__)

#: Part of the folder's name: raise it when other images are drawn, so that no earlier folder is taken for a new one.
FEW_SHOT_VERSION = 2

SOURCE = "source_train_fingerprint"
"""Key, in `meta.json` and in the file of training images, of the fingerprint of those that shots were drawn from."""
_COLUMNS = ("image", "label")
_BATCH_ROWS = 32
_GROUP_BYTES = 32 * 2**20  # encoded images in one row group of what is written
_SHOWN = 5  # classes that one warning names


def few_shot(tasks: Sequence[Task], folder: Place, *, shots: int, seed: int) -> list[Task]:
    """Writes tasks with `shots` training images a class, or finds them written already.

    `<folder>/<data>-<shots>shot-seed<seed>-<hash>/<task>` holds, for each task, `train.parquet` (the images drawn, in
    the order of the source's rows), `test.parquet` (the source's: a hard link where the file system permits, else a
    copy) and `meta.json` (the source's, with `shots`, `seed`, `source_fingerprint`, and the `files` and `versions` of
    `store.artifacts.publish`). `<data>` is the name of the folder that the first task lies in, `<hash>` stands for the
    content of all tasks, in whatever order. A task appears whole or not at all, also with several writers at once.

    Args:
        tasks: Tasks from `load_tasks`, with different names.
        folder: Where the folder of these tasks goes, such as `<storage>/datasets`.
        shots: Training images a class, at least 1. A class with fewer keeps all it has, with a warning.
        seed: Seed of the draw, at least 0.

    Returns:
        The few-shot tasks, loaded, with the same names and in the same order; their `test_fingerprint` is the source's.

    Raises:
        ValueError: `shots` or `seed` is too small, or two tasks have one name.
        TaskError: A source has labels that are null or out of range or cannot be read, or `folder` cannot be written.
        ArtifactError: What an earlier call wrote was damaged or changed since.
    """
    if shots < 1 or seed < 0:
        raise ValueError(f"shots is {shots} and seed is {seed}; give at least 1 shot and a seed of at least 0")
    names = [task.name for task in tasks]
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"tasks named twice: {repeated}; each name becomes a folder, so rename or drop one of each")
    if not tasks:
        return []
    content = [FEW_SHOT_VERSION, sorted((task.name, task.fingerprint) for task in tasks)]
    digest = hashlib.sha256(json.dumps(content).encode()).hexdigest()[:8]
    data = re.sub(r"[^A-Za-z0-9._-]", "_", tasks[0].folder.parent.name).lstrip("._-") or "tasks"
    folder = few_shot_folder(Location(folder).absolute(), data, shots, seed, digest)
    return [_few_shot_task(task, folder / task.name, shots, seed) for task in tasks]


def draw(labels: np.ndarray, classes: int, *, shots: int, seed: int) -> np.ndarray:
    """Draws the rows that a few-shot training split keeps.

    Args:
        labels: Labels of all rows, integers of shape (rows,), 0 <= label < `classes`.
        classes: Number of classes.
        shots: Rows a class, at least 1; a class with fewer keeps all.
        seed: Seed of the draw, at least 0.

    Returns:
        The rows, int64, ascending.
    """
    by_label = np.split(np.argsort(labels, kind="stable"), np.cumsum(np.bincount(labels, minlength=classes))[:-1])
    drawn = [np.random.default_rng([seed, label]).permutation(rows)[:shots] for label, rows in enumerate(by_label)]
    return np.sort(np.concatenate(drawn))


def source_fingerprint(task: Task) -> str:
    """Returns the `train_fingerprint` of the task whose images a few-shot task has; of another task, its own."""
    meta = json.loads(read_text(task.folder / META))
    return str(meta.get(SOURCE) or task.train_fingerprint)


def _few_shot_task(task: Task, folder: Location, shots: int, seed: int) -> Task:
    source = {"shots": shots, "seed": seed, "source_fingerprint": task.fingerprint, SOURCE: task.train_fingerprint}

    def write(draft: Path) -> None:
        rows = draw(_labels(task), len(task.classes), shots=shots, seed=seed)
        _copy_rows(task.train, draft / TRAIN, rows, {SOURCE: task.train_fingerprint})
        link(task.test, draft / TEST)

    try:
        meta = json.loads(read_text(task.folder / META))
        found = publish(folder, {**meta, **source}, write)
    except OSError as error:
        raise TaskError(
            f"{folder}: cannot be made ({error}); is there space, and may this user write there?"
        ) from error
    try:
        verified(folder, TRAIN)
        few = load_task(folder)
        right = source.items() <= found.items() and few.test_fingerprint == task.test_fingerprint
    except TaskError as error:
        raise ArtifactError(f"{error}\nremove {folder} to have it made again") from error
    if not right:
        raise ArtifactError(f"{folder}: differs from {task.folder}; remove {folder} to have it made again")
    _warn_if_short(few, shots)
    return few


def _labels(task: Task) -> np.ndarray:
    """Returns the training labels, int64 of shape (rows,), without reading an image."""
    try:
        with pq.ParquetFile(task.train) as file:
            column = file.read(columns=["label"])["label"].cast(pa.int64(), safe=False)
    except (OSError, pa.ArrowException) as error:
        raise TaskError(f"{task.train}: labels cannot be read ({error}); write or copy the file anew") from error
    labels = column.fill_null(-1).to_numpy()
    outside = np.flatnonzero((labels < 0) | (labels >= len(task.classes)))
    if len(outside):
        row, last = int(outside[0]), len(task.classes) - 1
        raise TaskError(f"{task.train}: row {row} has label {column[row].as_py()}; write labels from 0 to {last}")
    return labels


def _copy_rows(source: Path, target: Path, rows: np.ndarray, metadata: Mapping[str, str]) -> None:
    """Copies rows (ascending) of one split into another, in row groups of about `_GROUP_BYTES`; adds metadata."""
    writer, pending = None, []
    try:
        for batch in _read_rows(source, rows):
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


def _read_rows(path: Path, rows: np.ndarray) -> Iterator[pa.RecordBatch]:
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


def _warn_if_short(few: Task, shots: int) -> None:
    counts = np.bincount(_labels(few), minlength=len(few.classes))
    short = [f"{few.classes[label]!r} has {counts[label]}" for label in np.flatnonzero(counts < shots).tolist()]
    if short:
        rest = f" and {len(short) - _SHOWN} more" if len(short) > _SHOWN else ""
        listed = ", ".join(short[:_SHOWN]) + rest
        logger.warning("task %r: classes with fewer than %d training images keep all: %s", few.name, shots, listed)
