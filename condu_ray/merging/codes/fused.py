"""Levels of every width for vectors by compiled loops: what `quantiser.py` does with torch, and the same bits.

Compiled on first use, some seconds, and kept in numba's cache, as `merging/fused.py` says.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from condu_ray.merging.codes.quantiser import Tables
from condu_ray.merging.vectors import compiled

_CELLS = 256
"""Cells that a unit of entries is cut into, so that no cell has more than one edge."""
_REACH = 4
"""No edge is as far from 0."""


def count(unit_KL: Tensor, given: Tables) -> tuple[Tensor, Tensor, Tensor]:
    """As `quantiser._count`; bins are uint8."""
    edges, spreads = given.edges.numpy(), given.spreads.numpy()
    below = np.empty(2 * _REACH * _CELLS, dtype=np.uint8)
    if not _edges_below(edges, below):
        raise ValueError("two edges in a cell")
    bins = torch.empty(len(spreads), *unit_KL.shape, dtype=torch.uint8)
    times, total = torch.zeros(2, len(spreads), len(unit_KL), given.values.shape[1], dtype=torch.float64)
    _count(unit_KL.numpy(), np.append(edges, np.inf), spreads, below, bins.numpy(), times.numpy(), total.numpy())
    return bins, times, total


def fill(bins_SKL: Tensor, best_KW: Tensor, given: Tables) -> tuple[Tensor, Tensor]:
    """As `quantiser._fill`."""
    _, count, length = bins_SKL.shape
    packed = torch.empty(count, length, dtype=torch.int32)
    values = torch.empty(count, best_KW.shape[1], length, dtype=torch.float64)
    _fill(*(one.numpy() for one in (bins_SKL, best_KW, given.packed, given.values, packed, values)))
    return packed, values


@compiled
def _cell(entry):  # type: ignore[no-untyped-def]
    """An entry's cell; never a lower one for a larger entry."""
    return int(min(max(entry * _CELLS + _CELLS * _REACH, 0.0), 2.0 * _CELLS * _REACH - 1.0))


@compiled
def _edges_below(edges, below):  # type: ignore[no-untyped-def]
    """Of each cell the number of the edges in the cells before it; returns whether none has two."""
    below[:] = 0
    for e in range(len(edges)):
        at = _cell(edges[e])
        if e > 0 and at == _cell(edges[e - 1]):
            return False
        below[at + 1 :] += np.uint8(1)
    return True


@compiled
def _count(unit, edges, spreads, below, bins, times, total):  # type: ignore[no-untyped-def]
    for k in range(len(unit)):
        for s in range(len(spreads)):
            for i in range(unit.shape[1]):
                entry = unit[k, i] / spreads[s]
                b = np.intp(below[_cell(entry)])
                b += edges[b] < entry
                bins[s, k, i] = b
                times[s, k, b] += 1
                total[s, k, b] += unit[k, i]


@compiled
def _fill(bins, best, packed_of, value_of, packed, values):  # type: ignore[no-untyped-def]
    packed[:] = 0
    for k in range(len(packed)):
        for w in range(len(value_of)):
            for i in range(packed.shape[1]):
                b = bins[best[k, w], k, i]
                packed[k, i] |= packed_of[w, b]
                values[k, w, i] = value_of[w, b]
