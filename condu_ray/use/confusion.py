"""A state measured on any task's folder without training: accuracy, by class too, and what is taken for what."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from condu_ray.benchmark import Task
from condu_ray.benchmark.rows import open_parquet
from condu_ray.benchmark.subset import read_labels
from condu_ray.benchmark.tasks import TEST
from condu_ray.plan.measurement import kind
from condu_ray.use.predictor import Predictor
from condu_ray.use.served import UseError


@dataclass(frozen=True)
class Confusion:
    """Predictions of a task's test images.

    Attributes:
        task: the task's name.
        classes: class names.
        counts_CC: int64: images of the row's class that were taken for the column's.
        experts: how much each expert answered, over all images; sums to 1.
    """

    task: str
    classes: tuple[str, ...]
    counts_CC: np.ndarray  # noqa: N815
    experts: dict[str, float]

    @property
    def images(self) -> int:
        """Images that were looked at."""
        return int(self.counts_CC.sum())

    @property
    def correct(self) -> int:
        """Those that were classified rightly."""
        return int(np.trace(self.counts_CC))

    @property
    def percent(self) -> float:
        """Accuracy in percent."""
        return 100 * self.correct / self.images

    def by_class(self) -> list[tuple[str, int, float]]:
        """Returns class, images and accuracy in percent, in label order; nan of a class without an image."""
        totals = self.counts_CC.sum(axis=1)
        with np.errstate(invalid="ignore", divide="ignore"):
            shares = 100 * np.diag(self.counts_CC) / totals
        return [
            (name, int(total), float(share)) for name, total, share in zip(self.classes, totals, shares, strict=True)
        ]

    def confused(self) -> list[tuple[str, str, int]]:
        """Returns true class, predicted class and images of what was taken for another, the most frequent first."""
        wrong = self.counts_CC - np.diag(np.diag(self.counts_CC))
        places = [(int(row), int(column)) for row, column in np.argwhere(wrong)]
        found = [(self.classes[row], self.classes[column], int(wrong[row, column])) for row, column in places]
        return sorted(found, key=lambda one: -one[2])


def who_answers(predictor: Predictor, task: Task, by: str | None = None) -> str | None:
    """Returns whose expert answers for a task's images; None: the router's, or the method's one model.

    Args:
        predictor: what predicts.
        task: any task.
        by: whose shall; None: that of the task of this name where it is learned.

    Raises:
        UseError: the method cannot predict without knowing a task, and has learned none of this name.
    """
    who = by or (task.name if task.name in predictor.tasks else None)
    if who is None and kind(predictor.served.method) == "task identity":
        raise UseError(
            f"{predictor.served.name}: has learned no task {task.name}, and {predictor.served.method.name} cannot "
            f"predict without one; name whose expert shall answer: {', '.join(predictor.tasks)}"
        )
    return who


def confusion(predictor: Predictor, task: Task, by: str | None = None) -> Confusion:
    """Measures a task's test images, over its own classes and templates.

    Args:
        predictor: what predicts.
        task: any task's folder, whether or not the run knows it.
        by: as for `who_answers`.

    Raises:
        UseError: as `who_answers`.
        TaskError: a label is null or no class; names file and row.
        ImageError: an image cannot be read; names file and row.
    """
    who = who_answers(predictor, task, by)
    labels = read_labels(task, TEST)  # before anything is computed
    predictions = predictor.stream(
        _images(task),
        who,
        task.classes,
        1,
        templates=task.templates,
        names=(f"{task.test}#{row}" for row in range(task.test_rows)),
    )
    places = {name: place for place, name in enumerate(task.classes)}
    counts_CC = np.zeros((len(places), len(places)), dtype=np.int64)
    experts: Counter[str] = Counter()
    for row, prediction in enumerate(predictions):
        counts_CC[labels[row], places[prediction.classes[0]]] += 1
        experts.update(prediction.experts)
    total = sum(experts.values())
    return Confusion(task.name, task.classes, counts_CC, {name: part / total for name, part in experts.most_common()})


def _images(task: Task) -> Iterator[bytes]:
    with open_parquet(task.test, streaming=True) as file:
        for batch in file.iter_batches(64, columns=["image"]):
            yield from (image or b"" for image in batch.column("image").to_pylist())
