"""How much of an expert's delta survives, estimated at positions that were sampled when the expert was published.

Positions where the delta is zero and the others are sampled apart: of a small CLIP two thirds are token rows that no
prompt uses, and a sample over all positions would mostly say that nothing is nothing. Each part is stratified: one
position from each of equally long stretches of it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from condu_ray.merging.delta import Delta, DeltaError

POSITIONS = 2**16
"""Positions that are kept of a delta, at most: 12 bytes each."""
ZEROS = 4
"""Of that many positions one is for those where the delta is zero."""
_CHUNK = 1 << 20


@dataclass(frozen=True, eq=False)
class Sample:
    """Some of a delta's values.

    Attributes:
        positions: int64 [S], ascending, in the delta's tensors one after the other, by name.
        values: what the delta has there, float32 or, of a float64 delta, float64 [S].
        nonzero: positions of the whole delta that are not zero.
        total: positions of the whole delta.
    """

    positions: Tensor
    values: Tensor
    nonzero: int
    total: int

    def tensors(self) -> dict[str, Tensor]:
        """Returns what a file keeps of it."""
        counts = torch.tensor([self.nonzero, self.total])
        return {"positions": self.positions, "values": self.values, "counts": counts}

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> Sample:
        """Reads what `tensors` returned.

        Raises:
            ValueError: it is not that.
        """
        try:
            positions, values = tensors["positions"], tensors["values"]
            nonzero, total = tensors["counts"].tolist()
        except (KeyError, ValueError) as error:
            raise ValueError(f"no sample of a delta ({error!r})") from error
        inside = len(positions) == len(values) and bool((positions.diff() > 0).all())
        if not inside or (len(positions) and not 0 <= int(positions[0]) <= int(positions[-1]) < total):
            raise ValueError("no sample of a delta: its positions are out of range or of order")
        return cls(positions, values, nonzero, total)


@dataclass(frozen=True)
class Estimate:
    """What `reconstruction` would find, as far as a sample tells.

    Attributes:
        relative_l2: as of `Reconstruction`.
        sign_agreement: as of `Reconstruction`.
        relative_l2_error: standard error of `relative_l2`; 0 where all positions were looked at.
    """

    relative_l2: float
    sign_agreement: float
    relative_l2_error: float


@torch.no_grad()
def sample(delta: Delta, positions: int = POSITIONS) -> Sample:
    """Samples a delta; equal deltas give equal samples.

    Args:
        delta: any floating dtype, on any device; read twice, piece by piece.
        positions: how many, at most.

    Raises:
        DeltaError: the delta is empty.
    """
    counts = np.array([[int(chunk.count_nonzero()), chunk.numel()] for _, chunk in _chunks(delta)]).reshape(-1, 2)
    nonzero, total = (int(each) for each in counts.sum(axis=0))
    if not total:
        raise DeltaError("the delta is empty")
    generator = torch.Generator().manual_seed(0)
    zeros = min(total - nonzero, positions // ZEROS if nonzero else positions)
    wanted = (_ranks(nonzero, positions - zeros, generator), _ranks(total - nonzero, zeros, generator))
    before = np.zeros(2, dtype=np.int64)
    found = []
    for (start, chunk), (inside, length) in zip(_chunks(delta), counts, strict=True):
        after = before + np.array([inside, length - inside])
        for part, ranks in enumerate(wanted):
            low, high = np.searchsorted(ranks, [before[part], after[part]])
            if low < high:
                at = (chunk != 0 if part == 0 else chunk == 0).nonzero().flatten().cpu()
                found.append(at[torch.from_numpy(ranks[low:high] - before[part])] + start)
        before = after
    places = torch.cat(found).sort().values
    return Sample(places, values_at(delta, places), nonzero, total)


def values_at(delta: Delta, positions: Tensor) -> Tensor:
    """Returns the values of a delta at a sample's positions, on the CPU: float32 or, of a float64 delta, float64."""
    wide = torch.float64 if any(tensor.dtype == torch.float64 for tensor in delta.values()) else torch.float32
    found, start = [], 0
    for name in sorted(delta):
        flat = delta[name].detach().reshape(-1)
        low, high = np.searchsorted(positions.numpy(), [start, start + len(flat)])
        found.append(flat[(positions[low:high] - start).to(flat.device)].to("cpu", wide))
        start += len(flat)
    return torch.cat(found)


def estimate(known: Sample, decoupled: Delta) -> Estimate:
    """Estimates how near a decoupled delta is to the one that it stands for.

    A ratio estimate in the positions that are not zero in the original, plus what the decoupled delta has in the
    others; its error by linearisation (Cochran, Sampling Techniques, 6.3 and 5.3).

    Args:
        known: sample of the original.
        decoupled: the other one, on any device.

    Raises:
        DeltaError: it has not as many positions as the original.
    """
    if (count := sum(tensor.numel() for tensor in decoupled.values())) != known.total:
        raise DeltaError(f"the delta has {count} positions, the one that was sampled {known.total}")
    was, now = known.values.double(), values_at(decoupled, known.positions).double()
    live, zeros = was != 0, known.total - known.nonzero
    was, now, extra = was[live], now[live], now[~live].square()
    extra_sq = zeros * float(extra.mean()) if len(extra) else 0.0
    if not len(was):
        same = extra_sq == 0
        return Estimate(0.0 if same else math.inf, float(same), 0.0)
    error, square = (now - was).square(), was.square()
    agreement = float((was.sign() == now.sign()).double().mean())
    original_sq = known.nonzero * float(square.mean())
    ratio = float(error.sum() / square.sum()) + extra_sq / original_sq
    missed = _variance(error - ratio * square, known.nonzero) + _variance(extra, zeros)
    size = math.sqrt(ratio)
    return Estimate(size, agreement, math.sqrt(missed) / original_sq / (2 * size) if size else 0.0)


def _variance(values: Tensor, among: int) -> float:
    """Variance of the estimated sum over `among` positions, of which these were sampled."""
    count = len(values)
    return among**2 * (1 - count / among) * float(values.var()) / count if 1 < count < among else 0.0


def _chunks(delta: Delta) -> Iterator[tuple[int, Tensor]]:
    """Yields pieces of the flat tensors, by name, each with its first position."""
    start = 0
    for name in sorted(delta):
        flat = delta[name].detach().reshape(-1)
        for begin in range(0, len(flat), _CHUNK):
            yield start + begin, flat[begin : begin + _CHUNK]
        start += len(flat)


def _ranks(among: int, wanted: int, generator: torch.Generator) -> NDArray[np.int64]:
    """Draws one number from each of equal stretches of `range(among)`: ascending, all of them where they are few."""
    if among <= wanted:
        return np.arange(among)
    edges = np.arange(wanted + 1) * among // wanted
    share = torch.rand(wanted, dtype=torch.float64, generator=generator).numpy()
    found: NDArray[np.int64] = edges[:-1] + (share * np.diff(edges)).astype(np.int64)
    return found
