"""What a lane's workers do: take experts from the board until none is left.

Storage is the truth about what is done, not what was reported; what another run is training at this moment
(store/claims.py) is waited for.
"""

from __future__ import annotations

import itertools
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from condu_ray.benchmark import Task, load_task
from condu_ray.benchmark.content import ChangedError
from condu_ray.benchmark.meta import TaskError
from condu_ray.benchmark.tasks import TRAIN, take_hashes
from condu_ray.learn.checkpoint_store import CheckpointStore
from condu_ray.learn.chunks import training_chunks
from condu_ray.learn.loop import DivergedError, Progress, WorkersDifferError
from condu_ray.learn.retry import local_stream, lower_rates
from condu_ray.learn.strictness import deterministic
from condu_ray.orchestration.cluster.failure import full_disk_ends
from condu_ray.orchestration.cluster.memory import keep_freed
from condu_ray.orchestration.cluster.sight import SightError, VersionsError, require_sight, require_versions
from condu_ray.orchestration.lanes.lane import Lane, at_once
from condu_ray.orchestration.lanes.reporter import reporter
from condu_ray.orchestration.lanes.trainer import Trainer
from condu_ray.orchestration.watch import telemetry
from condu_ray.plan.expert import PlannedExpert, finished
from condu_ray.store.claims import Claims
from condu_ray.store.layout import claims_folder

LOOK_SECONDS = 0.5
"""How often a lane that has nothing to start on looks again."""
REFUSED_SECONDS = 20.0
"""How long an expert that another run is at is not tried again; until then a lane tries others."""
LONGEST_SECONDS = 5.0
"""How long a lane waits at most that got none of what it tried."""


def work(lane: Lane) -> None:
    """Fine-tunes experts from the board until none is left, on every worker of a lane.

    Args:
        lane: the lane.

    Raises:
        DivergedError: after telling the board, so that the driver stops instead of trying again. All workers raise the
            same one and tell the board, which keeps the first word: whichever of them Ray ends first, it is told.
        ChangedError: likewise, by those workers whose files are others.
        WriteError: likewise, where the disk is full.
        SightError, VersionsError, TaskError: likewise, by those that do not see storage or the data, or have other
            versions than the driver.
    """
    import ray.train
    from ray.train.collective import broadcast_from_rank_zero
    from ray.train.torch import get_device

    context, board, settings = ray.train.get_context(), lane.board, lane.config.training
    rank, world = context.get_world_rank(), context.get_world_size()
    device = get_device()
    if device.type == "cpu":
        keep_freed()
    torch.set_num_threads(settings.threads)
    deterministic(settings)
    take_hashes(lane.hashes)
    tasks = _tasks(lane)
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
                    lane.backbone, tasks, precision=lane.precision, rank=rank, world=world, device=str(device),
                    told=lambda folder: ray.get(board.begun.remote(folder)), contents=lane.contents,
                )  # fmt: skip
            for expert, done in todo:
                begin, tags = time.perf_counter(), {"run": lane.run, "method": expert.method}
                try:
                    kept, report = _checkpoints(lane, expert, world), reporter(lane, rank, expert)
                    with full_disk_ends(board):
                        _train(trainer, expert, stream, tasks[expert.task], report, kept, done)
                except (DivergedError, ChangedError) as error:
                    ray.get(board.fail.remote(str(error)))
                    raise
                if rank == 0:
                    telemetry.inc("condu_experts_trained_total", task=expert.task, lane=lane.number, **tags)
                    telemetry.observe("condu_expert_seconds", time.perf_counter() - begin, **tags)
                    claims.release(expert.key)
                    ray.get(board.trained.remote(expert.key))
            # A pipeline gives back its actors' CPUs at its end, and the next one may have to wait for them.
            next(stream, None)


def _tasks(lane: Lane) -> dict[str, Task]:
    """Loads the tasks, where this node sees storage and data and is as the driver; elsewhere it is no use to go on."""
    import ray

    try:
        require_versions(lane.versions)
        require_sight(lane.backbone.staged)
        return {name: load_task(folder) for name, folder in lane.tasks.items()}
    except (SightError, VersionsError, TaskError) as error:
        ray.get(lane.board.fail.remote(f"{error} (a lane's worker on {socket.gethostname()})"))
        raise


def _train(
    trainer: Trainer,
    expert: PlannedExpert,
    stream: Iterator[Mapping[str, Any]],
    task: Task,
    report: Callable[[Progress], None],
    checkpoints: CheckpointStore | None = None,
    done: int = 0,
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

    refused: dict[str, float] = {}
    pause = LOOK_SECONDS
    while True:
        others = [key for key, until in refused.items() if until > time.monotonic()]
        experts = ray.get(lane.board.take.remote(lane.number, at_once(lane.config), others))
        if experts is None:
            return None
        mine = claimed(experts, claims)
        if mine:
            ray.get(lane.board.keep.remote(lane.number, [expert.key for expert in mine]))
            return mine
        time.sleep(pause)
        if experts:  # a claim that is another's costs requests: the longer nothing is to be had, the rarer it is tried
            refused |= {expert.key: time.monotonic() + REFUSED_SECONDS for expert in experts}
            pause = min(2 * pause, LONGEST_SECONDS)


def claimed(experts: Sequence[PlannedExpert], claims: Claims) -> list[PlannedExpert]:
    """Claims what no other run is at, and has not been since the board looked: what is there by now is let go again."""
    mine = claimable(experts, claims.acquire)
    there = finished(mine)
    for key in there:
        claims.release(key)
    return [expert for expert in mine if expert.key not in there]


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
        decoders=lane.decoders,
        frozen=first.crops == "frozen",
    )
    return started(batches)
