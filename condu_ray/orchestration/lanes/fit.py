"""A lane: one fit of Ray Train, whose workers take experts from the board until none is left.

A fit costs seconds of start-up, so it is paid once a lane and not once an expert. Storage is the truth about what is
done, not what was reported; what another run is training at this moment (store/claims.py) is waited for.
"""

from __future__ import annotations

import itertools
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from condu_ray.benchmark import Task, load_task
from condu_ray.benchmark.tasks import TRAIN
from condu_ray.learn.checkpoint_store import CheckpointStore
from condu_ray.learn.chunks import training_chunks
from condu_ray.learn.loop import DivergedError, Progress, WorkersDifferError
from condu_ray.learn.retry import local_stream, lower_rates
from condu_ray.orchestration.cluster.ray_storage import ray_storage
from condu_ray.orchestration.cluster.room import DECODER_ASKS, DECODER_CPUS, Room
from condu_ray.orchestration.lanes.lane import Lane, at_once
from condu_ray.orchestration.lanes.reporter import reporter
from condu_ray.orchestration.lanes.trainer import Trainer
from condu_ray.orchestration.watch import telemetry
from condu_ray.plan.expert import PlannedExpert
from condu_ray.store.claims import Claims
from condu_ray.store.layout import claims_folder
from condu_ray.store.location import Place

LOOK_SECONDS = 0.5
"""How often a lane that has nothing to start on looks again."""


def train_lane(given: dict[str, Lane]) -> None:
    """Runs on every worker of a lane: fine-tunes experts from the board until none is left.

    Args:
        given: the lane, as `lane`.

    Raises:
        DivergedError: after telling the board, so that the driver stops instead of trying again. All workers raise the
            same one and tell the board, which keeps the first word: whichever of them Ray ends first, it is told.
    """
    import ray.train
    from ray.train.collective import broadcast_from_rank_zero
    from ray.train.torch import get_device

    lane = given["lane"]
    context, board, settings = ray.train.get_context(), lane.board, lane.config.training
    rank, world = context.get_world_rank(), context.get_world_size()
    torch.set_num_threads(settings.threads)
    torch.use_deterministic_algorithms(settings.deterministic, warn_only=True)
    tasks = {name: load_task(folder) for name, folder in lane.tasks.items()}
    trainer: Trainer | None = None
    with Claims(claims_folder(lane.config.storage)) as claims:
        while True:
            # One rank asks: the others would be given other experts.
            taken = _take(lane, claims) if rank == 0 else None
            begins = [kept.latest() if (kept := _checkpoints(lane, one, world)) else 0 for one in taken or ()]
            todo = broadcast_from_rank_zero(None if taken is None else [*zip(taken, begins, strict=True)])
            if todo is None:
                return
            stream = _stream(lane, todo, tasks, rank, world)
            if trainer is None:
                trainer = Trainer(
                    lane.backbone, tasks, precision=lane.precision, rank=rank, world=world, device=str(get_device())
                )
            for expert, done in todo:
                begin, tags = time.perf_counter(), {"run": lane.run, "method": expert.method}
                try:
                    kept, report = _checkpoints(lane, expert, world), reporter(lane, rank, expert)
                    _train(trainer, expert, stream, tasks[expert.task], report, kept, done)
                except DivergedError as error:
                    ray.get(board.fail.remote(str(error)))
                    raise
                if rank == 0:
                    telemetry.inc("condu_experts_trained_total", task=expert.task, lane=lane.number, **tags)
                    telemetry.observe("condu_expert_seconds", time.perf_counter() - begin, **tags)
                    claims.release(expert.key)
                    ray.get(board.trained.remote(expert.key))
            # A pipeline gives back its actors' CPUs at its end, and the next one may have to wait for them.
            next(stream, None)


def _train(
    trainer: Trainer,
    expert: PlannedExpert,
    stream: Iterator[Mapping[str, Any]],
    task: Task,
    report: Callable[[Progress], None],
    checkpoints: CheckpointStore | None,
    done: int,
) -> None:
    """Trains one expert on the stream's next batches, and again where it diverges and the configuration says so."""
    own = itertools.islice(stream, expert.config.training.steps - done)
    try:
        return trainer.train(expert, own, report, checkpoints, done)
    except DivergedError as error:
        rates = lower_rates(expert.config, error)
        lower = next(rates)
    for _ in own:  # the stream's next batches are the next expert's
        pass
    while True:
        try:
            again = local_stream(expert.config, task, trainer.backbone.spec.preprocess)
            return trainer.train(replace(expert, config=lower), again, report)
        except WorkersDifferError:
            raise
        except DivergedError:
            lower = next(rates)


def _take(lane: Lane, claims: Claims) -> list[PlannedExpert] | None:
    """Takes work from the board that no other run is at, waiting for some; None when all is done."""
    import ray

    while True:
        experts = ray.get(lane.board.take.remote(lane.number, at_once(lane.config)))
        if experts is None:
            return None
        mine = claimable(experts, claims.acquire)
        if mine:
            ray.get(lane.board.keep.remote(lane.number, [expert.key for expert in mine]))
            return mine
        time.sleep(LOOK_SECONDS)


def claimable(experts: Sequence[PlannedExpert], acquire: Callable[[str], bool]) -> list[PlannedExpert]:
    """Claims what no other run is at, but for what starts from it: that can be taken when it is there.

    Args:
        experts: as the board hands them out.
        acquire: claims a key; False when it is another run's.
    """
    mine: list[PlannedExpert] = []
    theirs: set[str] = set()
    for expert in experts:
        if expert.before not in theirs and acquire(expert.key):
            mine.append(expert)
        else:
            theirs.add(expert.key)
    return mine


def _checkpoints(lane: Lane, expert: PlannedExpert, world: int) -> CheckpointStore | None:
    """Returns where an expert is kept while it is trained; None: nowhere."""
    from ray.train.torch import get_device

    device = get_device()
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    by = {"workers": world, "threads": expert.config.training.threads, "device": where, "torch": torch.__version__}
    wanted = expert.config.training.checkpoint_minutes > 0
    return CheckpointStore(lane.config.storage, expert.key, expert.task, by) if wanted else None


def _stream(
    lane: Lane, todo: Sequence[tuple[PlannedExpert, int]], tasks: Mapping[str, Task], rank: int, world: int
) -> Any:
    """Returns the training batches of some experts, one after the other, each without those of the steps it has."""
    from condu_ray.orchestration.lanes.stream import started, training_batches

    first = todo[0][0].config.training  # the board gives only experts of one batch size and augmentation at once
    chunks = [
        chunk
        for expert, done in todo
        for chunk in training_chunks(
            str(tasks[expert.task].folder / TRAIN),
            seed=expert.config.seed,
            steps=expert.config.training.steps,
            batch_size=first.batch_size,
            rank=rank,
            world=world,
            begin=done,
        )
    ]
    batches = training_batches(
        chunks,
        preprocess=lane.backbone.preprocess,
        augment=first.augment,
        batch_size=first.batch_size // world,
        decoders=lane.config.cluster.decoders,
        frozen=first.crops == "frozen",
    )
    return started(batches)


def fit_lane(lane: Lane, room: Room, folder: Place) -> None:
    """Runs a lane as a Ray Train fit and waits for its end; called from a thread of the driver.

    Args:
        lane: the lane.
        room: resources of a worker.
        folder: where Ray Train keeps its own state.

    Raises:
        Exception: what the training raised, after `training.max_failures` restarts.
    """
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    from condu_ray.orchestration.watch.faults import CountFaults

    training, cluster = lane.config.training, lane.config.cluster
    trainer = TorchTrainer(
        train_lane,
        train_loop_config={"lane": lane},
        scaling_config=ScalingConfig(
            num_workers=training.workers,
            use_gpu=room.gpus_per_worker > 0,
            resources_per_worker={"CPU": cluster.cpus_per_worker + cluster.decoders * (DECODER_CPUS - DECODER_ASKS)}
            | ({"GPU": room.gpus_per_worker} if room.gpus_per_worker else {}),
        ),
        run_config=RunConfig(
            # A new name each time: what is left to do is asked of the expert store, never restored from here.
            name=f"lane{lane.number}-{uuid.uuid4().hex[:8]}",
            **ray_storage(folder),
            failure_config=FailureConfig(max_failures=training.max_failures),
            callbacks=[CountFaults(lane.run)],  # type: ignore[list-item]  # annotated for Train V1
        ),
    )
    telemetry.gauge("condu_lanes_active", 1, run=lane.run, lane=lane.number)
    try:
        trainer.fit()
    finally:
        telemetry.gauge("condu_lanes_active", 0, run=lane.run, lane=lane.number)
