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
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from condu_ray.benchmark.subset import copy_rows, data_name, read_labels, write_subset
from condu_ray.benchmark.tasks import META, TEST, TRAIN, Task
from condu_ray.store.artifacts import ArtifactError, link, read_text
from condu_ray.store.layout import few_shot_folder
from condu_ray.store.location import Location, Place

logger = logging.getLogger(__name__)

#: Part of the folder's name: raise it when other images are drawn, so that no earlier folder is taken for a new one.
FEW_SHOT_VERSION = 2

SOURCE = "source_train_fingerprint"
"""Key, in `meta.json` and in the file of training images, of the fingerprint of those that shots were drawn from."""
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
    folder = few_shot_folder(Location(folder).absolute(), data_name(tasks), shots, seed, digest)
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
        rows = draw(read_labels(task), len(task.classes), shots=shots, seed=seed)
        copy_rows(task.train, draft / TRAIN, rows, {SOURCE: task.train_fingerprint})
        link(task.test, draft / TEST)

    few = write_subset(task, folder, source, write, files=(TRAIN,))
    if few.test_fingerprint != task.test_fingerprint:
        raise ArtifactError(f"{folder}: differs from {task.folder}; remove {folder} to have it made again")
    _warn_if_short(few, shots)
    return few


def _warn_if_short(few: Task, shots: int) -> None:
    counts = np.bincount(read_labels(few), minlength=len(few.classes))
    short = [f"{few.classes[label]!r} has {counts[label]}" for label in np.flatnonzero(counts < shots).tolist()]
    if short:
        rest = f" and {len(short) - _SHOWN} more" if len(short) > _SHOWN else ""
        listed = ", ".join(short[:_SHOWN]) + rest
        logger.warning("task %r: classes with fewer than %d training images keep all: %s", few.name, shots, listed)
