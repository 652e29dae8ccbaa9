"""Fine-tuning on Ray Train: one fit a lane, whose workers take experts from the board until none is left.

A fit costs seconds of start-up, so it is paid once a lane and not once an expert. Storage is the truth about what is
done, not what was reported; what another run is training at this moment (store/claims.py) is waited for.
"""

from __future__ import annotations

import itertools
import logging
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from condu_ray.benchmark import Task, load_task
from condu_ray.config import Experiment
from condu_ray.learn.chunks import training_chunks
from condu_ray.learn.loop import DivergedError, Progress, WorkersDifferError
from condu_ray.learn.retry import local_stream, lower_rates
from condu_ray.methods.session import session_folder
from condu_ray.orchestration.cluster.env import DECODER_ASKS, DECODER_CPUS, Room
from condu_ray.orchestration.lanes.board import Work
from condu_ray.orchestration.lanes.reporter import reporter
from condu_ray.orchestration.lanes.trainer import Trainer
from condu_ray.orchestration.watch import telemetry
from condu_ray.plan.sessions import Item
from condu_ray.store import artifacts
from condu_ray.store.claims import Claims
from condu_ray.store.experts import adopt_expert, expert_folder
from condu_ray.store.layout import claims_folder
from condu_ray.store.location import Place
from condu_ray.vlm.model import BackboneSpec

log = logging.getLogger(__name__)

MOST = 8
"""Experts that a lane takes at once, at most: they share one data pipeline, whose start costs seconds."""
IMAGES_AT_ONCE = 65_536
"""Training images of what a lane takes at once, but one expert at least: longer ones are worth a pipeline each, and
leave the others to lanes that come later."""
LOOK_SECONDS = 0.5
"""How often a lane that has nothing to start on looks again."""


def work_of(config: Experiment, items: Iterable[Item]) -> list[Work]:
    """Returns experts as the board takes them; those that are there under another key are adopted first.

    Args:
        config: the run's configuration, by which they are trained.
        items: the experts.
    """
    portable, storage, run = config.portable(), config.storage.absolute(), config.run_folder.absolute()
    training = config.training
    work = []
    for item in items:
        if item.same is not None and adopt_expert(storage, item.key, item.same):
            log.info("%s: expert %s of a run that would have stopped is taken", item.task, item.same)
        before = item.earlier[-1] if item.earlier and (item.start or item.state) else None
        needs: Place | None = None
        if item.start is not None:
            needs = expert_folder(storage, item.start)
        elif item.state is not None:
            assert before is not None
            needs = session_folder(run, item.method, item.position - 1, before[0], item.state)
        work.append(
            Work(
                key=item.key,
                done=str(expert_folder(storage, item.key) / artifacts.MANIFEST),
                needs=str(needs / artifacts.MANIFEST) if needs is not None else None,
                before=before[1] if before is not None else None,
                position=item.position,
                stream=f"{training.batch_size} {training.augment}",
                item={"item": asdict(item), "config": portable},
            )
        )
    return work


def lane_job(
    config: Experiment, spec: BackboneSpec, tasks: Mapping[str, Place], precision: str, lane: int
) -> dict[str, Any]:
    """Returns what a lane's workers need, in plain values.

    Args:
        config: the run's configuration.
        spec: the backbone.
        tasks: folder of each task.
        precision: resolved training precision.
        lane: number of the lane.
    """
    return {
        "lane": lane,
        "run": config.run_name,
        "most": at_once(config),
        "backbone": asdict(spec),
        "tasks": {name: str(folder) for name, folder in tasks.items()},
        "storage": str(config.storage.absolute()),
        "threads": config.training.threads,
        "decoders": config.cluster.decoders,
        "precision": precision,
    }


def at_once(config: Experiment) -> int:
    """Returns how many experts a lane takes at once."""
    if config.cluster.experts_at_once:
        return config.cluster.experts_at_once
    images = config.training.steps * config.training.batch_size
    return max(1, min(MOST, IMAGES_AT_ONCE // images))


def train_lane(job: dict[str, Any]) -> None:
    """Runs on every worker of a lane: fine-tunes experts from the board until none is left.

    Args:
        job: `lane_job`'s values and `board`, the board's handle.

    Raises:
        DivergedError: after telling the board, so that the driver stops instead of trying again. All workers raise the
            same one and tell the board, which keeps the first word: whichever of them Ray ends first, it is told.
    """
    import ray.train
    from ray.train.collective import broadcast_from_rank_zero
    from ray.train.torch import get_device

    context, board, storage = ray.train.get_context(), job["board"], Path(job["storage"])
    rank, world = context.get_world_rank(), context.get_world_size()
    torch.set_num_threads(job["threads"])
    torch.use_deterministic_algorithms(True, warn_only=True)
    tasks = {name: load_task(Path(folder)) for name, folder in job["tasks"].items()}
    trainer: Trainer | None = None
    with Claims(claims_folder(storage)) as claims:
        while True:
            # One rank asks: the others would be given other experts.
            taken = broadcast_from_rank_zero(_take(job, claims) if rank == 0 else None)
            if taken is None:
                return
            todo = [(Experiment.model_validate(work["config"]), _item(work["item"])) for work in taken]
            stream = _stream(job, todo, tasks, rank, world)
            if trainer is None:
                trainer = Trainer(
                    BackboneSpec(**job["backbone"]),
                    tasks,
                    precision=job["precision"],
                    rank=rank,
                    world=world,
                    device=str(get_device()),
                )
            for config, item in todo:
                begin, tags = time.perf_counter(), {"run": job["run"], "method": item.method}
                try:
                    _train(job, trainer, config, item, stream, tasks[item.task], reporter(job, rank, item, config))
                except DivergedError as error:
                    ray.get(board.fail.remote(str(error)))
                    raise
                if rank == 0:
                    telemetry.inc("condu_experts_trained_total", task=item.task, lane=job["lane"], **tags)
                    telemetry.observe("condu_expert_seconds", time.perf_counter() - begin, **tags)
                    claims.release(item.key)
                    ray.get(board.trained.remote(item.key))
            # A pipeline gives back its actors' CPUs at its end, and the next one may have to wait for them.
            next(stream, None)


def _train(
    job: Mapping[str, Any],
    trainer: Trainer,
    config: Experiment,
    item: Item,
    stream: Iterator[Mapping[str, Any]],
    task: Task,
    report: Callable[[Progress], None],
) -> None:
    """Trains one expert on the stream's next batches, and again where it diverges and the configuration says so."""
    own = itertools.islice(stream, config.training.steps)
    try:
        return trainer.train(config, item, own, report)
    except DivergedError as error:
        rates = lower_rates(config, error)
        lower = next(rates)
    for _ in own:  # the stream's next batches are the next expert's
        pass
    while True:
        try:
            return trainer.train(lower, item, local_stream(config, task, job["backbone"]["preprocess"]), report)
        except WorkersDifferError:
            raise
        except DivergedError:
            lower = next(rates)


def _item(values: Mapping[str, Any]) -> Item:
    return Item(**{**values, "earlier": tuple((task, key) for task, key in values["earlier"])})


def _take(job: Mapping[str, Any], claims: Claims) -> list[Mapping[str, Any]] | None:
    """Takes work from the board that no other run is at, waiting for some; None when all is done."""
    import ray

    while True:
        work = ray.get(job["board"].take.remote(job["lane"], job["most"]))
        if work is None:
            return None
        mine = claimable(work, claims.acquire)
        if mine:
            ray.get(job["board"].keep.remote(job["lane"], [entry["item"]["key"] for entry in mine]))
            return mine
        time.sleep(LOOK_SECONDS)


def claimable(work: Sequence[Mapping[str, Any]], acquire: Callable[[str], bool]) -> list[Mapping[str, Any]]:
    """Claims what no other run is at, but for what starts from it: that can be taken when it is there.

    Args:
        work: items as the board hands them out.
        acquire: claims a key; False when it is another run's.
    """
    mine: list[Mapping[str, Any]] = []
    theirs: set[str] = set()
    for entry in work:
        item = entry["item"]
        before = item["earlier"][-1][1] if item["start"] or item["state"] else None
        if before not in theirs and acquire(item["key"]):
            mine.append(entry)
        else:
            theirs.add(item["key"])
    return mine


def _stream(
    job: Mapping[str, Any],
    todo: Sequence[tuple[Experiment, Item]],
    tasks: Mapping[str, Task],
    rank: int,
    world: int,
) -> Any:
    """Returns the training batches of some experts, one after the other."""
    from condu_ray.orchestration.lanes.stream import started, training_batches

    first = todo[0][0].training  # the board gives only experts of one batch size and augmentation at once
    chunks = [
        chunk
        for number, (config, item) in enumerate(todo)
        for chunk in training_chunks(
            number,
            str(tasks[item.task].train),
            seed=config.seed,
            steps=config.training.steps,
            batch_size=first.batch_size,
            rank=rank,
            world=world,
        )
    ]
    batches = training_batches(
        chunks,
        preprocess=job["backbone"]["preprocess"],
        augment=first.augment,
        batch_size=first.batch_size // world,
        decoders=job["decoders"],
    )
    return started(batches)


def fit_lane(job: dict[str, Any], config: Experiment, room: Room, folder: Place) -> None:
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

    from condu_ray.orchestration.watch.faults import CountFaults

    lane, cluster = {"run": job["run"], "lane": job["lane"]}, config.cluster
    trainer = TorchTrainer(
        train_lane,
        train_loop_config=job,
        scaling_config=ScalingConfig(
            num_workers=config.training.workers,
            use_gpu=room.gpus_per_worker > 0,
            resources_per_worker={"CPU": cluster.cpus_per_worker + cluster.decoders * (DECODER_CPUS - DECODER_ASKS)}
            | ({"GPU": room.gpus_per_worker} if room.gpus_per_worker else {}),
        ),
        run_config=RunConfig(
            # A new name each time: what is left to do is asked of the expert store, never restored from here.
            name=f"lane{job['lane']}-{uuid.uuid4().hex[:8]}",
            storage_path=str(folder.absolute()),
            failure_config=FailureConfig(max_failures=config.training.max_failures),
            callbacks=[CountFaults(job["run"])],  # type: ignore[list-item]  # annotated for Train V1
        ),
    )
    telemetry.gauge("condu_lanes_active", 1, **lane)
    try:
        trainer.fit()
    finally:
        telemetry.gauge("condu_lanes_active", 0, **lane)
