"""What a cluster has room for: lanes, evaluators, and what each of them asks Ray for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from condu_ray.config import Experiment

DECODER_CPUS = 0.2
"""Logical CPUs of a data worker: fractional, so that two cores hold two trainers with their data workers."""
DECODER_ASKS = 0.01
"""What a data worker asks Ray for; the rest its trainer has asked for already. A data worker that cannot be placed
beside its trainer deadlocks both: once a node is gone, the lane that it had starts again wherever there is room for a
trainer, and must not find room that data workers of the others were to have."""
EVALUATOR_CPUS = 0.25
"""Logical CPUs of an evaluator or encoder actor, for the same reason."""
MOST_DECODERS = 4
"""Data workers a training worker that are chosen where nobody says how many: a photograph takes a core 2 to 3 ms (it is
cropped and resized as open_clip does), so that four give a GPU 1,300 to 2,000 a second; each takes memory, of which
`cluster/sizing.py` counts so many."""
TRIAL_CPUS = 0.01
"""Logical CPUs of a sweep's trial, which merges now and then; Tune takes no zero."""


class ResourceError(RuntimeError):
    """The cluster cannot hold what the configuration asks for; the message has the numbers."""


@dataclass(frozen=True)
class Room:
    """What the cluster has room for.

    Attributes:
        lanes: experts trained side by side.
        gpus_per_worker: GPUs a training worker.
        gpus_per_evaluator: GPUs an evaluator or encoder.
        evaluators: evaluator actors.
        decoders: data workers a training worker.
    """

    lanes: int
    gpus_per_worker: float
    gpus_per_evaluator: float
    evaluators: int
    decoders: int = 1


def room(
    resources: dict[str, float],
    *,
    workers: int,
    threads: int,
    cpus_per_worker: float,
    gpus_per_worker: float | None,
    decoders: int,
    lanes: int,
    evaluators: int,
    nodes: Sequence[Mapping[str, float]] = (),
) -> Room:
    """Works out how many lanes and evaluators fit, and refuses what would wait for ever.

    Args:
        resources: `ray.cluster_resources()`.
        workers: training workers a lane.
        threads: CPU threads a worker.
        cpus_per_worker: logical CPUs a worker.
        gpus_per_worker: GPUs a worker; None: 1 where there are any, shared where there is only one.
        decoders: data workers a training worker; 0: what the CPUs of a GPU are enough for, 1 without GPUs.
        lanes: lanes asked for; 0: as many as fit.
        evaluators: evaluators asked for; 0: one for two lanes on CPU, one in eight GPUs otherwise, at least one.
        nodes: what each node has of it, for no worker is on two; none: one node has it all.

    Raises:
        ResourceError: not even one lane fits, or not as many as were asked for.
    """
    cpus, gpus = resources.get("CPU", 0.0), resources.get("GPU", 0.0)
    gpu_each, gpu_evaluator = 0.0, 0.0
    if gpus and gpus_per_worker != 0:
        # A single GPU is shared by trainer and evaluator; with more, evaluators have their own. None asks for more
        # than a worker, whose place it takes where lanes have ended.
        gpu_each = gpus_per_worker or (0.6 if gpus < 2 else 1.0)
        gpu_evaluator = max(0.0, 1.0 - gpu_each) if gpus < 2 and gpu_each > 0.5 else min(1.0, gpu_each)
    elif gpus_per_worker:
        raise ResourceError(f"cluster.gpus_per_worker is {gpus_per_worker:g}, but the cluster has no GPU")
    if workers > 1 and 0 < gpu_each <= 0.5:
        raise ResourceError(
            f"cluster.gpus_per_worker is {gpu_each:g}: of the {workers} workers of a lane several would be on one GPU, "
            "which NCCL refuses; give cluster.gpus_per_worker 1, or training.workers 1, of which more lanes fit"
        )
    nodes = nodes or [resources]
    if not decoders:
        beside = sum(node.get("CPU", 0.0) for node in nodes if node.get("GPU"))  # a CPU elsewhere is of no use to a GPU
        decoders = min(MOST_DECODERS, max(1, int(beside // max(gpus, 1)) - 1)) if gpu_each else 1
    worker_cpus = cpus_per_worker + decoders * DECODER_CPUS
    lane_cpus = workers * worker_cpus
    wanted_evaluators = evaluators or (max(1, int(gpus // 8)) if gpu_each else 0)
    fit = int((cpus - max(1, wanted_evaluators) * EVALUATOR_CPUS) / lane_cpus + 1e-9)
    if 0 < gpu_each == gpu_evaluator < 1:
        fit = min(fit, (places(gpus, gpu_each) - wanted_evaluators) // workers)
    elif gpu_each:
        fit = min(fit, int((gpus - wanted_evaluators * gpu_evaluator) / (workers * gpu_each) + 1e-9))
    if fit < 1:
        raise ResourceError(
            f"the cluster has {cpus:g} CPUs and {gpus:g} GPUs; one lane of {workers} workers needs {lane_cpus:g} CPUs "
            f"and {workers * gpu_each:g} GPUs besides {max(1, wanted_evaluators) * EVALUATOR_CPUS:g} CPUs and "
            f"{wanted_evaluators * gpu_evaluator:g} GPUs for evaluation: lower training.workers, "
            "cluster.cpus_per_worker or cluster.decoders, or add nodes"
        )
    held = seats(nodes, worker_cpus, gpu_each, max(1, wanted_evaluators))
    if held < workers:
        most = max(nodes, key=lambda node: (node.get("GPU", 0.0) if gpu_each else 0.0, node.get("CPU", 0.0)))
        raise ResourceError(
            f"the cluster's {len(nodes)} nodes hold {held} training workers beside evaluators, and a lane has {workers}"
            f", of {worker_cpus:g} CPUs and {gpu_each:g} GPUs each, all of one worker's on one node; the largest node "
            f"has {most.get('CPU', 0.0):g} CPUs and {most.get('GPU', 0.0):g} GPUs: lower cluster.cpus_per_worker, "
            "cluster.gpus_per_worker, cluster.decoders or training.workers, or add nodes"
        )
    fit = min(fit, held // workers)
    if lanes > fit:
        raise ResourceError(f"training.lanes is {lanes}, but the cluster has room for {fit}")
    busy = max(1, int(cpus // (workers * threads)))  # more lanes than cores would only share them
    chosen = lanes or (fit if gpu_each else min(fit, busy))
    spare = int((cpus - chosen * lane_cpus) / EVALUATOR_CPUS + 1e-9)
    return Room(chosen, gpu_each, gpu_evaluator, wanted_evaluators or max(1, min(chosen // 2, spare)), decoders)


def seats(nodes: Sequence[Mapping[str, float]], cpus: float, gpus: float, evaluators: int = 0) -> int:
    """Returns how many training workers, or the like, nodes hold, each whole on one, where evaluators leave them CPUs.

    Args:
        nodes: what each has.
        cpus: of a worker, its data workers' with them.
        gpus: of a worker.
        evaluators: they stand where they cost the fewest workers.
    """

    def held(has_cpus: float, has_gpus: float) -> int:
        many = int(has_cpus / cpus + 1e-9)
        return min(many, places(has_gpus, gpus)) if gpus else many

    left = [(node.get("CPU", 0.0), node.get("GPU", 0.0)) for node in nodes]
    for _ in range(evaluators):
        cost = {
            place: held(has_cpus, has_gpus) - held(has_cpus - EVALUATOR_CPUS, has_gpus)
            for place, (has_cpus, has_gpus) in enumerate(left)
            if has_cpus + 1e-9 >= EVALUATOR_CPUS
        }
        if cost:
            place = min(cost, key=lambda one: cost[one])
            left[place] = left[place][0] - EVALUATOR_CPUS, left[place][1]
    return sum(held(*one) for one in left)


def places(gpus: float, share: float) -> int:
    """Returns how many may have a share of a GPU: one holds 0.4 twice, and what is left of it is nobody's."""
    return int(gpus) * int(1 / share + 1e-9) if share < 1 else int(gpus / share + 1e-9)


def room_for(config: Experiment, resources: dict[str, float] | None = None) -> Room:
    """Works out `room` for a configuration.

    Args:
        config: the configuration.
        resources: a cluster's, all on one node; None: those of the cluster that is up, node by node.

    Raises:
        ResourceError: as `room`.
    """
    import ray

    training, cluster = config.training, config.cluster
    nodes = [] if resources is not None else [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return room(
        ray.cluster_resources() if resources is None else resources,
        workers=training.workers,
        threads=training.threads,
        cpus_per_worker=cluster.cpus_per_worker,
        gpus_per_worker=cluster.gpus_per_worker,
        decoders=cluster.decoders,
        lanes=training.lanes,
        evaluators=config.evaluation.evaluators,
        nodes=nodes,
    )
