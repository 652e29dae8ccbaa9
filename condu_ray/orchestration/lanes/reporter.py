"""What a training worker says while it trains: to the board, for the terminal, and to Prometheus."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

import torch

from condu_ray.config import Experiment
from condu_ray.learn.loop import Progress
from condu_ray.methods import get
from condu_ray.orchestration.watch import telemetry
from condu_ray.plan.sessions import Item

REPORT_SECONDS = 0.5


def reporter(job: Mapping[str, Any], rank: int, item: Item, config: Experiment) -> Callable[[Progress], None]:
    """Returns a callback for every step, which does something now and then, and waits for nobody.

    Args:
        job: `finetune.lane_job`'s values and `board`, the board's handle.
        rank: the worker among those of its lane; only rank 0 tells the board.
        item: the expert.
        config: the configuration that it is trained by.
    """
    one = get(item.method, config)
    plain = one.starts_from == "pretrained" and one.adapter == "full"
    word = {"key": item.key, "task": item.task, "method": None if plain else item.method}
    last, told = 0.0, 0

    def report(progress: Progress) -> None:
        nonlocal last, told
        now = time.monotonic()
        if now - last >= REPORT_SECONDS or progress.step == progress.steps:
            _export(job, rank, item, progress, progress.step - told)
            last, told = now, progress.step
            if rank == 0:
                job["board"].tell.remote(job["lane"], word | asdict(progress))

    return report


def _export(job: Mapping[str, Any], rank: int, item: Item, progress: Progress, steps: int) -> None:
    """Exports the steps since the export before; what is the same on all ranks, rank 0 exports."""
    lane = {"run": job["run"], "lane": job["lane"]}
    tags = lane | {"method": item.method, "task": item.task}
    telemetry.inc("condu_training_images_total", steps * progress.batch, **tags)
    if torch.cuda.is_available():
        telemetry.gauge("condu_gpu_memory_bytes", torch.cuda.memory_reserved(), rank=rank, **lane)
    if rank == 0:
        telemetry.inc("condu_training_steps_total", steps, **tags)
        telemetry.gauge("condu_training_loss", progress.loss, **tags)
        telemetry.gauge("condu_data_wait_ratio", progress.data_wait, **tags)
