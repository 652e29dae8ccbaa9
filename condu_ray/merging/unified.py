"""The unified delta with its task triggers: all that ConDU keeps of the tasks so far, as one immutable value."""

import hashlib
import os
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from condu_ray.merging import unified_file
from condu_ray.merging.delta import Delta, check_delta, fingerprint
from condu_ray.merging.trigger import unpack
from condu_ray.merging.unify import Rescaler, Unification, decouple, unify


class UnknownTaskError(KeyError):
    """A task that was never unified; the message lists those that were."""

    def __str__(self) -> str:
        return str(self.args[0])  # KeyError would show the quoted repr


class DuplicateTaskError(ValueError):
    """A task that was unified before: unifying it again would move the model."""


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class UnifiedDelta:
    """Unified delta ``u`` with every task's trigger (mask ``M_i`` and rescaler ``lambda_i``), ConDU section 3.2.

    A value: ``unify`` returns a new one and leaves the old one as it was. Start from :meth:`empty`. The tensors that it
    hands out in :attr:`unified` are its own and must not be written to; all others are copies. It can be pickled.

    Example:
        >>> state = UnifiedDelta.empty().unify("aircraft", subtract(expert, base))
        >>> model = add(base, state.decouple("aircraft"))
    """

    tasks: tuple[str, ...] = ()
    """Names of the tasks in the order they were unified."""
    rescaler: Rescaler = "l1"
    """How lambda measures a delta; the first ``unify`` decides it."""
    _state: Unification = field(default_factory=lambda: Unification({}, {}, (), ()))

    @classmethod
    def empty(cls) -> "UnifiedDelta":
        """The value before the first task."""
        return cls()

    def unify(
        self, task: str, delta: Delta, *, rescaler: Rescaler | None = None, chunk_size: int = 0
    ) -> "UnifiedDelta":
        """Unify one more task.

        Args:
            task: Name of the task, new and not empty.
            delta: Its delta; names, shapes, dtypes and device as for the earlier tasks. It is only read.
            rescaler: ``"l1"`` (the paper) or ``"tensor_mean"`` (the authors' code); ``None`` as before, first "l1".
            chunk_size: Positions worked on at a time; 0 chooses by device.

        Returns:
            A new value with one task more.

        Raises:
            DuplicateTaskError: The task was unified before.
            DeltaError: The delta cannot be merged: see :func:`~condu_ray.merging.delta.check_delta`.
            ValueError: The rescaler is unknown or differs from the earlier sessions'; the task's name is empty.
        """
        if not task:
            raise ValueError("a task needs a name")
        if task in self.tasks:
            raise DuplicateTaskError(f"task {task!r} was unified before; the tasks so far are {listed(self.tasks)}")
        rescaler = rescaler or self.rescaler
        if rescaler not in ("l1", "tensor_mean"):
            raise ValueError(f"rescaler {rescaler!r} is not one of 'l1', 'tensor_mean'")
        if self.tasks and rescaler != self.rescaler:
            raise ValueError(f"rescaler {rescaler!r} cannot follow {self.rescaler!r}: the norms kept are the latter's")
        state = unify(self._state, delta, rescaler=rescaler, task=task, chunk_size=chunk_size)
        return UnifiedDelta((*self.tasks, task), rescaler, state)

    def decouple(self, task: str) -> dict[str, Tensor]:
        """Decoupled delta ``lambda_i * (M_i . u)`` of one task.

        Returns:
            New tensors of the deltas' shapes and dtypes; add them to ``theta0`` for the task's expert.

        Raises:
            UnknownTaskError: The task was never unified.
            DeltaError: A decoupled value overflows float16.
        """
        index = self._index(task)
        decoupled = decouple(self._state.unified, self._state.triggers, index, self._state.rescalers[index])
        if any(tensor.dtype == torch.float16 for tensor in decoupled.values()):
            check_delta(decoupled, task=task)  # lambda can lift a large value beyond 65504
        return decoupled

    @property
    def unified(self) -> dict[str, Tensor]:
        """u: name -> tensor. Read-only tensors, no copies; empty before the first task."""
        return dict(self._state.unified)

    @property
    def triggers(self) -> dict[str, Tensor]:
        """Masks of all tasks as rows of bits ``[T, ceil(numel / 8)]`` (``trigger.py``). Read-only, no copies."""
        return dict(self._state.triggers)

    def mask(self, task: str) -> dict[str, Tensor]:
        """Mask ``M_i`` of one task: name -> new bool tensor of the deltas' shape.

        Raises:
            UnknownTaskError: The task was never unified.
        """
        index = self._index(task)
        return {name: unpack(self._state.triggers[name][index], u.shape) for name, u in self._state.unified.items()}

    @property
    def rescalers(self) -> dict[str, float]:
        """lambda_i >= 0 of every task; 0 where the task's mask is empty."""
        return dict(zip(self.tasks, self._state.rescalers, strict=True))

    @property
    def norms(self) -> dict[str, float]:
        """Size of every task's decoupled delta, as ``rescaler`` measures it ("l1": its L1 norm); sessions keep it."""
        return dict(zip(self.tasks, self._state.norms, strict=True))

    @property
    def trigger_nbytes(self) -> int:
        """Bytes of all task triggers: one bit per parameter and task (each tensor rounded up to a byte) and lambda."""
        return sum(rows.nbytes for rows in self._state.triggers.values()) + 8 * len(self.tasks)

    @property
    def nbytes(self) -> int:
        """Bytes of everything kept: u, the triggers and the norms."""
        unified = sum(u.nbytes for u in self._state.unified.values())
        return unified + self.trigger_nbytes + 8 * len(self.tasks)

    def to(self, device: torch.device | str) -> "UnifiedDelta":
        """The same value on another device."""
        unified = {name: u.to(device) for name, u in self._state.unified.items()}
        triggers = {name: rows.to(device) for name, rows in self._state.triggers.items()}
        return UnifiedDelta(self.tasks, self.rescaler, self._state._replace(unified=unified, triggers=triggers))

    @property
    def fingerprint(self) -> str:
        """SHA-256 (64 hex digits) of everything kept, bit for bit: tasks in order, u, triggers, rescalers and norms."""
        tensors, header = unified_file.flatten(self.tasks, self.rescaler, self._state)
        return hashlib.sha256((header + fingerprint(tensors)).encode()).hexdigest()

    def equal(self, other: "UnifiedDelta") -> bool:
        """Whether both are the same bit for bit, wherever they lie."""
        return self.fingerprint == other.fingerprint

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write one safetensors file, bit for bit; equal values give equal files.

        A file at ``path`` is replaced in one step, once the new one is complete. The folder must exist.
        """
        unified_file.save(Path(path), self.tasks, self.rescaler, self._state)

    @classmethod
    def load(cls, path: str | os.PathLike[str], device: torch.device | str = "cpu") -> "UnifiedDelta":
        """Read a file that :meth:`save` wrote.

        Raises:
            FileNotFoundError: There is no such file.
            UnifiedFileError: It is truncated, no safetensors file, of another version, or its content is inconsistent;
                the message names the file.
        """
        return cls(*unified_file.load(Path(path), str(device)))

    def _index(self, task: str) -> int:
        if task not in self.tasks:
            raise UnknownTaskError(f"task {task!r} was never unified; known tasks: {listed(self.tasks)}")
        return self.tasks.index(task)

    def __repr__(self) -> str:
        return f"UnifiedDelta({listed(self.tasks)}; rescaler={self.rescaler!r}, {self.nbytes:,} bytes)"


def listed(tasks: tuple[str, ...]) -> str:
    """Names of tasks as a message has them."""
    return ", ".join(tasks) or "none"
