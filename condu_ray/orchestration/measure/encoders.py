"""Prototypes of all tasks in one streaming pass of Ray Data; what they are made of depends on theta0 and data alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from ray.data import ActorPoolStrategy
from torch import Tensor

from condu_ray.benchmark import Task, load_task
from condu_ray.benchmark.rows import blocks, open_parquet
from condu_ray.learn.prototype_store import has_prototypes, save_prototypes
from condu_ray.orchestration.cluster.room import EVALUATOR_CPUS, Room
from condu_ray.orchestration.lanes.stream import chunk_dataset
from condu_ray.store.location import Place
from condu_ray.vlm.model import BackboneSpec, load_backbone
from condu_ray.vlm.preprocess import Preprocessor, normalise
from condu_ray.vlm.zeroshot import image_features, text_sums

CHUNK_ROWS, BATCH = 512, 64
CHUNKS_PER_ENCODER = 32
"""Work that is worth another encoder, whose start takes seconds."""


class Encode:
    """Ray Data actor: row ranges of training images in, per-class sums of theta0's features out.

    A row range with no rows stands for the task's prompts.
    """

    def __init__(self, backbone: dict[str, Any], threads: int, cuda: bool) -> None:
        torch.set_num_threads(threads)
        self._backbone = load_backbone(BackboneSpec(**backbone))
        self._device = torch.device("cuda" if cuda else "cpu")
        self._backbone.model.to(self._device)
        self._preprocessor = Preprocessor(backbone["preprocess"])

    def __call__(self, rows: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Encodes the one chunk that a batch of size 1 holds."""
        folder, number, start, stop = (rows[name][0] for name in ("folder", "task", "start", "stop"))
        task = load_task(str(folder))
        if start == stop:
            text = text_sums(self._backbone.model, self._backbone.tokenizer, task.classes, task.templates)
            labels, counts, sums = np.arange(len(text)), np.zeros(len(text), np.int64), text.cpu().double().numpy()
        else:
            groups = range(int(rows["group"][0]), int(rows["end"][0]))
            labels, counts, sums = self._sums(task, groups, int(start), int(stop))
        return {"task": np.full(len(labels), number), "label": labels, "count": counts, "sum": sums}

    def _sums(self, task: Task, groups: range, start: int, stop: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        with open_parquet(task.train) as file:
            table = file.read_row_groups(groups, columns=["image", "label"]).slice(start, stop - start)
        labels = np.asarray(table["label"], dtype=np.int64)
        parts = []
        for begin in range(0, len(labels), BATCH):
            encoded = table["image"].slice(begin, BATCH)
            pixels = np.stack([self._preprocessor.pixels(image.as_py()) for image in encoded])
            images = normalise(torch.from_numpy(pixels).to(self._device), self._backbone.spec.preprocess)
            parts.append(image_features(self._backbone.model, images).cpu().double())
        present, inverse = np.unique(labels, return_inverse=True)
        features = torch.cat(parts)
        sums = torch.zeros(len(present), features.shape[1], dtype=torch.float64)
        sums.index_add_(0, torch.from_numpy(inverse), features)
        return present, np.bincount(inverse), sums.numpy()


def _row_ranges(number: int, task: Task) -> list[dict[str, Any]]:
    base = {"folder": str(task.folder), "task": number}
    rows = [base | {"group": 0, "end": 0, "start": 0, "stop": 0}]
    with open_parquet(task.train) as file:
        for block in blocks(file, CHUNK_ROWS):
            count = block.end - block.start
            for start in range(0, count, CHUNK_ROWS):
                stop = min(start + CHUNK_ROWS, count)
                rows.append(base | {"group": block.first, "end": block.stop, "start": start, "stop": stop})
    return rows


def _progress(images: Sequence[int], counts: Mapping[int, Tensor]) -> str:
    """Returns how many tasks and images are encoded, of those that are to be."""
    done = [int(count.sum()) for count in counts.values()]
    tasks = sum(found == wanted for found, wanted in zip(done, images, strict=True))
    return f"{tasks} of {len(images)} tasks, {sum(done):,} of {sum(images):,} images"


def make_prototypes(
    storage: Place,
    spec: BackboneSpec,
    backbone: str,
    tasks: Sequence[Task],
    room: Room,
    threads: int,
    tell: Callable[[str], None],
) -> int:
    """Encodes the training images and prompts of every task that has no stored features yet.

    Args:
        storage: storage folder.
        spec: the backbone, which each actor loads for itself.
        backbone: theta0's fingerprint.
        tasks: tasks to be covered.
        room: how many encoders, with how much GPU.
        threads: CPU threads an encoder.
        tell: takes how far it is, in words for people, whenever a chunk is there.

    Returns:
        The number of tasks that were encoded now.
    """
    todo = [task for task in tasks if not has_prototypes(storage, backbone, task)]
    if not todo:
        return 0
    rows = [row for number, task in enumerate(todo) for row in _row_ranges(number, task)]
    encoded = chunk_dataset(rows).map_batches(
        Encode,
        batch_size=1,
        fn_constructor_kwargs={
            "backbone": asdict(spec),
            "threads": threads,
            "cuda": room.gpus_per_evaluator > 0,
        },
        compute=ActorPoolStrategy(size=min(room.evaluators, max(1, len(rows) // CHUNKS_PER_ENCODER))),
        num_cpus=EVALUATOR_CPUS,
        num_gpus=room.gpus_per_evaluator,
    )
    sums: dict[int, Tensor] = {}
    counts = {number: torch.zeros(len(task.classes), dtype=torch.int64) for number, task in enumerate(todo)}
    texts: dict[int, Tensor] = {}
    images = [0] * len(todo)
    for chunk in rows:
        images[chunk["task"]] += chunk["stop"] - chunk["start"]
    tell(_progress(images, counts))
    for batch in encoded.iter_batches(batch_size=None, batch_format="numpy"):
        values = torch.from_numpy(np.stack(list(batch["sum"])).astype(np.float64))
        for row, (number, label, count) in enumerate(zip(batch["task"], batch["label"], batch["count"], strict=True)):
            shape = (len(todo[number].classes), values.shape[1])
            if count == 0:
                texts.setdefault(number, torch.zeros(shape))[label] = values[row].float()
            else:
                sums.setdefault(number, torch.zeros(shape, dtype=torch.float64))[label] += values[row]
                counts[number][label] += int(count)
        tell(_progress(images, counts))
    for number, task in enumerate(todo):
        save_prototypes(storage, backbone, task, sums[number], counts[number], texts[number])
    return len(todo)
