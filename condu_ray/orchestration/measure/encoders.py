"""Prototypes and routers of all tasks in one pass of theta0; they depend on theta0 and data alone.

Much is streamed by Ray Data over several encoders; what is not worth a second one is encoded by the first evaluator,
which is wanted anyway and has theta0.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import ray
import torch
from safetensors.torch import load, save

from condu_ray.benchmark import Task, load_task
from condu_ray.learn.prototype_pass import Chunk, ChunkEncoder, Gathered, chunks
from condu_ray.learn.prototype_store import has_prototypes
from condu_ray.orchestration.cluster.room import EVALUATOR_CPUS, Room
from condu_ray.store.location import Place
from condu_ray.vlm.model import BackboneSpec, load_backbone

CHUNKS_PER_ENCODER = 32
"""Work that is worth another encoder, whose start takes seconds."""
IN_HAND = 2
"""Chunks that an evaluator has been given: one in hand and one queued, so that it never waits for the driver."""


class Encode:
    """Ray Data actor: chunks of tasks in, their parts of what prototypes and routers are made of out."""

    def __init__(self, backbone: dict[str, Any], threads: int, cuda: bool) -> None:
        torch.set_num_threads(threads)
        self._encode = ChunkEncoder(load_backbone(BackboneSpec(**backbone)), torch.device("cuda" if cuda else "cpu"))

    def __call__(self, rows: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Encodes the one chunk that a batch of size 1 holds; its tensors travel as one safetensors file."""
        chunk = Chunk(**{name: int(rows[name][0]) for name in ("group", "end", "first", "start", "stop")})
        part = self._encode(load_task(str(rows["folder"][0])), chunk)
        return {"task": rows["task"], "part": np.array([save(part)], dtype=object)}


def _progress(images: Sequence[int], done: Sequence[int]) -> str:
    """Returns how many tasks and images are encoded, of those that are to be."""
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
    evaluator: Callable[[], Any],
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
        evaluator: starts the run's first evaluator and returns its handle; called where it is to encode.

    Returns:
        The number of tasks that were encoded now.
    """
    todo = [task for task in tasks if not has_prototypes(storage, backbone, task)]
    if not todo:
        return 0
    parts = [(number, chunk) for number, task in enumerate(todo) for chunk in chunks(task)]
    gathered = {number: Gathered(task) for number, task in enumerate(todo)}  # first, for they know what is to be read
    several = min(room.evaluators, max(1, len(parts) // CHUNKS_PER_ENCODER))
    if several == 1:
        encoded = _by_evaluator(evaluator(), todo, parts)
    else:
        encoded = _by_encoders(several, todo, parts, spec, room, threads)
    images = [sum(chunk.images for owner, chunk in parts if owner == number) for number in range(len(todo))]
    done = [0] * len(todo)
    left = [sum(owner == number for owner, _ in parts) for number in range(len(todo))]
    tell(_progress(images, done))
    for number, part in encoded:
        one = gathered[number]
        one.add(load(part))
        done[number], left[number] = one.images, left[number] - 1
        if not left[number]:
            gathered.pop(number).save(storage, backbone)  # some MB each
        tell(_progress(images, done))
    return len(todo)


def _by_evaluator(
    evaluator: Any, tasks: Sequence[Task], parts: Sequence[tuple[int, Chunk]]
) -> Iterator[tuple[int, bytes]]:
    """Yields each chunk's task and part; an evaluator that dies comes back, and is asked again, by Ray."""
    asked: deque[tuple[int, Any]] = deque()
    for number, chunk in parts:
        asked.append((number, evaluator.encode.remote(str(tasks[number].folder), chunk)))
        if len(asked) == IN_HAND:
            first, reference = asked.popleft()
            yield first, ray.get(reference)
    for number, reference in asked:
        yield number, ray.get(reference)


def _by_encoders(
    count: int, tasks: Sequence[Task], parts: Sequence[tuple[int, Chunk]], spec: BackboneSpec, room: Room, threads: int
) -> Iterator[tuple[int, bytes]]:
    """Yields each chunk's task and part, encoded by so many actors."""
    from ray.data import ActorPoolStrategy

    from condu_ray.orchestration.lanes.stream import chunk_dataset

    rows = [{"folder": str(tasks[number].folder), "task": number} | asdict(chunk) for number, chunk in parts]
    encoded = chunk_dataset(rows).map_batches(
        Encode,
        batch_size=1,
        fn_constructor_kwargs={
            "backbone": asdict(spec),
            "threads": threads,
            "cuda": room.gpus_per_evaluator > 0,
        },
        compute=ActorPoolStrategy(size=count),
        num_cpus=EVALUATOR_CPUS,
        num_gpus=room.gpus_per_evaluator,
    )
    for batch in encoded.iter_batches(batch_size=None, batch_format="numpy"):
        yield from zip(batch["task"].tolist(), batch["part"], strict=True)
