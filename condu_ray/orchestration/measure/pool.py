"""The driver's side of measuring: the service, and as many evaluators as there is work and room for."""

from __future__ import annotations

from typing import Any

import ray

from condu_ray.config import Experiment
from condu_ray.orchestration.cluster.env import named
from condu_ray.orchestration.cluster.room import Room
from condu_ray.orchestration.measure.actor import start_evaluator
from condu_ray.orchestration.measure.measuring import MEASURING, Measuring
from condu_ray.plan.preflight import Checked

WORTH_A_START = 16
"""Waiting measurements that are worth the seconds that another evaluator's start takes."""


class Pool:
    """The measuring service of a run or a sweep, with the evaluators that it shares.

    Args:
        config: settings of the run, or those that all trials of the sweep share.
        checked: the backbone and all tasks.
        precision: resolved precision.
        room: how many evaluators, with how much GPU.
    """

    def __init__(self, config: Experiment, checked: Checked, precision: str, room: Room) -> None:
        self._about = (config, checked, precision, room)
        self._room = room
        self._evaluators: list[Any] = []
        self.waiting = 0
        service = ray.remote(Measuring).options(
            num_cpus=0,
            max_concurrency=1000,
            max_restarts=-1,
            max_task_retries=-1,
            **named(MEASURING, config.run_name),
        )
        self.service: Any = service.remote(config.absolute().storage, config.run_name)

    def first(self) -> Any:
        """Starts the first evaluator, before anything waits, and returns it; `look` gives it to the service."""
        self._evaluators.append(start_evaluator(*self._about))
        return self._evaluators[0]

    def look(self, more: int = 0) -> None:
        """Starts evaluators where measurements wait.

        Args:
            more: evaluators that there is room for beside those of the start, where lanes have nothing to do.
        """
        self.waiting, known = ray.get(self.service.status.remote())
        if known < len(self._evaluators):  # the first one; or the service died, and came back without them
            self.service.add.remote(self._evaluators[known:])
        count = len(self._evaluators)
        if count < self._room.evaluators + more and self.waiting >= (WORTH_A_START if count else 1):
            self._evaluators.append(start_evaluator(*self._about))
            self.service.add.remote(self._evaluators[-1:])

    def abort(self) -> None:
        """Ends the evaluators at once, whatever they do."""
        for evaluator in self._evaluators:
            ray.kill(evaluator)
