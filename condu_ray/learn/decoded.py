"""Decoded test images: each is decoded and preprocessed once, whatever number of models looks at it afterwards.

They stay in memory while they fit, and go to a file beyond that (150 kB an image at 224 x 224, so that all of MTIL's
test images are some 14 GB); only where the disk has no room either, they are decoded anew for every model.
"""

from __future__ import annotations

import math
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from condu_ray.benchmark import Task
from condu_ray.benchmark.rows import open_parquet, read_labels, sample
from condu_ray.learn.chunks import task_images

PIXEL_BYTES = 2**30
"""Decoded images that are kept in memory, at most."""
SPARE_BYTES = 2**33
"""What the disk of the temporary folder must have left when decoded images go there."""


def test_labels(task: Task) -> np.ndarray:
    """Returns the labels of all test images, int64 [N]."""
    with open_parquet(task.test) as file:
        labels = read_labels(file)
    assert labels is not None, "load_task refuses other labels"
    return labels


class Decoded:
    """The test images of tasks as pixels.

    Args:
        preprocess: open_clip's PreprocessCfg as a dict.
        batch_size: images a batch.
        max_images: images of a task to use, in proportion to its classes (`benchmark.rows.sample`); 0 for all.
    """

    def __init__(self, preprocess: Mapping[str, Any], batch_size: int, max_images: int = 0) -> None:
        self._preprocess, self._batch_size, self._max_images = dict(preprocess), batch_size, max_images
        self._kept: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        self._labels: dict[str, np.ndarray] = {}
        self._memory = 0

    def count(self, task: Task) -> int:
        """Returns how many test images of a task are used."""
        return min(task.test_rows, self._max_images or task.test_rows)

    def labels(self, task: Task) -> np.ndarray:
        """Returns the labels of the test images that are used, int64 [N]."""
        if task.test_fingerprint not in self._labels:
            labels = test_labels(task)
            self._labels[task.test_fingerprint] = labels[sample(labels, self._max_images)]
        return self._labels[task.test_fingerprint]

    def batches(self, task: Task) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yields pixels uint8 [b, H, W, 3] and labels int64 [b], in file order, the same batches every time."""
        if task.test_fingerprint in self._kept:
            pixels_NHWC, label_N = self._kept[task.test_fingerprint]
            for start in range(0, len(label_N), self._batch_size):
                stop = start + self._batch_size
                yield np.asarray(pixels_NHWC[start:stop]), label_N[start:stop]
            return
        count, start = self.count(task), 0
        place, labels = None, np.empty(count, dtype=np.int64)
        rows = sample(test_labels(task), self._max_images) if count < task.test_rows else None
        for pixels, label in task_images(task.test, self._preprocess, self._batch_size, rows):
            if start == 0:
                place = self._room((count, *pixels.shape[1:]))
            stop = start + len(label)
            labels[start:stop] = label
            if place is not None:
                place[start:stop] = pixels
            yield pixels, label
            start = stop
        if place is not None:
            self._memory += 0 if isinstance(place, np.memmap) else place.nbytes
            self._kept[task.test_fingerprint] = place, labels

    def _room(self, shape: tuple[int, ...]) -> np.ndarray | None:
        """Finds a place for pixels: memory, a file without a name, which ends with this process, or none."""
        size = math.prod(shape)
        if self._memory + size <= PIXEL_BYTES:
            return np.empty(shape, dtype=np.uint8)
        if shutil.disk_usage(tempfile.gettempdir()).free < size + SPARE_BYTES:
            return None
        with tempfile.TemporaryFile() as file:  # the map keeps it alive
            return np.memmap(file, dtype=np.uint8, mode="w+", shape=shape)
