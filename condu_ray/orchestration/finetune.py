"""Fine-tuning on Ray Train: one fit a lane, whose workers loop over the lane's experts.

A fit costs seconds of start-up, so it is paid once a lane and not once an expert. At its start, and after every
failure, a lane asks the expert store what is left to do: storage is the truth, not what was reported.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from condu_ray.benchmark import load_task
from condu_ray.config import Experiment, Training
from condu_ray.learn.expert import expert_folder, load_expert, save_expert
from condu_ray.learn.loop import DivergedError, Progress, fine_tune
from condu_ray.learn.objective import ClipClassifier
from condu_ray.learn.stream import training_chunks
from condu_ray.merging import subtract
from condu_ray.orchestration.env import Room
from condu_ray.orchestration.plan import Item
from condu_ray.store import artifacts
from condu_ray.vlm.model import BackboneSpec, load_backbone, set_weights

REPORT_SECONDS = 0.5
START_TIMEOUT = 24 * 3600.0


def lane_job(
    config: Experiment, spec: BackboneSpec, tasks: dict[str, Path], items: Sequence[Item], precision: str, lane: int
) -> dict[str, Any]:
    """Returns what a lane's workers need, in plain values.

    Args:
        config: the run's configuration.
        spec: the backbone.
        tasks: folder of each task.
        items: the lane's experts, in order.
        precision: resolved training precision.
        lane: number of the lane.
    """
    return {
        "lane": lane,
        "backbone": asdict(spec),
        "items": [asdict(item) | {"folder": str(tasks[item.task])} for item in items],
        "training": config.training.model_dump(),
        "decoders": config.cluster.decoders,
        "precision": precision,
        "seed": config.seed,
        "storage": str(config.storage.absolute()),
    }


def train_lane(job: dict[str, Any]) -> None:
    """Runs on every worker of a lane: fine-tunes the experts that storage lacks, in order.

    Args:
        job: `lane_job`'s values and `board`, the progress board's handle.

    Raises:
        DivergedError: after telling the board, so that the driver stops instead of trying again.
    """
    import ray.train
    from ray.train.collective import barrier, broadcast_from_rank_zero
    from ray.train.torch import get_device, prepare_model

    from condu_ray.orchestration.stream import started, training_batches

    context, storage = ray.train.get_context(), Path(job["storage"])
    rank, world = context.get_world_rank(), context.get_world_size()
    settings = Training(**job["training"])
    torch.set_num_threads(settings.threads)
    torch.use_deterministic_algorithms(True, warn_only=True)

    done = [artifacts.exists(expert_folder(storage, item["key"])) for item in job["items"]]
    done = broadcast_from_rank_zero(done)  # another rank may see a store that changed meanwhile
    todo = [item for item, there in zip(job["items"], done, strict=True) if not there]
    if not todo:
        return
    tasks = [load_task(Path(item["folder"])) for item in todo]
    chunks = [
        chunk
        for number, task in enumerate(tasks)
        for chunk in training_chunks(
            number,
            str(task.train),
            seed=job["seed"],
            steps=settings.steps,
            batch_size=settings.batch_size,
            rank=rank,
            world=world,
        )
    ]
    stream = started(
        training_batches(
            chunks,
            preprocess=job["backbone"]["preprocess"],
            augment=settings.augment,
            batch_size=settings.batch_size // world,
            decoders=job["decoders"],
        )
    )
    backbone = load_backbone(BackboneSpec(**job["backbone"]))
    theta0 = backbone.snapshot()
    classifier = prepare_model(ClipClassifier(backbone.model))
    for item, task in zip(todo, tasks, strict=True):
        begin = time.perf_counter()
        set_weights(backbone, theta0, await_expert(storage, item["start"]) if item["start"] else None)
        torch.manual_seed(job["seed"])
        report = _reporter(job["board"], job["lane"], task.name) if rank == 0 else lambda progress: None
        try:
            loss = fine_tune(
                classifier,
                stream,
                backbone.tokenizer(task.prompts()),
                settings,
                task=task.name,
                precision=job["precision"],
                preprocess=backbone.spec.preprocess,
                report=report,
            )
        except DivergedError as error:
            ray.get(job["board"].fail.remote(str(error)))
            raise
        if rank == 0:
            delta = subtract(backbone.snapshot(), theta0)
            meta = {
                "task": task.name,
                "key": item["key"],
                "start": item["start"],
                "training": settings.recipe_for(task.name) | {"precision": job["precision"]},
                "seed": job["seed"],
                "workers": world,
                "threads": settings.threads,
                "device": str(get_device()),
                "loss": loss,
                "seconds": time.perf_counter() - begin,
            }
            save_expert(storage, item["key"], delta, meta)
        if world > 1:
            barrier()  # the next expert may start from this one, which only rank 0 has written


def await_expert(storage: Path, key: str) -> dict[str, torch.Tensor]:
    """Loads an expert that another lane may still be training."""
    deadline = time.monotonic() + START_TIMEOUT
    while not artifacts.exists(expert_folder(storage, key)):
        if time.monotonic() > deadline:
            raise TimeoutError(f"expert {key} did not appear in {storage} within {START_TIMEOUT / 3600:g} hours")
        time.sleep(0.2)
    return load_expert(storage, key)


def _reporter(board: Any, lane: int, task: str) -> Any:
    """Returns a callback that tells the board now and then, without waiting for it."""
    last = 0.0

    def report(progress: Progress) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= REPORT_SECONDS or progress.step == progress.steps:
            last = now
            board.tell.remote(lane, {"task": task, **asdict(progress)})

    return report


def fit_lane(job: dict[str, Any], config: Experiment, room: Room, folder: Path) -> None:
    """Runs one lane as a Ray Train fit and waits for its end; called from a thread of the driver.

    Args:
        job: `lane_job`'s values and the board.
        config: the run's configuration.
        room: resources of a worker.
        folder: where Ray Train keeps its own state.

    Raises:
        Exception: what the training raised, after `training.max_failures` restarts.
    """
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    trainer = TorchTrainer(
        train_lane,
        train_loop_config=job,
        scaling_config=ScalingConfig(
            num_workers=config.training.workers,
            use_gpu=room.gpus_per_worker > 0,
            resources_per_worker={"CPU": config.cluster.cpus_per_worker}
            | ({"GPU": room.gpus_per_worker} if room.gpus_per_worker else {}),
        ),
        run_config=RunConfig(
            # A new name each time: what is left to do is asked of the expert store, never restored from here.
            name=f"lane{job['lane']}-{uuid.uuid4().hex[:8]}",
            storage_path=str(folder.absolute()),
            failure_config=FailureConfig(max_failures=config.training.max_failures),
        ),
    )
    trainer.fit()
