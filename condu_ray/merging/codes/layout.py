"""The layout of deltas, as every file that keeps one in few bits has it: names, shapes and dtypes, compressed."""

from __future__ import annotations

import json
import zlib
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from condu_ray.merging.delta import Delta, DeltaError

_DTYPES = {str(dtype): dtype for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64)}


@dataclass(frozen=True)
class Layout:
    """Names in ascending order, with shapes and dtypes."""

    entries: tuple[tuple[str, tuple[int, ...], torch.dtype], ...]

    @classmethod
    def of(cls, delta: Delta) -> Layout:
        """Returns a delta's layout."""
        return cls(tuple((name, tuple(delta[name].shape), delta[name].dtype) for name in sorted(delta)))

    @classmethod
    def read(cls, packed: Tensor) -> Layout:
        """Reads what `packed` holds.

        Raises:
            ValueError: it is no layout.
        """
        try:
            found = json.loads(zlib.decompress(packed.numpy().tobytes()))
            return cls(tuple((str(name), tuple(map(int, shape)), _DTYPES[dtype]) for name, shape, dtype in found))
        except (zlib.error, TypeError, KeyError, RecursionError) as error:
            raise ValueError(f"the layout cannot be read ({error!r})") from error

    @cached_property
    def packed(self) -> Tensor:
        """uint8: zlib's bytes of JSON."""
        listed = [[name, list(shape), str(dtype)] for name, shape, dtype in self.entries]
        content = zlib.compress(json.dumps(listed, separators=(",", ":")).encode(), 9)
        return torch.from_numpy(np.frombuffer(content, dtype=np.uint8).copy())

    @property
    def numel(self) -> int:
        """Positions of a delta."""
        return sum(int(np.prod(shape, dtype=np.int64)) for _, shape, _ in self.entries)

    def check(self, other: Layout, task: str) -> None:
        """Refuses a delta of another layout.

        Raises:
            DeltaError: it is one; the message names the task and the first tensor that differs.
        """
        mine, others = ({name: rest for name, *rest in one.entries} for one in (self, other))
        for name in sorted(mine.keys() | others.keys()):
            if mine.get(name) != others.get(name):
                raise DeltaError(
                    f"task {task!r}: tensor {name!r} is {_shown(others.get(name))}, in the earlier tasks' deltas "
                    f"{_shown(mine.get(name))}; deltas that are kept together have one layout"
                )


def _shown(entry: list[object] | None) -> str:
    return "missing" if entry is None else f"{entry[1]} {entry[0]}"
