"""The placement group of a lane: who notes it, so that it can be given back when the lane's controller has died.

Ray gives back a placement group when who made it is dead and the whole job is; until then, other lanes would have less
room. So the controller tells the board, and the driver, which sees the controller die, gives the group back.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import ray
from ray.exceptions import RayError
from ray.train.v2._internal.execution.callback import WorkerGroupCallback
from ray.util.placement_group import remove_placement_group


class NoteGroup(WorkerGroupCallback):  # type: ignore[misc]
    """Runs in a lane's controller: tells the board which placement group the lane's workers have.

    Args:
        board: the board's handle.
        lane: number of the lane.
    """

    def __init__(self, board: Any, lane: int) -> None:
        self._board, self._lane = board, lane

    def after_worker_group_start(self, worker_group: Any) -> None:
        """Tells it, and waits for nobody."""
        group = worker_group.get_worker_group_state().placement_group_handle.placement_group
        self._board.grouped.remote(self._lane, group)


def give_back(board: Any, lane: int) -> None:
    """Gives back what the workers of a lane had that has lost its controller; they end with it.

    Args:
        board: the board's handle.
        lane: number of the lane.
    """
    with suppress(RayError):  # the board has gone, and with it the run
        if (group := ray.get(board.group.remote(lane))) is not None:
            remove_placement_group(group)
