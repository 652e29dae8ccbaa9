"""A lane: one fit of Ray Train, whose workers take experts from the board until none is left.

A fit costs seconds of start-up, so it is paid once a lane and not once an expert. The actor that controls a fit loads
this module and trains nothing, so what workers need is loaded by them.
"""

from __future__ import annotations

import uuid
from typing import Any

from condu_ray.orchestration.cluster.ray_storage import ray_storage
from condu_ray.orchestration.cluster.room import DECODER_ASKS, DECODER_CPUS, Room
from condu_ray.orchestration.lanes.lane import Lane
from condu_ray.orchestration.watch import telemetry
from condu_ray.store.location import Place


def train_lane(given: dict[str, Lane]) -> None:
    """Runs on every worker of a lane.

    Args:
        given: the lane, as `lane`.

    Raises:
        DivergedError: as `work`.
    """
    from condu_ray.orchestration.lanes.work import work

    work(given["lane"])


def trainer_of(workers: int, gpus: float) -> Any:
    """Returns the trainer of a lane: a worker alone on a CPU needs no process group, whose set-up takes seconds.

    Ray's controller of a fit then loads no torch either, which takes two seconds and 300 MB a lane.
    """
    if workers == 1 and not gpus:
        from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

        return DataParallelTrainer
    from ray.train.torch import TorchTrainer

    return TorchTrainer


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

    from condu_ray.orchestration.watch.faults import CountFaults

    training, cluster = lane.config.training, lane.config.cluster
    trainer = trainer_of(training.workers, room.gpus_per_worker)(
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
