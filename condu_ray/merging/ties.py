"""TIES-Merging (Yadav et al., NeurIPS 2023, arXiv 2306.01708): trim, elect sign, disjoint mean.

The elected sign of a position is that of the sum of its trimmed values, and the merged value the mean of those that
have this sign. Both follow from four numbers a position: sum and count of the positive trimmed values, sum and count of
the negative ones. So each delta is read once and then forgotten; no ``[T, N]`` stack exists.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from condu_ray.merging.averaging import DeltaSource, check_merged, each_delta
from condu_ray.merging.chunks import CHUNK_CPU, CHUNK_CUDA, serial
from condu_ray.merging.delta import Delta, check_delta, check_layout
from condu_ray.merging.memory import empty
from condu_ray.merging.tally import Tally, dtypes, named, same_names
from condu_ray.merging.unify import fused_loops

_CHUNK = 1 << 20
"""Positions at a time of a histogram with ``_BINS`` bins: many, to be worth the bins."""

_BINS = 1 << 16
"""Values of a digit of :func:`kth_magnitude`: 16 bits."""

_MOST = 255
"""Deltas that a byte counts."""

_SIGNS = ("positive", "negative")


class _Side(NamedTuple):
    """The trimmed values of one sign, over the deltas so far: flat tensors ``[numel]``."""

    total: Tensor
    """Their sum, float32 or float64."""
    number: Tensor
    """How many they are, ``uint8`` or, past 255 deltas, ``int32``."""

    def named(self) -> list[tuple[str, Tensor]]:
        """Both, with their names."""
        return list(self._asdict().items())

    def widened(self) -> _Side:
        """The same, with counts of more than 255."""
        return _Side(self.total, self.number.to(torch.int32))


def ties(deltas: Mapping[str, DeltaSource], *, density: float = 0.2, scale: float = 1.0) -> dict[str, Tensor]:
    """Merge deltas by TIES.

    **Trim.** A delta of N positions keeps the values whose magnitude is at least that of rank ``N - int(density * N)``
    from below (rank 1 the smallest) over the whole delta, as the authors' code does: ``int(density * N) + 1`` values,
    one more than the paper's top ``density``, and more where magnitudes are equal: all those equal to the threshold
    stay. **Elect.** The sign of the sum of the trimmed values. Where that is exactly 0 it is the sign that more
    positions elected (over the whole delta), and negative if both are as many, as in the authors' code.
    **Merge.** ``scale`` times the mean of the trimmed values that have the elected sign; 0 where there is none.

    Args:
        deltas: Name of the task -> its delta or a function that loads it, called once; any floating dtype, one layout.
        density: Fraction of a delta that trimming keeps, in (0, 1]; 1 keeps all.
        scale: Factor of the result (lambda in the paper).

    Returns:
        New float32 tensors, float64 if a tensor of the deltas is. Sums are of that dtype, in the order of ``deltas``,
        so that another order may round otherwise. Memory beyond the result and one delta: about 6 bytes a position.

    Raises:
        DeltaError: There is no delta, their layouts differ, one holds NaN or infinity, or the result overflows.
        ValueError: ``density`` is not in (0, 1].
    """
    return TiesTally(density=density, scale=scale).merge(deltas, last=True)


class TiesTally(Tally):
    """The four numbers a position, of which :func:`ties` is made: 10 bytes, 16 where sums are float64.

    Args:
        density: As of :func:`ties`.
        scale: As of :func:`ties`.

    Raises:
        ValueError: ``density`` is not in (0, 1].
    """

    def __init__(self, *, density: float = 0.2, scale: float = 1.0) -> None:
        super().__init__()
        if not 0 < density <= 1:
            raise ValueError(f"density is {density}, it must be in (0, 1]")
        self._density, self._scale = density, scale
        self._sides: dict[str, tuple[_Side, _Side]] = {}

    @torch.no_grad()
    @serial()
    def merge(self, deltas: Mapping[str, DeltaSource], *, last: bool = False) -> dict[str, Tensor]:
        """As :meth:`Tally.merge`; where it is the ``last`` merge, what was counted becomes the result."""
        self.tasks, self.like, self._sides = (), {}, {}
        for task, delta in each_delta(deltas):
            self._count(task, delta)
            del delta
        return self._merged(last)

    @torch.no_grad()
    @serial()
    def add(self, task: str, delta: Delta, before: object) -> dict[str, Tensor]:
        """As :meth:`Tally.add`; the merge before is not looked at."""
        self._count(task, delta)
        return self._merged(False)

    def tensors(self) -> dict[str, Tensor]:
        """Sums and counts of both signs, of the deltas' shapes, and the deltas' dtypes."""
        found = dtypes(self.like)
        for name, pair in self._sides.items():
            for sign, side in zip(_SIGNS, pair, strict=True):
                found |= {f"{sign} {what}/{name}": part.view(self.like[name].shape) for what, part in side.named()}
        return found

    def restore(self, tensors: Mapping[str, Tensor], tasks: tuple[str, ...], before: object) -> None:
        """As :meth:`Tally.restore`."""
        types = named(tensors, "dtype")
        parts = [[named(tensors, f"{sign} {what}") for what in _Side._fields] for sign in _SIGNS]
        same_names(types, *parts[0], *parts[1])
        shapes = {name: tensor.shape for name, tensor in parts[0][0].items()}
        self.tasks = tasks
        self.like = {name: one.new_empty(()).expand(shapes[name]) for name, one in types.items()}
        self._sides = {
            name: (_Side(*(p[name].view(-1) for p in parts[0])), _Side(*(p[name].view(-1) for p in parts[1])))
            for name in types
        }

    def _count(self, task: str, delta: Delta) -> None:
        self.takes(task, delta)
        if not self._sides:
            self._sides = {name: (_side(delta, name), _side(delta, name)) for name in delta}
        if len(self.tasks) == _MOST + 1:
            self._sides = {name: (one.widened(), other.widened()) for name, (one, other) in self._sides.items()}
        numel = sum(tensor.numel() for tensor in delta.values())
        threshold = kth_magnitude(delta, max(1, numel - int(self._density * numel)), task) if numel else 0.0
        for name, pair in self._sides.items():
            flat = delta[name].detach().reshape(-1)
            if flat.dtype == pair[0].total.dtype and fused_loops(delta):
                from condu_ray.merging import fused_ties

                fused_ties.add_trimmed(flat.numpy(), threshold, *(part.numpy() for side in pair for part in side))
            else:
                _add_trimmed(pair, flat, threshold)

    def _merged(self, last: bool) -> dict[str, Tensor]:
        majority = sum(int(_elected(*pair, at).sum()) for pair in self._sides.values() for at in _slices(pair[0].total))
        merged = {}
        for name, (positive, negative) in self._sides.items():
            into = positive.total if last else torch.empty_like(positive.total)
            for at in _slices(positive.total):
                sign = _elected(positive, negative, at)
                chosen = sign >= 0 if majority > 0 else sign > 0
                above, below = (side.total[at] / side.number[at].clamp(min=1) for side in (positive, negative))
                into[at] = torch.where(chosen, above, below) * self._scale
            merged[name] = into.view(self.like[name].shape)
        check_merged(merged, self.tasks)
        return merged


@torch.no_grad()
def kth_magnitude(delta: Delta, rank: int, task: str | None = None) -> float:
    """The magnitude of a given rank over all values of a delta.

    Exact, by radix selection: magnitudes of floats are in the order of their bit patterns, of which histograms fix 16
    bits at a time from the top. Reads the delta twice (float64: four times) and sorts, copies and joins nothing.

    Args:
        delta: Any floating dtype.
        rank: From 1 for the smallest magnitude to N, the number of values, for the largest.
        task: Name of the task, for messages.

    Returns:
        The magnitude, exactly.

    Raises:
        DeltaError: As :func:`~condu_ray.merging.delta.check_delta`.
        ValueError: There is no such rank.
    """
    check_layout(delta, task=task)
    numel = sum(tensor.numel() for tensor in delta.values())
    if not 1 <= rank <= numel:
        raise ValueError(f"a delta of {numel} values has no magnitude of rank {rank}")
    wide = widest(delta)
    integer, digits = (torch.int64, 4) if wide == torch.float64 else (torch.int32, 2)
    infinity = int(torch.tensor(float("inf"), dtype=wide).view(integer)) >> 16 * (digits - 1)
    prefix = 0
    for shift in range(16 * (digits - 1), -1, -16):
        counts = torch.zeros(_BINS, dtype=torch.int64, device=next(iter(delta.values())).device)
        rest = []
        for tensor in delta.values():
            flat = tensor.detach().reshape(-1)
            if flat.dtype == wide == torch.float32 and fused_loops(delta):
                from condu_ray.merging import fused_ties

                fused_ties.count_digits(flat.numpy().view(np.uint32), prefix if shift == 0 else -1, counts.numpy())
            else:
                rest.append(flat)
        for magnitudes in _magnitudes(rest, wide):
            bits = magnitudes.view(integer)
            if shift < 16 * (digits - 1):
                bits = bits[bits >> (shift + 16) == prefix]
            counts += torch.bincount(bits.bitwise_right_shift(shift).bitwise_and_(_BINS - 1), minlength=_BINS)
        if shift == 16 * (digits - 1) and counts[infinity:].any():
            check_delta(delta, task=task)
        below = counts.cumsum(0)
        digit = int(torch.searchsorted(below, rank))
        rank -= int(below[digit] - counts[digit])
        prefix = prefix << 16 | digit
    return float(torch.tensor(prefix, dtype=integer).view(wide))


def _magnitudes(flats: Sequence[Tensor], wide: torch.dtype) -> Iterator[Tensor]:
    """Magnitudes of flat tensors, up to ``_CHUNK`` at a time: small ones together, as a piece goes over all bins."""
    together: list[Tensor] = []
    room = _CHUNK
    for piece in (flat[start : start + _CHUNK] for flat in flats for start in range(0, flat.numel(), _CHUNK)):
        if piece.numel() > room:
            yield torch.cat(together).abs_()
            together, room = [], _CHUNK
        together.append(piece.to(wide))
        room -= piece.numel()
    if together:
        yield torch.cat(together).abs_()


def widest(delta: Delta) -> torch.dtype:
    """The dtype that all values of a delta can be compared in: float64 if one of its tensors is, else float32."""
    return torch.float64 if any(tensor.dtype == torch.float64 for tensor in delta.values()) else torch.float32


def _side(delta: Delta, name: str) -> _Side:
    numel, device = delta[name].numel(), delta[name].device
    return _Side(empty((numel,), widest(delta), device).zero_(), empty((numel,), torch.uint8, device).zero_())


def _slices(flat: Tensor) -> Iterator[slice]:
    """Pieces of a flat tensor that stay in a CPU's caches."""
    step = CHUNK_CUDA if flat.device.type == "cuda" else CHUNK_CPU
    return (slice(start, start + step) for start in range(0, flat.numel(), step))


def _add_trimmed(sides: tuple[_Side, _Side], flat: Tensor, threshold: float) -> None:
    """Add the values of one delta whose magnitude is at least the threshold, and not 0, to the side of their sign."""
    for at in _slices(flat):
        values = flat[at].to(sides[0].total.dtype)
        for side, beyond, at_least in zip(sides, (torch.gt, torch.lt), (torch.ge, torch.le), strict=True):
            limit = threshold if side is sides[0] else -threshold
            kept = torch.empty_like(values)  # 0 and 1 in the values' dtype: much faster than by way of bool
            (at_least if threshold > 0 else beyond)(values, limit, out=kept)
            side.total[at].addcmul_(values, kept)
            side.number[at].add_(kept.to(side.number.dtype))


def _elected(positive: _Side, negative: _Side, at: slice) -> Tensor:
    """Sign of the sum of all trimmed values: -1, 0 or 1."""
    return (positive.total[at] + negative.total[at]).sign_()
