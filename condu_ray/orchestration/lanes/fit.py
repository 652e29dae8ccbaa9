"""A lane: one fit of Ray Train, whose workers take experts from the board until none is left.

A fit costs seconds of start-up, so it is paid once a lane and not once an expert. The actor that controls a fit loads
no torch, so what workers need is loaded by them.
"""

from __future__ import annotations

import uuid
from contextlib import suppress
from typing import Any

from condu_ray.orchestration.cluster.ray_storage import ray_storage
from condu_ray.orchestration.cluster.room import DECODER_ASKS, DECODER_CPUS, Room
from condu_ray.orchestration.lanes.lane import Lane
from condu_ray.orchestration.lanes.places import Places
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


class Fit:
    """The fit of a lane, seen from the driver.

    Args:
        lane: the lane.
        room: resources of a worker.
        folder: where Ray Train keeps its own state.
        places: where controllers stand.
    """

    def __init__(self, lane: Lane, room: Room, folder: Place, places: Places) -> None:
        self._lane, self._room, self._folder, self._places = lane, room, folder, places
        self._controller: Any = None
        self._ended = False

    def run(self) -> None:
        """Runs the lane and waits for its end; called from a thread of the driver.

        A controller that dies, with its node for the most part, is replaced by one on another node: the lane's workers
        start again, and what is there stays.

        Raises:
            Exception: what the training raised, or how the controller died, after `training.max_failures` restarts.
        """
        from ray.exceptions import ActorUnschedulableError, RayActorError

        from condu_ray.orchestration.lanes.groups import give_back

        where = {"run": self._lane.run, "lane": self._lane.number}
        telemetry.gauge("condu_lanes_active", 1, **where)
        try:
            for left in reversed(range(self._lane.config.training.max_failures + 1)):
                try:
                    with self._places.place() as node:
                        return self._fit(node, left)
                except (RayActorError, ActorUnschedulableError):  # of the controller; its workers' are wrapped by Ray
                    give_back(self._lane.board, self._lane.number)
                    if self._ended:
                        raise
                    telemetry.inc("condu_faults_total", run=self._lane.run, part="lane")
                    if not left:
                        raise
        finally:
            telemetry.gauge("condu_lanes_active", 0, **where)

    def _fit(self, node: str, failures: int) -> None:
        from ray.train import FailureConfig, RunConfig, ScalingConfig

        from condu_ray.orchestration.lanes.controller import LaneTrainer
        from condu_ray.orchestration.lanes.groups import NoteGroup
        from condu_ray.orchestration.lanes.process_group import ProcessGroup
        from condu_ray.orchestration.watch.faults import CountFaults

        lane, gpus = self._lane, self._room.gpus_per_worker
        workers, cluster = lane.config.training.workers, lane.config.cluster
        LaneTrainer(
            train_lane,
            node=node,
            born=self._born,
            train_loop_config={"lane": lane},
            # A worker alone on a CPU needs no process group, whose set-up takes seconds.
            backend_config=ProcessGroup() if workers > 1 or gpus else None,
            scaling_config=ScalingConfig(
                num_workers=workers,
                use_gpu=gpus > 0,
                resources_per_worker={
                    "CPU": cluster.cpus_per_worker + self._room.decoders * (DECODER_CPUS - DECODER_ASKS)
                }
                | ({"GPU": gpus} if gpus else {}),
            ),
            run_config=RunConfig(
                # A new name each time: what is left to do is asked of the expert store, never restored from here.
                name=f"lane{lane.number}-{uuid.uuid4().hex[:8]}",
                **ray_storage(self._folder),
                failure_config=FailureConfig(max_failures=failures),
                callbacks=[CountFaults(lane.run), NoteGroup(lane.board, lane.number)],  # type: ignore[list-item]  # annotated for Train V1
            ),
        ).fit()

    def _born(self, controller: Any) -> None:
        self._controller = controller
        if self._ended:
            self.end()

    def end(self) -> None:
        """Ends the lane at once, with its workers: `run` raises, from whichever thread this is called."""
        import ray

        self._ended = True
        if self._controller is not None:
            with suppress(ValueError):  # it has ended by itself
                ray.kill(self._controller)
