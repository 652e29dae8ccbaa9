"""Ways to keep several tasks' deltas, by one interface: what comes back of a task, and the bytes that it takes.

Two kinds. Rules that a method of this package has, or that another paper has; and ConDU's rule turned into `condu-sign`
a step at a time, so that each step's part of the difference shows on the same experts.

Any object of :class:`Kept`'s form will do; to add a rule is to add an entry to what :func:`keepers` returns.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from condu_ray.merging.averaging import DeltaSource, each_delta
from condu_ray.merging.codes.code_file import SHARED, task_file
from condu_ray.merging.codes.rows import as_rows, live_rows
from condu_ray.merging.codes.values import Coded, LowRankDeltas, SignedDeltas
from condu_ray.merging.compression import RULES
from condu_ray.merging.delta import Delta
from condu_ray.merging.emr import emr
from condu_ray.merging.trigger import trigger_bytes
from condu_ray.merging.unified import UnifiedDelta

Deltas = Mapping[str, DeltaSource]
"""Task -> its delta, or what loads it, in the order of learning."""
Weight = Callable[[str], float]
"""From a tensor's name to how often its squared error counts."""
_FACTOR = 2
"""Bytes of a row's or tensor's factor."""


class Kept(Protocol):
    """Several tasks' deltas as a rule keeps them."""

    def decode(self, task: str) -> Mapping[str, Tensor]:
        """Returns the delta that stands for a task, of the deltas' names, shapes and dtypes."""

    def nbytes(self, task: str) -> int:
        """Returns the bytes of one task alone."""

    @property
    def shared_nbytes(self) -> int:
        """Bytes that all tasks share."""


@dataclass(frozen=True)
class Keeper:
    """A rule.

    Attributes:
        formula: what it keeps, in a line for people.
        keep: from all deltas so far to what is kept.
        alone: whether what comes back of a task depends on its own delta alone.
        step: whether it is one of the steps from ConDU's rule to `condu-sign`.
        family: rules that differ in their budget alone have one; in a picture they are a line.
    """

    formula: str
    keep: Callable[[Deltas], Kept]
    alone: bool = False
    step: bool = False
    family: str = ""


@dataclass(frozen=True)
class _Values:
    """What a rule of this module keeps: functions and numbers."""

    back: Callable[[str], Mapping[str, Tensor]]
    own: Mapping[str, int]
    shared_nbytes: int = 0

    def decode(self, task: str) -> Mapping[str, Tensor]:
        return self.back(task)

    def nbytes(self, task: str) -> int:
        return self.own[task]


def keepers(
    budgets: Sequence[float] = (0.05, 0.1, 0.2, 0.4, 1.0), weights: Mapping[str, Weight] | None = None
) -> dict[str, Keeper]:
    """Returns all rules by name, in the order in which tables show them.

    Args:
        budgets: bits a parameter, of `condu-svd`.
        weights: of `condu-svd` too, beside it as it is: how often each tensor's squared error counts, by what the
            rule's name says of it.
    """
    found = {
        "condu": Keeper("M_i . u, one factor, unified at every session (the paper)", _condu, step=True),
        "mask, at once": Keeper("the same, once on all original deltas (EMR)", _emr, step=True),
        "mask, rows": Keeper("the same, with a factor a row", _emr_rows, step=True),
        "sign, tensor": Keeper("sign of the task's own delta, mean size of the tensor", _signs_of(False), True, True),
        "sign, rows": Keeper("the same, mean size of the row", _signs_of(True), True, True),
        "condu-sign": Keeper("sign, magnitude shared by all tasks, a factor a row", _coded(SignedDeltas), step=True),
    }
    for bits in budgets:
        formula = f"singular vectors by a budget of {bits:g} bits a parameter"
        found[f"condu-svd {bits:g}"] = Keeper(formula, _coded(LowRankDeltas, bits=bits), alone=True, family="condu-svd")
    for words, weight in (weights or {}).items():
        for bits in budgets:
            keep, family = _coded(LowRankDeltas, bits=bits, weight=weight), f"condu-svd, {words}"
            found[f"condu-svd {bits:g}, {words}"] = Keeper(f"the same, {words}", keep, alone=True, family=family)
    return found | _of_papers()


def _of_papers() -> dict[str, Keeper]:
    """Other papers' rules, with their own settings."""
    found = {
        "bitdelta": Keeper("sign, mean size of the matrix; vectors as they are", RULES["bitdelta"], alone=True),
        "t-switch": Keeper("sign of the largest 30 %, one size a tensor", RULES["t-switch"], alone=True),
    }
    for bits in (2, 3, 4):
        formula = f"{bits} bits a value, evenly from the tensor's least to its largest"
        found[f"tvq {bits}"] = Keeper(formula, partial(RULES["tvq"], bits=bits), alone=True, family="tvq")
    return found | {
        "rtvq": Keeper("the tasks' mean in 3 bits a value, what it leaves of each in 2", RULES["rtvq"]),
        "tall-mask": Keeper("a mask on the sum of all deltas", RULES["tall-mask"]),
        "consensus": Keeper("one model for all: the sum where at least two masks agree", RULES["consensus"]),
    }


def _condu(deltas: Deltas) -> Kept:
    state = UnifiedDelta.empty()
    for task, delta in each_delta(deltas):
        state = state.unify(task, delta)
    return _triggered(state)


def _emr(deltas: Deltas) -> Kept:
    return _triggered(emr(deltas))


def _triggered(state: UnifiedDelta) -> Kept:
    own = sum(trigger_bytes(tensor.numel()) for tensor in state.unified.values()) + 16
    shared = sum(tensor.nbytes for tensor in state.unified.values())
    return _Values(state.decouple, dict.fromkeys(state.tasks, own), shared)


def _emr_rows(deltas: Deltas) -> Kept:
    """EMR's u and masks; of each row of a task's masked u the size of its own delta's."""
    state = emr(deltas)
    norms = {task: {name: _row_sums(tensor) for name, tensor in delta.items()} for task, delta in each_delta(deltas)}

    def back(task: str) -> dict[str, Tensor]:
        return {name: _scaled(mask * state.unified[name], norms[task][name]) for name, mask in state.mask(task).items()}

    first = _triggered(state)
    own = {task: first.nbytes(task) + sum(_FACTOR * len(one) for one in rows.values()) for task, rows in norms.items()}
    return _Values(back, own, first.shared_nbytes)


def _signs_of(rows: bool) -> Callable[[Deltas], Kept]:
    """Signs of a task's own delta, zeros zero, with one factor a row or a tensor."""

    def keep(deltas: Deltas) -> Kept:
        kept: dict[str, dict[str, Tensor]] = {}
        own: dict[str, int] = {}
        for task, delta in each_delta(deltas):
            kept[task] = {name: _scaled(tensor.sign(), _row_sums(tensor), rows) for name, tensor in delta.items()}
            live = {name: live_rows(tensor) for name, tensor in delta.items()}
            factors = sum(int(at.sum()) if rows else 1 for at in live.values())
            bits = sum(int(live[name].sum()) * as_rows(tensor).shape[1] for name, tensor in delta.items())
            own[task] = trigger_bytes(bits) + _FACTOR * factors
        return _Values(kept.__getitem__, own)

    return keep


def _coded(value: type[Coded], **options: float | Weight) -> Callable[[Deltas], Kept]:
    """A value of this package; its bytes are those of its files."""

    def keep(deltas: Deltas) -> Kept:
        state = value.empty()
        for task, delta in each_delta(deltas):
            state = state.unify(task, delta, **options)  # type: ignore[attr-defined]
        with tempfile.TemporaryDirectory() as folder:
            state.save(folder)
            own = {task: task_file(Path(folder), task).stat().st_size for task in state.tasks}
            shared = Path(folder) / SHARED
            return _Values(state.decouple, own, shared.stat().st_size if shared.exists() else 0)

    return keep


def _row_sums(tensor: Tensor) -> Tensor:
    return as_rows(tensor.detach()).abs().sum(dim=1, dtype=torch.float64)


def _scaled(values: Tensor, norm_R: Tensor, by_row: bool = True) -> Tensor:
    """Scales values so that each row's L1 norm (or that of all rows together) is what is given."""
    size_R = _row_sums(values)
    if not by_row:
        norm_R, size_R = norm_R.sum().expand_as(norm_R), size_R.sum().expand_as(size_R)
    scale_R = torch.where(size_R > 0, norm_R / size_R, 0.0)
    return (as_rows(values).double() * scale_R[:, None]).to(values.dtype).reshape(values.shape)


def parameters(delta: Delta) -> tuple[int, int]:
    """Returns how many parameters a delta has, and how many of them are not zero."""
    return sum(t.numel() for t in delta.values()), sum(int(t.count_nonzero()) for t in delta.values())
