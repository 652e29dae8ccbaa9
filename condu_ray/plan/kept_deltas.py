"""Deltas that are kept in memory while there is room."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any, TypeVar

from condu_ray.merging.delta import Delta

D = TypeVar("D", Delta, Delta | None)
"""A delta, or None for theta0."""
DELTA_BYTES = 2**31
"""Deltas that are kept, at most; beyond it they are made again. The one that was asked for last always stays."""


class KeptDeltas:
    """Deltas by name, those that were asked for last.

    Args:
        most: bytes that are kept, at most; the delta that was asked for last always stays.
    """

    def __init__(self, most: int = DELTA_BYTES) -> None:
        self._kept: OrderedDict[str, Any] = OrderedDict()
        self._most = most

    def get(self, name: str, make: Callable[[], D]) -> D:
        """Returns a delta, made where it is not there."""
        if name not in self._kept:
            self._kept[name] = make()
            while len(self._kept) > 1 and sum(map(_nbytes, self._kept.values())) > self._most:
                self._kept.popitem(last=False)
        self._kept.move_to_end(name)
        found: D = self._kept[name]
        return found


def _nbytes(delta: Delta | None) -> int:
    return sum(tensor.nbytes for tensor in (delta or {}).values())
