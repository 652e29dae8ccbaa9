"""theta0's pass over a task's training images and prompts: what prototypes and routers are made of, chunk by chunk.

A chunk is a range of rows, encoded in batches that depend on the file alone, so that whoever encodes it, beside
whichever others, comes to the same bits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from condu_ray.benchmark import Task
from condu_ray.benchmark.content import require
from condu_ray.benchmark.rows import blocks, open_parquet
from condu_ray.learn.prototype_store import has_prototypes, save_prototypes
from condu_ray.store.location import Place
from condu_ray.vlm.inputs import normalise
from condu_ray.vlm.model import Backbone
from condu_ray.vlm.moments import Moments, on_grid
from condu_ray.vlm.preprocess import Preprocessor
from condu_ray.vlm.zeroshot import image_features, text_sums

CHUNK_ROWS, BATCH = 512, 64


@dataclass(frozen=True)
class Chunk:
    """Row groups [group, end) of a task's training images, and of their rows [start, stop); none: its prompts."""

    group: int = 0
    end: int = 0
    first: int = 0
    start: int = 0
    stop: int = 0

    @property
    def images(self) -> int:
        """How many images it has."""
        return self.stop - self.start


def chunks(task: Task) -> list[Chunk]:
    """Returns the chunks of a task, its prompts first."""
    found = [Chunk()]
    with open_parquet(task.train) as file:
        for block in blocks(file, CHUNK_ROWS):
            count = block.end - block.start
            for start in range(0, count, CHUNK_ROWS):
                found.append(Chunk(block.first, block.stop, block.start, start, min(start + CHUNK_ROWS, count)))
    return found


class ChunkEncoder:
    """Encodes chunks by theta0, in float32.

    Args:
        backbone: with theta0's weights.
        device: where to compute.
    """

    def __init__(self, backbone: Backbone, device: torch.device) -> None:
        self._backbone, self._device = backbone, device
        self._backbone.model.to(device)
        self._preprocessor = Preprocessor(backbone.spec.preprocess)

    @torch.no_grad()
    def __call__(self, task: Task, chunk: Chunk, *, moments: bool = True) -> dict[str, Tensor]:
        """Returns a chunk's part of what `Gathered` adds up.

        Args:
            task: whose chunk.
            chunk: rows of its training images, or its prompts.
            moments: whether the moments are wanted, or prototypes' sums alone, to measure what moments cost.

        Returns:
            `text` of the prompts; else `prototype_sums`, and what moments are stored as.
        """
        if not chunk.images:
            return {
                "text": text_sums(self._backbone.model, self._backbone.tokenizer, task.classes, task.templates).cpu()
            }
        with open_parquet(task.train) as file:
            table = file.read_row_groups(range(chunk.group, chunk.end), columns=["image", "label"])
            table = table.slice(chunk.start, chunk.images)
        label_N = torch.from_numpy(np.asarray(table["label"], dtype=np.int64))
        parts = []
        for begin in range(0, len(label_N), BATCH):
            encoded = table["image"].slice(begin, BATCH)
            pixels = np.stack([self._preprocessor.pixels(image.as_py()) for image in encoded])
            images = normalise(torch.from_numpy(pixels).to(self._device), self._backbone.spec.preprocess)
            parts.append(image_features(self._backbone.model, images).cpu())
        feature_ND, classes = torch.cat(parts), len(task.classes)
        sums = torch.zeros(classes, feature_ND.shape[1], dtype=torch.float64)
        sums.index_add_(0, label_N, feature_ND.double())
        if not moments:
            return {"prototype_sums": sums}
        row_N = torch.arange(chunk.start, chunk.stop) + chunk.first
        found = Moments.of(on_grid(feature_ND), label_N, classes, row_N, task.train_rows)
        return {"prototype_sums": sums} | found.tensors()


class Gathered:
    """What the chunks of one task add up to.

    Args:
        task: the task.
    """

    def __init__(self, task: Task) -> None:
        self.task, self._data = task, task.train_fingerprint
        self._text: Tensor | None = None
        self._sums: Tensor | None = None
        self._moments: Moments | None = None

    @property
    def images(self) -> int:
        """How many images are in it."""
        return self._moments.images if self._moments else 0

    def add(self, part: Mapping[str, Tensor]) -> None:
        """Adds a chunk's part. The order changes the last bits of prototypes' sums, which are rounded; no moment."""
        if "text" in part:
            self._text = part["text"]
            return
        moments = Moments.from_tensors(part)
        self._sums = part["prototype_sums"].clone() if self._sums is None else self._sums + part["prototype_sums"]
        self._moments = moments if self._moments is None else self._moments + moments

    def save(self, storage: Place, backbone: str) -> None:
        """Publishes it, once all chunks are there.

        Raises:
            ChangedError: the task's images are no more those of the beginning.
        """
        require(self.task, self._data)
        assert self._text is not None
        assert self._sums is not None
        assert self._moments is not None
        save_prototypes(storage, backbone, self.task, self._sums, self._text, self._moments)


def prototypes_here(
    storage: Place, backbone: Backbone, tasks: Sequence[Task], device: str, say: Any = lambda line: None
) -> int:
    """Makes in this process the prototypes that storage lacks.

    Args:
        storage: storage folder.
        backbone: with theta0's weights.
        tasks: tasks to be covered.
        device: where to compute.
        say: takes a line before it begins.

    Returns:
        How many tasks were encoded now.
    """
    todo = [task for task in tasks if not has_prototypes(storage, backbone.fingerprint, task)]
    encode = ChunkEncoder(backbone, torch.device(device)) if todo else None
    for task in todo:
        say(f"prototypes of {task.name}: {task.train_rows:,} images")
        gathered = Gathered(task)
        for chunk in chunks(task):
            assert encode is not None
            gathered.add(encode(task, chunk))
        gathered.save(storage, backbone.fingerprint)
    return len(todo)
