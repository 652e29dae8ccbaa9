"""Validation images: a share of each task's training images, held out to choose settings by, so that tests stay tests.

Held-out images are in no training batch, no prototype and no exemplar: the training split of the tasks returned here is
what is left. They are drawn class by class, and all copies of a picture (the same pixels, whatever the bytes) stay on
one side. Of a class, `share` of its images, rounded, are held out: at least one, and never all. What cannot be held out
stays in training, and a warning names it: the only picture of a class, and pictures that several classes have.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

import numpy as np

from condu_ray.benchmark.images import picture_digest
from condu_ray.benchmark.rows import open_parquet
from condu_ray.benchmark.subset import copy_rows, data_name, read_labels, write_subset
from condu_ray.benchmark.tasks import TEST, TRAIN, Task, TaskError
from condu_ray.store.artifacts import ArtifactError, link
from condu_ray.store.layout import validation_folder
from condu_ray.store.location import Location, Place

logger = logging.getLogger(__name__)

#: Part of the folder's name: raise it when other images are drawn, so that no earlier folder is taken for a new one.
VALIDATION_VERSION = 1
_STREAM = 1  # tells the draw from that of shots, which has the same seeds
_BATCH_ROWS = 32
_SHOWN = 5  # classes that one warning names


def hold_out(
    tasks: Sequence[Task], folder: Place, *, share: float, seed: int, measure_on: Literal["test", "validation"]
) -> list[Task]:
    """Writes tasks without the training images that are held out, or finds them written already.

    `<folder>/<data>-validation<share>-seed<seed>-<hash>/<task>` holds the training images that are left as
    `train.parquet` and the held-out ones as `test.parquet`; `<folder>/<data>-without-validation<share>-...` holds the
    same training images with the source's own test split. A task appears whole or not at all.

    Args:
        tasks: Tasks from `load_tasks`, with different names.
        folder: Where the folder of these tasks goes, such as `<storage>/datasets`.
        share: Share of each class's training images, above 0 and below 1.
        seed: Seed of the draw, at least 0.
        measure_on: What the tasks returned have as their test split: their own, or the held-out images.

    Returns:
        The tasks, loaded, with the same names and in the same order.

    Raises:
        ValueError: `share` or `seed` is out of range.
        TaskError: A class has no picture that could be held out in the whole task, or the source cannot be read, or
            `folder` cannot be written.
        ArtifactError: What an earlier call wrote was damaged or changed since.
    """
    if not 0 < share < 1 or seed < 0:
        raise ValueError(f"share is {share} and seed is {seed}; give a share above 0 and below 1, a seed of at least 0")
    if not tasks:
        return []
    content = [VALIDATION_VERSION, sorted((task.name, task.fingerprint) for task in tasks)]
    digest = hashlib.sha256(json.dumps(content).encode()).hexdigest()[:8]
    # str() of a share, and not a few of its digits: two shares must never have one folder.
    place, data = Location(folder).absolute(), data_name(tasks)
    held = validation_folder(place, data, str(share), seed, digest, measure_on="validation")
    rest = validation_folder(place, data, str(share), seed, digest, measure_on="test")
    found = []
    for task in tasks:
        validated = _held_out(task, held / task.name, share, seed)
        if measure_on == "validation":  # the caller asks for these in any case; once is enough
            _warn_of_lacking(validated)
        found.append(validated if measure_on == "validation" else _without(task, validated, rest / task.name))
    return found


def draw_validation(
    labels: np.ndarray, pictures: np.ndarray, classes: int, *, share: float, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Draws the rows that are held out, class by class.

    Args:
        labels: Labels of all rows, integers of shape (rows,), 0 <= label < `classes`.
        pictures: Which picture each row has, integers of shape (rows,): equal numbers are equal pictures.
        classes: Number of classes.
        share: Share of each class's rows, above 0 and below 1.
        seed: Seed of the draw, at least 0.

    Returns:
        The rows that are left and those that are held out, int64, ascending. The draw of a class depends on the seed,
        the label and the class's rows alone.
    """
    both = np.unique(np.stack([pictures, labels], axis=1), axis=0)[:, 0]
    contradicting = both[:-1][both[1:] == both[:-1]]  # pictures of several classes
    by_label = np.split(np.argsort(labels, kind="stable"), np.cumsum(np.bincount(labels, minlength=classes))[:-1])
    held = np.zeros(len(labels), dtype=bool)
    for label, rows in enumerate(by_label):
        wanted = min(max(1, int(share * len(rows) + 0.5)), len(rows) - 1)
        _, first, sizes = np.unique(pictures[rows], return_index=True, return_counts=True)
        in_order = np.argsort(first)  # by their first rows, for the numbers of pictures mean nothing
        ids, sizes = pictures[rows][first[in_order]], sizes[in_order]
        lot = np.random.default_rng([seed, label, _STREAM]).permutation(len(ids))
        usable = [one for one in lot.tolist() if ids[one] not in contradicting and sizes[one] < len(rows)]
        chosen, count = [], 0
        for one in usable:
            if count + sizes[one] <= wanted:
                chosen.append(one)
                count += int(sizes[one])
        if not chosen and usable:  # every picture is there more often than images are wanted
            chosen = [min(usable, key=lambda one: sizes[one])]
        held[rows[np.isin(pictures[rows], ids[chosen])]] = True
    return np.flatnonzero(~held), np.flatnonzero(held)


def _held_out(task: Task, folder: Location, share: float, seed: int) -> Task:
    """The task with what is left as its training split, and what is held out as its test split."""

    def write(draft: Path) -> None:
        labels = read_labels(task)
        left, held = draw_validation(labels, _pictures(task), len(task.classes), share=share, seed=seed)
        if not len(held):
            raise TaskError(
                f"{task.folder}: none of its classes has two different training pictures, so that none can be held "
                "out; leave the task out, or give --validation_share 0"
            )
        copy_rows(task.train, draft / TRAIN, left, {})
        copy_rows(task.train, draft / TEST, held, {})

    about = {"validation_share": share, "validation_seed": seed, "held_out_of": task.train_fingerprint}
    return write_subset(task, folder, about, write, files=(TRAIN, TEST))


def _without(task: Task, validated: Task, folder: Location) -> Task:
    """The same training split, with the source's own test split."""

    def write(draft: Path) -> None:
        link(validated.train, draft / TRAIN)
        link(task.test, draft / TEST)

    about = {"held_out_of": task.train_fingerprint, "source_fingerprint": task.fingerprint}
    found = write_subset(task, folder, about, write, files=(TRAIN,))
    if (found.train_fingerprint, found.test_fingerprint) != (validated.train_fingerprint, task.test_fingerprint):
        raise ArtifactError(f"{folder}: differs from {task.folder}; remove {folder} to have it made again")
    return found


def _pictures(task: Task) -> np.ndarray:
    """Returns a number for each training row, int64: equal ones have the same pixels."""
    with ThreadPoolExecutor(max_workers=os.cpu_count() or 1) as pool:
        digests = b"".join(digest for part in _encoded(task) for digest in pool.map(picture_digest, part))
    found = np.frombuffer(digests, dtype=np.uint64).reshape(-1, 2)
    return np.unique(found, axis=0, return_inverse=True)[1].reshape(-1)


def _encoded(task: Task) -> Iterator[list[bytes | None]]:
    with open_parquet(task.train, streaming=True) as file:
        for batch in file.iter_batches(_BATCH_ROWS, columns=["image"], use_threads=False):
            yield batch.column("image").to_pylist()


def _warn_of_lacking(task: Task) -> None:
    """Says which classes have no held-out image: their accuracy cannot be measured."""
    with open_parquet(task.test) as file:
        held = np.bincount(np.asarray(file.read(columns=["label"])["label"], np.int64), minlength=len(task.classes))
    lacking = [repr(task.classes[label]) for label in np.flatnonzero(held == 0).tolist()]
    if lacking:
        rest = f" and {len(lacking) - _SHOWN} more" if len(lacking) > _SHOWN else ""
        logger.warning(
            "task %r: %d of %d classes have one training picture alone (or share theirs with another class), so that "
            "none is held out and validation says nothing of them: %s",
            task.name, len(lacking), len(task.classes), ", ".join(lacking[:_SHOWN]) + rest,
        )  # fmt: skip
