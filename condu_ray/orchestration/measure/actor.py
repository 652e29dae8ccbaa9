"""Evaluators as Ray sees them: long-lived actors that measure one thing a call.

Whoever has an actor's handle loads its class, such as the measuring service, which needs no torch: so nothing heavy is
loaded here before an evaluator starts.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from condu_ray.orchestration.cluster.room import EVALUATOR_CPUS, Room
from condu_ray.orchestration.cluster.sight import versions

if TYPE_CHECKING:
    from condu_ray.config import Experiment
    from condu_ray.learn.prototype_pass import Chunk
    from condu_ray.plan.measurement import Wanted
    from condu_ray.plan.preflight import Checked
    from condu_ray.store.measurements import Accuracy

BEHIND = 5
"""How far evaluators stand back, as `nice` counts, where they share CPUs with what trains: for that, others wait."""


class EvaluatorActor:
    """A `Measurer` in a process of its own.

    Args:
        *about: as `Measurer` takes them.
    """

    def __init__(self, *about: Any) -> None:
        os.nice(BEHIND)
        from condu_ray.orchestration.measure.evaluator import Measurer

        self._measurer = Measurer(*about)

    def here(self) -> None:
        """Says that it has begun, by returning."""

    def measure(self, wanted: Wanted) -> Accuracy:
        """As `Measurer.measure`."""
        return self._measurer.measure(wanted)

    def encode(self, folder: str, chunk: Chunk) -> bytes:
        """As `Measurer.encode`."""
        return self._measurer.encode(folder, chunk)


def start_evaluator(config: Experiment, checked: Checked, precision: str, room: Room) -> Any:
    """Starts an evaluator, which Ray restarts as often as it dies.

    Args:
        config: settings of the run, or those that all trials of the sweep share.
        checked: the backbone and all tasks.
        precision: resolved precision.
        room: an evaluator's share of a GPU.
    """
    import ray

    from condu_ray.benchmark.tasks import known_hashes

    options = {"num_cpus": EVALUATOR_CPUS, "num_gpus": room.gpus_per_evaluator}
    actor = ray.remote(EvaluatorActor).options(**options, max_restarts=-1, max_task_retries=-1)
    folders, held_out, probes = (
        {task.name: task.folder for task in tasks} for tasks in (checked.tasks, checked.validation, checked.probes)
    )
    cuda = room.gpus_per_evaluator > 0
    about = (checked.spec, config.absolute(), precision, folders, cuda, held_out, probes)
    return actor.remote(*about, known_hashes(), checked.contents, versions())
