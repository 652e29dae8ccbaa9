"""The controller of a lane's fit: Ray Train's own, on a node that is told, and without actors that no lane needs.

Ray Train offers no setting for either, so two functions of its trainer that are not public are replaced;
`tests/orchestration/lanes/test_fit.py` sees that they are there and do what is said here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ray
from ray.train.v2._internal.callbacks import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.constants import get_env_vars_to_propagate
from ray.train.v2._internal.execution.controller import TrainController
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

NEEDLESS = (
    # An actor a fit that hands out shards of data sets which the driver made: lanes make their own (stream.py).
    DatasetsCallback,
    # An actor a fit, on the head whatever is asked, for what groups.py does.
    PlacementGroupCleanerCallback,
)
"""Callbacks of Ray Train's that start an actor of 110 MiB a lane (results `head`)."""


class LaneTrainer(DataParallelTrainer):  # type: ignore[misc]
    """Ray Train's trainer for a lane.

    Args:
        *given: what Ray's takes.
        node: id of the node on which the controller is to stand, and the actors that it starts.
        born: takes the controller's handle as soon as there is one.
        **named: what Ray's takes.
    """

    def __init__(self, *given: Any, node: str, born: Callable[[Any], None], **named: Any) -> None:
        super().__init__(*given, **named)
        self._node, self._born = node, born

    def _create_default_callbacks(self) -> list[Any]:
        return [one for one in super()._create_default_callbacks() if not isinstance(one, NEEDLESS)]

    def _initialize_and_run_controller(self, **given: Any) -> Any:
        options: dict[str, Any] = {
            "num_cpus": 0,
            "scheduling_strategy": NodeAffinitySchedulingStrategy(self._node, soft=False),
            "runtime_env": {"env_vars": get_env_vars_to_propagate()},
        }
        controller: Any = ray.remote(**options)(TrainController).remote(**given)
        self._born(controller)
        ray.get(controller.run.remote())
        return ray.get(controller.get_result.remote())
