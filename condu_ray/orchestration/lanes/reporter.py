"""What a training worker says while it trains: to the board, for the terminal, and to Prometheus."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict

import torch

from condu_ray.learn.loop import Progress
from condu_ray.methods import get
from condu_ray.orchestration.lanes.lane import Lane
from condu_ray.orchestration.watch import telemetry
from condu_ray.orchestration.watch.news import Word
from condu_ray.plan.expert import PlannedExpert

REPORT_SECONDS = 0.5


def reporter(lane: Lane, rank: int, expert: PlannedExpert) -> Callable[[Progress], None]:
    """Returns a callback for every step, which does something now and then, and waits for nobody.

    Args:
        lane: the lane.
        rank: the worker among those of its lane; only rank 0 tells the board.
        expert: what it trains.
    """
    method = get(expert.method, expert.config)
    plain = method.starts_from == "pretrained" and method.adapter == "full"
    last, told = 0.0, 0

    def report(progress: Progress) -> None:
        nonlocal last, told
        now = time.monotonic()
        if now - last >= REPORT_SECONDS or progress.step == progress.steps:
            _export(lane, rank, expert, progress, progress.step - told)
            last, told = now, progress.step
            if rank == 0:
                word = Word(expert.key, expert.task, None if plain else expert.method, **asdict(progress))
                lane.board.tell.remote(lane.number, word)

    return report


def _export(lane: Lane, rank: int, expert: PlannedExpert, progress: Progress, steps: int) -> None:
    """Exports the steps since the export before; what is the same on all ranks, rank 0 exports."""
    where = {"run": lane.run, "lane": lane.number}
    tags = where | {"method": expert.method, "task": expert.task}
    telemetry.inc("condu_training_images_total", steps * progress.batch, **tags)
    if torch.cuda.is_available():
        telemetry.gauge("condu_gpu_memory_bytes", torch.cuda.memory_reserved(), rank=rank, **where)
    if rank == 0:
        telemetry.inc("condu_training_steps_total", steps, **tags)
        telemetry.gauge("condu_training_loss", progress.loss, **tags)
        telemetry.gauge("condu_data_wait_ratio", progress.data_wait, **tags)
