"""All that a method keeps of its tasks, as one immutable value each: with `UnifiedDelta`'s surface, a file a task."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Self

from torch import Tensor

from condu_ray.merging.codes import code_file, low_rank, shared_sign
from condu_ray.merging.codes.layout import Layout
from condu_ray.merging.delta import Delta, fingerprint
from condu_ray.merging.unified import DuplicateTaskError, UnknownTaskError, listed

Code = Mapping[str, Tensor]
"""What is kept of a task alone."""


@dataclass(frozen=True, eq=False, repr=False)
class Coded:
    """Tasks, each with a code that no other task changes. Read-only; start from :meth:`empty`."""

    codes: dict[str, Code] = field(default_factory=dict)
    """By task, in the order in which they were unified; of a value that was loaded, in the order of their names."""
    KIND: ClassVar[str]

    @classmethod
    def empty(cls) -> Self:
        """The value before the first task."""
        return cls()

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the tasks, in the order of :attr:`codes`."""
        return tuple(self.codes)

    @property
    def shared(self) -> dict[str, Tensor]:
        """What all tasks share; empty where they share nothing."""
        return {}

    def decouple(self, task: str) -> dict[str, Tensor]:
        """The delta that stands for a task: new tensors on the CPU, of its delta's shapes and dtypes.

        Raises:
            UnknownTaskError: the task was never unified.
        """
        raise NotImplementedError

    @property
    def nbytes(self) -> int:
        """Bytes of everything kept, without the files' headers."""
        own = sum(tensor.nbytes for code in self.codes.values() for tensor in code.values())
        return own + sum(tensor.nbytes for tensor in self.shared.values())

    @property
    def fingerprint(self) -> str:
        """SHA-256 (64 hex digits) of everything kept, bit for bit; the order of the tasks does not count."""
        parts = {task: fingerprint(code) for task, code in self.codes.items()}
        text = json.dumps([self.KIND, parts, fingerprint(self.shared)], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def equal(self, other: Coded) -> bool:
        """Whether both keep the same, bit for bit."""
        return self.fingerprint == other.fingerprint

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Writes a file a task, and one of what they share, into a folder that exists; equal values, equal files."""
        for task, code in self.codes.items():
            code_file.write(code_file.task_file(Path(folder), task), self.KIND, dict(code))
        if self.shared:
            code_file.write(Path(folder) / code_file.SHARED, "shared_magnitude", self.shared)

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> Self:
        """Reads what :meth:`save` wrote.

        Raises:
            FileNotFoundError: there is no such folder, or it lacks what the tasks share.
            CodeFileError: a file is truncated, damaged or of another version; the message names it.
        """
        folder = Path(folder)
        tasks = code_file.tasks_of(folder)
        return cls({task: code_file.read(code_file.task_file(folder, task), cls.KIND) for task in tasks})

    def _check(self, task: str, delta: Delta | Layout) -> None:
        """Refuses what cannot be unified, before anything is computed."""
        if not task:
            raise ValueError("a task needs a name")
        if task in self.codes:
            raise DuplicateTaskError(f"task {task!r} was unified before; the tasks so far are {listed(self.tasks)}")
        if self.codes:
            found = delta if isinstance(delta, Layout) else Layout.of(delta)
            Layout.read(next(iter(self.codes.values()))["layout"]).check(found, task)

    def _code(self, task: str) -> Code:
        if task not in self.codes:
            raise UnknownTaskError(f"task {task!r} was never unified; known tasks: {listed(self.tasks)}")
        return self.codes[task]

    def __repr__(self) -> str:
        return f"{type(self).__name__}({listed(self.tasks)}; {self.nbytes:,} bytes)"


class LowRankDeltas(Coded):
    """Every task's delta by quantised singular vectors, in as many bits as a budget allows; the tasks share nothing.

    Example:
        >>> state = LowRankDeltas.empty().unify("aircraft", subtract(expert, base), bits=0.2)
        >>> model = add(base, state.decouple("aircraft"))
    """

    KIND = "low_rank_code"

    def unify(
        self,
        task: str,
        delta: Delta,
        *,
        bits: float = 0.2,
        signs: bool = True,
        weight: Callable[[str], float] | None = None,
    ) -> LowRankDeltas:
        """Keeps one more task; the others' codes are the same tensors afterwards.

        Args:
            task: its name, new and not empty.
            delta: its delta; names, shapes and dtypes as for the earlier tasks. It is only read.
            bits: the budget, bits a parameter of this task.
            signs: whether signs of the rest may be bought.
            weight: from a tensor's name to how often its squared error counts; None: each once.

        Raises:
            DuplicateTaskError: the task was unified before.
            DeltaError: the delta cannot be kept: :func:`~condu_ray.merging.codes.low_rank.encode`, or another layout.
            ValueError: the budget is not above 0, or the task's name is empty.
        """
        self._check(task, delta)
        return self.keep(task, low_rank.encode(delta, bits, signs=signs, weight=weight, task=task))

    def keep(self, task: str, code: Code) -> LowRankDeltas:
        """Keeps one more task by a code that :meth:`unify` has made of its delta before.

        Args:
            task: its name, new and not empty.
            code: of its delta; names, shapes and dtypes as for the earlier tasks.

        Raises:
            DuplicateTaskError: the task was unified before.
            DeltaError: another layout.
            ValueError: the task's name is empty.
        """
        self._check(task, Layout.read(code["layout"]))
        return LowRankDeltas(self.codes | {task: code})

    def decouple(self, task: str) -> dict[str, Tensor]:
        """Sum over the components of ``alpha a b^T``, and the signs of the rest; see :meth:`Coded.decouple`."""
        return low_rank.decode(self._code(task))


@dataclass(frozen=True, eq=False, repr=False)
class SignedDeltas(Coded):
    """A sign a position and a factor a row of every task, and one magnitude for all: see `shared_sign.py`.

    Example:
        >>> state = SignedDeltas.empty().unify("aircraft", subtract(expert, base))
        >>> model = add(base, state.decouple("aircraft"))
    """

    magnitude: dict[str, Tensor] = field(default_factory=dict)
    """m, int32 by name; read-only, empty before the first task."""
    KIND: ClassVar[str] = "sign_code"

    @property
    def shared(self) -> dict[str, Tensor]:
        """The magnitude."""
        return self.magnitude

    def unify(self, task: str, delta: Delta) -> SignedDeltas:
        """Keeps one more task: its signs and row norms as they are for ever, its size in the magnitude of all.

        Args:
            task: its name, new and not empty.
            delta: its delta; names, shapes and dtypes as for the earlier tasks. It is only read.

        Raises:
            DuplicateTaskError: the task was unified before.
            DeltaError: the delta cannot be kept: NaN, infinity, another layout, or a magnitude that overflows.
            ValueError: the task's name is empty.
        """
        self._check(task, delta)
        code = shared_sign.encode(delta, task=task)
        return replace(
            self,
            codes=self.codes | {task: code},
            magnitude=shared_sign.add_magnitude(self.magnitude, delta, task=task),
        )

    def decouple(self, task: str) -> dict[str, Tensor]:
        """``lambda_r S . m``; see :meth:`Coded.decouple`."""
        return shared_sign.decode(self.magnitude, self._code(task))

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> Self:
        """As :meth:`Coded.load`."""
        found = super().load(folder)
        magnitude: Any = code_file.read(Path(folder) / code_file.SHARED, "shared_magnitude") if found.codes else {}
        return replace(found, magnitude=magnitude)
