"""Tallies: what a rule that merges all original deltas at once has counted of them, so that one more needs no other.

A tally is changed in place, and one whose change failed halfway must not be used again. What it gives are the bits that
merging all deltas anew gives, in the same order of tasks: it adds in the order in which that adds.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from condu_ray.merging.averaging import DeltaSource, layout_of
from condu_ray.merging.delta import Delta, check_layout


class Tally(ABC):
    """What one rule has counted of some deltas, in the order of :attr:`tasks`."""

    def __init__(self) -> None:
        self.tasks: tuple[str, ...] = ()
        """The deltas' tasks."""
        self.like: Delta = {}
        """Names, shapes, dtypes and device of the deltas, without any memory; empty before the first."""

    @abstractmethod
    def merge(self, deltas: Mapping[str, DeltaSource]) -> Any:
        """Count deltas anew, whatever was counted before, and merge them.

        Args:
            deltas: Name of the task -> its delta or a function that loads it, called once.

        Raises:
            DeltaError: As of the rule.
        """

    @abstractmethod
    def add(self, task: str, delta: Delta, before: Any) -> Any:
        """Count one more delta and merge all: the bits that :meth:`merge` of all of them gives.

        Args:
            task: Name of its task.
            delta: The delta; only read.
            before: The merge of those before, as this tally gave it or as it was saved and loaded; only read.

        Raises:
            DeltaError: As of the rule.
        """

    @abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """What is to be stored, by name: its own tensors, no copies."""

    @abstractmethod
    def restore(self, tensors: Mapping[str, Tensor], tasks: tuple[str, ...], before: Any) -> None:
        """Take what :meth:`tensors` gave, which is the tally's own from here on.

        Args:
            tensors: By name.
            tasks: The deltas' tasks.
            before: Their merge.

        Raises:
            KeyError, ValueError: The tensors are no such tally's.
        """

    @property
    def nbytes(self) -> int:
        """Bytes of all that is counted."""
        return sum(tensor.nbytes for tensor in self.tensors().values())

    @property
    def expert_nbytes(self) -> int:
        """Bytes of one of the deltas."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self.like.values())

    def takes(self, task: str, delta: Delta) -> None:
        """Enter one more delta, which has to have the first one's layout.

        Raises:
            DeltaError: It has not, or its task was counted before.
        """
        check_layout(delta, self.like or None, task)
        if task in self.tasks:
            raise ValueError(f"task {task!r} was merged before")
        self.like = self.like or layout_of(delta)
        self.tasks = (*self.tasks, task)


def dtypes(like: Delta) -> dict[str, Tensor]:
    """The deltas' dtypes, to be stored where a tally's tensors have others: an empty tensor a name."""
    return {f"dtype/{name}": tensor.new_empty(0) for name, tensor in like.items()}


def named(tensors: Mapping[str, Tensor], kind: str) -> dict[str, Tensor]:
    """Of stored tensors those of one kind, by what follows `kind/`."""
    return {name.removeprefix(f"{kind}/"): one for name, one in tensors.items() if name.startswith(f"{kind}/")}


def same_names(*parts: Mapping[str, object]) -> None:
    """Refuse parts of a stored tally that do not have the same names.

    Raises:
        ValueError: Names differ, or there is none.
    """
    if not parts[0] or any(part.keys() != parts[0].keys() for part in parts):
        raise ValueError("its tensors do not fit together")
