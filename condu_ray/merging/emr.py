"""EMR-Merging (Huang et al., NeurIPS 2024, arXiv 2405.17461): elect, mask and rescale, once, over all original deltas.

ConDU's rule (``unify.py``) without iteration: no delta has been decoupled and unified before, so that what comes out
bounds what ConDU can keep. Of the deltas so far three numbers a position are needed (sum, largest, smallest), and the
bits of which delta is above and which below 0. The elected sign then chooses one of the two bits as the mask. So each
delta is read once and then forgotten.

Names: ``K8C`` = 8 strips of C columns, ``W`` = bytes of a mask (see ``trigger.py``).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple, get_args

import torch
from torch import Tensor

from condu_ray.merging.averaging import DeltaSource, each_delta, layout_of
from condu_ray.merging.chunks import CHUNK_CPU, CHUNK_CUDA, serial, strictly_positive, sums_by_bit, wide_dtype
from condu_ray.merging.delta import Delta, DeltaError, check_delta
from condu_ray.merging.tally import Tally, named, same_names
from condu_ray.merging.trigger import (
    GROUP,
    codes,
    column_ranges,
    pack_strips,
    read_strips,
    trigger_bytes,
    write_strips,
)
from condu_ray.merging.unified import UnifiedDelta
from condu_ray.merging.unify import Rescaler, Unification
from condu_ray.merging.zeros import row_of, zeros_of


class _Tally(NamedTuple):
    """What is kept of one tensor over the deltas so far; strips ``[8, W]``, padded with zeros."""

    shape: torch.Size
    total: Tensor
    """Sum, float32 or float64."""
    largest: Tensor
    """Largest value or 0, in the deltas' dtype."""
    smallest: Tensor
    """Smallest value or 0, in the deltas' dtype."""
    above: Tensor
    """Bits of the values above 0, ``uint8`` ``[T, W]``; in the end the masks."""
    below: Tensor
    """Bits of the values below 0, ``uint8`` ``[T, W]``."""


def emr(deltas: Mapping[str, DeltaSource], *, rescaler: Rescaler = "l1") -> UnifiedDelta:
    """Merge original deltas by EMR: one unified delta, and a mask and a rescaler for each task.

    Position by position, with ``s`` the sign of the sum of all deltas (-1 where that is exactly 0, as in the authors'
    code): ``u = s * max |delta_i|`` over the deltas of sign ``s``, ``M_i = 1`` where ``delta_i`` has the sign of ``u``,
    and ``lambda_i = size(delta_i) / size(M_i . u)``, 0 where the mask is empty.

    Args:
        deltas: Name of the task -> its delta or a function that loads it, called once; any floating dtype, one layout.
        rescaler: How lambda measures a delta: ``"l1"`` over the whole delta (the paper), ``"tensor_mean"`` (the
            authors' code).

    Returns:
        The tasks in the order of ``deltas``; decouple, save and load are ConDU's. With one or two tasks it is ConDU's
        own result. ``u`` is not rounded. The sum is float32 (float64 for float64) in the order of ``deltas``, so that
        another order may elect another sign where it cancels to below its rounding, and nothing else. Memory beyond
        one delta: three more of them (half precision: four) and 2 T bits a position.

    Raises:
        DeltaError: There is no delta, their layouts differ, or one holds NaN or infinity.
        ValueError: A task has no name, or the rescaler is unknown.
    """
    return EmrTally(rescaler=rescaler).merge(deltas, last=True)


class EmrTally(Tally):
    """What :func:`emr` needs of the deltas so far beside what it made of them: 8 bytes a position (half precision: 6).

    That is their sum, and the largest magnitude of the sign that was not elected (the other is u). Nearly nothing is
    where which delta is 0, by which u and the masks say the signs of all deltas.

    Args:
        rescaler: As of :func:`emr`.

    Raises:
        ValueError: The rescaler is unknown.
    """

    def __init__(self, *, rescaler: Rescaler = "l1") -> None:
        super().__init__()
        if rescaler not in get_args(Rescaler):
            raise ValueError(f"rescaler {rescaler!r} is not one of {', '.join(map(repr, get_args(Rescaler)))}")
        self._rescaler: Rescaler = rescaler
        self._total: dict[str, Tensor] = {}
        self._other: dict[str, Tensor] = {}
        self._zeros: dict[str, list[Tensor]] = {}

    @torch.no_grad()
    @serial()
    def merge(self, deltas: Mapping[str, DeltaSource], *, last: bool = False) -> UnifiedDelta:
        """As :meth:`Tally.merge`; where it is the ``last`` merge, nothing is kept for another."""
        self.tasks, self.like, self._total, self._other, self._zeros = (), {}, {}, {}, {}
        tallies: dict[str, _Tally] = {}
        norms: list[float] = []
        for task, delta in each_delta(deltas):  # no enumerate: it would hold on to the last delta
            self.takes(task, delta)
            tallies = tallies or {name: _tally(delta[name], len(deltas)) for name in sorted(delta)}
            sizes = [_add(tally, len(norms), delta[name].detach()) for name, tally in tallies.items()]
            norms.append(self._norm(task, delta, sizes))
            del delta
        found = {}
        for name in sorted(tallies):
            tally = tallies.pop(name)  # so that its memory is free for the next tensor's u
            if not last:
                self._keep_zeros(name, tally, 0)
            found[name] = _elect(tally)
            if not last:
                self._keep(name, tally)
        return self._merged(found, norms)

    @torch.no_grad()
    @serial()
    def add(self, task: str, delta: Delta, before: UnifiedDelta) -> UnifiedDelta:
        """As :meth:`Tally.add`, a tensor at a time."""
        self.takes(task, delta)
        tasks, found, sizes = len(before.tasks), {}, []
        for name in sorted(delta):
            tally = self._restored(name, before)
            sizes.append(_add(tally, tasks, delta[name].detach()))
            self._keep_zeros(name, tally, tasks)
            found[name] = _elect(tally)
            self._keep(name, tally)
            del tally
        return self._merged(found, [*before.norms.values(), self._norm(task, delta, sizes)])

    def tensors(self) -> dict[str, Tensor]:
        """Sums and the other sign's largest values as strips ``[8, W]``, and each task's zeros."""
        found = {f"total/{name}": one for name, one in self._total.items()}
        found |= {f"other/{name}": one for name, one in self._other.items()}
        return found | {f"zeros {at}/{name}": row for name, rows in self._zeros.items() for at, row in enumerate(rows)}

    def restore(self, tensors: Mapping[str, Tensor], tasks: tuple[str, ...], before: UnifiedDelta) -> None:
        """As :meth:`Tally.restore`."""
        total, other = named(tensors, "total"), named(tensors, "other")
        zeros = [named(tensors, f"zeros {index}") for index in range(len(tasks))]
        same_names(before.unified, total, other, *zeros)
        self.tasks, self.like = tasks, layout_of(before.unified)
        self._total, self._other = total, other
        self._zeros = {name: [one[name] for one in zeros] for name in total}

    def takes(self, task: str, delta: Delta) -> None:
        """As :meth:`Tally.takes`; a task needs a name."""
        if not task:
            raise ValueError("a task needs a name")
        super().takes(task, delta)

    def _norm(self, task: str, delta: Delta, sizes: Sequence[float]) -> float:
        """The size of a delta from its tensors', in the order of their names."""
        norm = 0.0
        for name, size in zip(sorted(delta), sizes, strict=True):
            norm += size if self._rescaler == "l1" else size / max(delta[name].numel(), 1)
        if not math.isfinite(norm):
            check_delta(delta, task=task)
            raise DeltaError(f"task {task!r}: the size of the delta overflows")
        return norm

    def _restored(self, name: str, before: UnifiedDelta) -> _Tally:
        """The tally of a tensor as it was before signs were elected, with room for one task more."""
        u, masks = before.unified[name].reshape(-1), before.triggers[name]
        tally = _tally(before.unified[name], len(masks) + 1, self._total[name])
        elected = torch.empty_like(tally.above[0])
        for start, stop in _ranges(tally):
            total, largest, smallest = _at(tally, start, stop)
            chosen, beside, positive = read_strips(u, start, stop), self._other[name][:, start:stop], total > 0
            torch.where(positive, chosen, beside, out=largest)
            torch.where(positive, beside, chosen, out=smallest)
            elected[start:stop] = pack_strips(positive)
        for index, mask in enumerate(masks):
            # In the mask the elected sign, elsewhere the other one, or 0.
            row, above = row_of(self._zeros[name][index], u.numel()), tally.above[index]
            torch.bitwise_xor(row, mask, out=above)
            above.bitwise_xor_(elected & (above ^ mask))
            torch.bitwise_xor(row, above, out=tally.below[index])
        return tally

    def _keep_zeros(self, name: str, tally: _Tally, first: int) -> None:
        """Keep where the deltas from a task on are 0; before the signs are elected."""
        rows = zip(tally.above[first:], tally.below[first:], strict=True)
        found = [zeros_of(above | below, tally.shape.numel()) for above, below in rows]
        self._zeros[name] = [*self._zeros.get(name, []), *found]

    def _keep(self, name: str, tally: _Tally) -> None:
        """Keep what the next merge needs, once the signs are elected."""
        for start, stop in _ranges(tally):
            total, largest, smallest = _at(tally, start, stop)
            torch.where(total > 0, smallest, largest, out=largest)
        self._total[name], self._other[name] = tally.total, tally.largest

    def _merged(self, found: dict[str, tuple[Tensor, Tensor, list[float]]], norms: Sequence[float]) -> UnifiedDelta:
        sizes = [0.0] * len(norms)
        for u, _, more in found.values():
            weight = 1.0 if self._rescaler == "l1" else 1.0 / max(u.numel(), 1)
            sizes = [size + weight * one for size, one in zip(sizes, more, strict=True)]
        rescalers = tuple(norm / size if size > 0 else 0.0 for norm, size in zip(norms, sizes, strict=True))
        unified, triggers = {name: one[0] for name, one in found.items()}, {name: one[1] for name, one in found.items()}
        return UnifiedDelta(self.tasks, self._rescaler, Unification(unified, triggers, tuple(norms), rescalers))


def _tally(tensor: Tensor, tasks: int, total: Tensor | None = None) -> _Tally:
    width = trigger_bytes(tensor.numel())
    if total is None:
        total = tensor.new_zeros(8, width, dtype=wide_dtype(tensor.dtype))
    extremes = (tensor.new_zeros(8, width) for _ in range(2))
    bits = (torch.empty(tasks, width, dtype=torch.uint8, device=tensor.device) for _ in range(2))
    return _Tally(tensor.shape, total, *extremes, *bits)


def _at(tally: _Tally, start: int, stop: int) -> tuple[Tensor, Tensor, Tensor]:
    """Columns of the sum, of the largest and of the smallest values."""
    total, largest, smallest = (strips[:, start:stop] for strips in (tally.total, tally.largest, tally.smallest))
    return total, largest, smallest


def _ranges(tally: _Tally) -> list[tuple[int, int]]:
    step = CHUNK_CUDA if tally.total.device.type == "cuda" else CHUNK_CPU
    return list(column_ranges(tally.shape.numel(), step))


def _add(tally: _Tally, index: int, tensor: Tensor) -> float:
    """Add the delta of task ``index`` and return its L1 norm."""
    flat = tensor.reshape(-1).contiguous()  # a vector with gaps in memory stays one under reshape
    norm = torch.zeros((), dtype=torch.float64, device=flat.device)
    for start, stop in _ranges(tally):
        d = read_strips(flat, start, stop)
        total, largest, smallest = _at(tally, start, stop)
        total.add_(d)
        torch.maximum(largest, d, out=largest)
        torch.minimum(smallest, d, out=smallest)
        tally.above[index, start:stop] = pack_strips(strictly_positive(d))
        tally.below[index, start:stop] = pack_strips(strictly_positive(-d))
        norm += d.abs().sum(dtype=torch.float64)
    return float(norm)


def _elect(tally: _Tally) -> tuple[Tensor, Tensor, list[float]]:
    """Elect the signs, turn ``above`` into the masks; return u, the masks, and the L1 norm of each ``M_i . u``."""
    tasks = len(tally.above)
    groups = -(-tasks // GROUP)
    sizes = torch.zeros(groups, GROUP, dtype=torch.float64, device=tally.total.device)
    u = torch.empty(tally.shape, dtype=tally.largest.dtype, device=tally.total.device)
    for start, stop in _ranges(tally):
        total, largest, smallest = _at(tally, start, stop)
        positive = total > 0
        chosen = torch.where(positive, largest, smallest).add_(0.0)  # no -0.0, so that equal results have equal bytes
        write_strips(u.view(-1), start, stop, chosen)
        masks, below = tally.above[:, start:stop], tally.below[:, start:stop]
        # One of two bits by a third, for 8 positions at a time: below ^ (elected & (above ^ below)).
        masks.bitwise_xor_(below).bitwise_and_(pack_strips(positive)).bitwise_xor_(below)
        kept = chosen.abs().double().view(-1)
        for g in range(groups):
            sizes[g] += sums_by_bit(codes(masks[GROUP * g : GROUP * (g + 1)]).to(torch.int32).view(-1), kept)
    return u, tally.above, sizes.view(-1)[:tasks].tolist()
