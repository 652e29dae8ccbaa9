"""Scalar quantisation of vectors whose entries look Gaussian, as those of singular vectors do: Lloyd-Max levels.

A vector of length n is kept as n level numbers; its size is kept elsewhere, in the one factor of its component. The
levels are those of a standard normal (Max, 1960, "Quantizing for minimum distortion"; Lloyd, 1982), which a test holds
to their defining property: each is the mean of what is nearest to it.

All widths in one go. Between two neighbours of the edges of all widths together, a bin, an entry's level at every width
is the same; so a vector's cosine with them follows from the count and the sum of its entries in each bin. Two ways with
the same bits, which add in the same order: the compiled loops of `fused.py`, and torch's operations.

Names: ``L`` entries of a vector, ``K`` vectors, ``W`` widths, ``B`` bins.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib import import_module
from types import ModuleType
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

MAX_BITS = 6
_POSITIVE = {
    1: (0.7979,),
    2: (0.4528, 1.5104),
    3: (0.2451, 0.7560, 1.3439, 2.1519),
    4: (0.1284, 0.3880, 0.6568, 0.9423, 1.2562, 1.6180, 2.0690, 2.7326),
    5: (
        0.0659, 0.1981, 0.3314, 0.4667, 0.6049, 0.7471, 0.8946, 1.0488,
        1.2118, 1.3863, 1.5762, 1.7872, 2.0287, 2.3177, 2.6911, 3.2607,
    ),
    6: (
        0.0334, 0.1003, 0.1673, 0.2346, 0.3022, 0.3703, 0.4389, 0.5083,
        0.5785, 0.6497, 0.7219, 0.7955, 0.8705, 0.9472, 1.0257, 1.1065,
        1.1897, 1.2758, 1.3651, 1.4583, 1.5558, 1.6586, 1.7675, 1.8840,
        2.0096, 2.1468, 2.2990, 2.4713, 2.6723, 2.9174, 3.2404, 3.7441,
    ),
}  # fmt: skip
_SPREADS = (0.8, 1.0, 1.2)
"""Standard deviations of the levels against that of the entries, of which the best is taken: tails differ.

A single bit is the sign, the same at every spread."""
_SHIFTS = torch.tensor([width * (width - 1) // 2 for width in range(MAX_BITS + 1)])
"""Where a packed number has the bits of a width: behind those of the narrower ones."""
_SLOTS = 128
"""Room for bins."""
_NEAR = 1e-12
"""Cosines that differ by less than this share of themselves may be equal."""


class Tables(NamedTuple):
    """What a bin is at every width; nothing falls into the last slots, which are no bins."""

    edges: Tensor
    """Between the bins, ascending: float64 [B - 1]; an entry that is an edge belongs below it."""
    packed: Tensor
    """Level numbers, each where its width has its bits: int32 [W, slots]."""
    values: Tensor
    """Levels: float64 [W, slots]."""
    spreads: Tensor
    """float64 [S]."""


@dataclass(frozen=True)
class Quantised:
    """Vectors at all widths."""

    packed: Tensor
    """Level numbers: int32 [K, L], for `level_numbers`."""
    values: Tensor
    """Levels: float64 [K, W, L]."""
    squares: Tensor
    """Sums of the levels' squares: float64 [K, W]."""

    def places(self, width: NDArray[np.int64]) -> Tensor:
        """Returns where widths are among those that the vectors have."""
        return torch.from_numpy(width - widths(self.values.shape[2])[0])


@cache
def levels(bits: int) -> Tensor:
    """Returns the levels of a width in ascending order: float64 [2^bits]; for 0 bits the one level 1."""
    if bits == 0:
        return torch.ones(1, dtype=torch.float64)
    positive = torch.tensor(_POSITIVE[bits], dtype=torch.float64)
    return torch.cat([-positive.flip(0), positive])


@cache
def tables() -> Tables:
    """Returns the bins of all widths but 0."""
    each = [(levels(width)[1:] + levels(width)[:-1]) / 2 for width in range(1, MAX_BITS + 1)]
    edges = torch.from_numpy(np.unique(torch.cat(each).numpy()))
    packed = torch.zeros(MAX_BITS, _SLOTS, dtype=torch.int32)
    values = torch.zeros(MAX_BITS, _SLOTS, dtype=torch.float64)
    lowest = torch.cat([edges[:1] - 1, edges])  # an entry just above the edge below a bin
    for row, own in enumerate(each):
        number = torch.bucketize(lowest, own, right=True)
        values[row, : len(lowest)] = levels(row + 1)[number]
        packed[row, : len(lowest)] = number << _SHIFTS[row + 1]
    return Tables(edges, packed, values, torch.tensor(_SPREADS, dtype=torch.float64))


def widths(length: int) -> tuple[int, ...]:
    """Returns the widths that a vector of a length may have: no bit for a single number, whose size is kept anyway."""
    return (0,) if length == 1 else tuple(range(1, MAX_BITS + 1))


def level_numbers(packed: Tensor, width: Tensor) -> Tensor:
    """Returns the level numbers at given widths: uint8.

    Args:
        packed: as of `quantise`.
        width: of an integer dtype, of a shape that can be expanded to that of `packed`.
    """
    return ((packed >> _SHIFTS[width]) & ((1 << width) - 1)).to(torch.uint8)


@cache
def loops() -> ModuleType | None:
    """The compiled loops, imported late; ``None`` where numba cannot be had."""
    try:
        return import_module("condu_ray.merging.codes.fused")
    except ImportError:
        return None


def quantise(vectors_LK: Tensor, *, compiled: bool = False) -> Quantised:
    """Chooses levels of every width for the columns of a matrix, so that a multiple of them is nearest to the column.

    Args:
        vectors_LK: any floating dtype, no column zero.
        compiled: whether by the compiled loops, which must be there: the same bits, where they are worth their loading.
    """
    length, count = vectors_LK.shape
    if length == 1:
        ones = torch.ones(count, 1, 1, dtype=torch.float64)
        return Quantised(torch.zeros(count, 1, dtype=torch.int32), ones, ones[:, :, 0])
    wide_LK = vectors_LK.double()
    unit_LK = wide_LK / wide_LK.square().mean(dim=0).sqrt()
    given, fast = tables(), loops() if compiled else None
    bins_SKL, times_SKB, total_SKB = (fast.count if fast else _count)(unit_LK.T.contiguous(), given)
    squares_SKW = times_SKB @ given.values.square().T
    cosine_SKW = (total_SKB @ given.values.T) / squares_SKW.sqrt()
    near_KW = (cosine_SKW > (1 - _NEAR) * cosine_SKW.amax(dim=0)).sum(dim=0) > 1
    for width in range(2, MAX_BITS + 1):
        if (near_K := near_KW[:, width - 1]).any():
            cosine_SKW[:, near_K, width - 1] = _cosines(unit_LK, width)[:, near_K]
    best_KW = cosine_SKW.argmax(dim=0)  # of equals the first
    packed_KL, values_KWL = (fast.fill if fast else _fill)(bins_SKL, best_KW, given)
    return Quantised(packed_KL, values_KWL, squares_SKW.gather(0, best_KW[None])[0])


def _count(unit_KL: Tensor, given: Tables) -> tuple[Tensor, Tensor, Tensor]:
    """Puts vectors into bins: each entry's, and of each bin how many and what sum: [S, K, L], float64 [S, K, slots]."""
    count, spreads = len(unit_KL), len(_SPREADS)
    bins_SKL = torch.stack([torch.bucketize(unit_KL / spread, given.edges) for spread in _SPREADS])
    slots = (bins_SKL + _SLOTS * torch.arange(spreads * count).view(spreads, count, 1)).view(-1)
    # On a CPU it adds one entry after the other.
    times, total = (
        torch.bincount(slots, weights, spreads * count * _SLOTS).view(spreads, count, _SLOTS).double()
        for weights in (None, unit_KL.repeat(spreads, 1).view(-1))
    )
    return bins_SKL, times, total


def _fill(bins_SKL: Tensor, best_KW: Tensor, given: Tables) -> tuple[Tensor, Tensor]:
    """Returns what vectors are at their best spreads: packed level numbers int32 [K, L], levels float64 [K, W, L]."""
    bins_WKL = bins_SKL[best_KW.T, torch.arange(len(best_KW))]
    values_KWL = torch.stack([row[at] for row, at in zip(given.values, bins_WKL, strict=True)], dim=1)
    packed_KL = torch.zeros(bins_SKL.shape[1:], dtype=torch.int32)
    for row, at in zip(given.packed, bins_WKL, strict=True):
        packed_KL |= row[at]
    return packed_KL, values_KWL


def _cosines(unit_LK: Tensor, bits: int) -> Tensor:
    """Cosines of vectors with their levels at every spread, entry by entry: float64 [S, K].

    Vectors of few entries or of one magnitude are equally near to several levels, but for rounding. It is this rounding
    that decides there, so that a delta has the code that it had when all was computed like this.
    """
    table, found = levels(bits), []
    for spread in _SPREADS:
        value_LK = table[torch.bucketize(unit_LK / spread, (table[1:] + table[:-1]) / 2)]
        found.append((unit_LK * value_LK).sum(dim=0) / value_LK.square().sum(dim=0).sqrt())
    return torch.stack(found)
