"""The codes as their pages state them, one entry and one component at a time: slow twins, which only tests use."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from condu_ray.merging.codes.quantiser import MAX_BITS, levels
from condu_ray.merging.delta import Delta

SPREADS = (0.8, 1.0, 1.2)


class Point(NamedTuple):
    """What a matrix can be kept as: bits, squared error, and the matrix that comes back."""

    bits: int
    error: float
    matrix: Tensor


def signed(deltas: Mapping[str, Delta]) -> dict[str, dict[str, Tensor]]:
    """Every task's ``lambda_r S . m`` after all tasks, float64; see `shared_sign.py`."""
    found: dict[str, dict[str, Tensor]] = {task: {} for task in deltas}
    first = next(iter(deltas.values()))
    for name in first:
        magnitude = torch.zeros_like(_rows(first[name]))
        for delta in deltas.values():
            size = _rows(delta[name]).abs()
            used = [row for row in size if row.any()]
            mean = float(torch.cat(used).mean()) if used else 1.0
            for r, row in enumerate(size):
                for c, value in enumerate(row.tolist()):
                    magnitude[r, c] += max(1, round(value / mean * 1024)) if value else 0
        for task, delta in deltas.items():
            rows = _rows(delta[name])
            out = torch.zeros_like(rows)
            for r, row in enumerate(rows):
                if row.any():
                    kept = row.sign() * magnitude[r]
                    out[r] = float(row.abs().sum().bfloat16()) / kept.abs().sum() * kept
            found[task][name] = out.reshape(first[name].shape)
    return found


def low_rank(
    delta: Delta, bits: float, *, signs: bool = True, weights: Mapping[str, float] | None = None
) -> dict[str, Tensor]:
    """What comes back of a delta by a budget, float64; see `low_rank.py`."""
    times = weights or dict.fromkeys(delta, 1.0)
    hulls, places = {}, {}
    for name in sorted(delta):
        rows = _rows(delta[name])
        places[name] = [r for r in range(len(rows)) if rows[r].any()]
        if places[name]:
            among, kept = len(rows), len(places[name])
            overhead = 0 if among == kept else min(among, kept * max(1, (among - 1).bit_length()))
            hulls[name] = hull(points(rows[places[name]], overhead, signs))
    at, spent, budget = dict.fromkeys(hulls, 0), 0, bits * sum(tensor.numel() for tensor in delta.values())
    while ahead := [
        (times[n] * (h[at[n]].error - h[at[n] + 1].error) / (h[at[n] + 1].bits - h[at[n]].bits), n)
        for n, h in hulls.items()
        if at[n] + 1 < len(h)
    ]:
        name = max(ahead, key=lambda one: one[0])[1]
        spent += hulls[name][at[name] + 1].bits - hulls[name][at[name]].bits
        if spent > budget and any(at.values()):
            break
        at[name] += 1
    found = {}
    for name, tensor in delta.items():
        out = torch.zeros_like(_rows(tensor))
        if name in hulls:
            out[places[name]] = hulls[name][at[name]].matrix
        found[name] = out.reshape(tensor.shape)
    return found


def points(matrix: Tensor, overhead: int, signs: bool) -> list[Point]:
    """All that `spectrum.py` offers of a matrix, the hull not yet taken."""
    rows, columns = matrix.shape
    u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    pairs = [
        (u[:, k].float().double(), float(s[k]), vh[k].float().double()) for k in range(len(s)) if s[k] > 1e-6 * s[0]
    ]
    steps = []
    for k, (left, value, right) in enumerate(pairs):
        options = []
        for a in [0] if rows == 1 else range(1, MAX_BITS + 1):
            for b in [0] if columns == 1 else range(1, MAX_BITS + 1):
                x, y = _nearest(left, a), _nearest(right, b)
                fits = float(x @ matrix @ y)
                error = value**2 - fits**2 / float(x @ x * (y @ y))
                alpha = float(torch.tensor(fits / float(x @ x * (y @ y))).bfloat16())
                options.append((a * rows + b * columns + 16 + 8, error, alpha * torch.outer(x, y)))
        at, spent = value**2, 0
        while ahead := [((at - one[1]) / (one[0] - spent), one) for one in options if one[0] > spent and one[1] < at]:
            slope, (spent, at, outer) = max(ahead, key=lambda one: one[0])
            steps.append((slope, k, spent, outer))
    steps.sort(key=lambda one: (-one[0], one[1]))
    zero = torch.zeros_like(matrix)
    found = [Point(0, float(matrix.square().sum()), zero)]
    now: dict[int, tuple[int, Tensor]] = {}
    sums = [(overhead, zero)]
    for _, k, spent, outer in steps:
        now[k] = (spent, outer)
        total = sum((each for _, each in now.values()), zero)
        sums.append((overhead + sum(each for each, _ in now.values()), total))
        found.append(Point(sums[-1][0], float((matrix - total).square().sum()), total))
    for mark in [0, 1, 4, 16, 64, 256, 1024] if signs and rows > 1 else []:
        if mark < len(sums):
            rest = matrix - sums[mark][1]
            size = rest.abs().mean(dim=1, keepdim=True).bfloat16().double()
            total = sums[mark][1] + torch.where(rest < 0, -size, size)
            error = float((matrix - total).square().sum())
            found.append(Point(sums[mark][0] + rows * columns + 16 * rows, error, total))
    return found


def hull(offered: list[Point]) -> list[Point]:
    """From the first point, always to where most error is saved a bit."""
    found = [offered[0]]
    while ahead := [one for one in offered if one.bits > found[-1].bits and one.error < found[-1].error]:
        here = found[-1]
        found.append(max(ahead, key=lambda one: ((here.error - one.error) / (one.bits - here.bits), one.bits)))
    return found


def _nearest(vector: Tensor, bits: int) -> Tensor:
    """The levels that a multiple of is nearest to a vector, of those at three spreads."""
    unit, best, found = vector / vector.square().mean().sqrt(), -1.0, vector
    for spread in (1.0,) if bits <= 1 else SPREADS:
        value = torch.stack([levels(bits)[(x / spread - levels(bits)).abs().argmin()] for x in unit])
        cosine = float(unit @ value / value.norm())
        if cosine > best:
            best, found = cosine, value
    return found


def _rows(tensor: Tensor) -> Tensor:
    return (tensor.reshape(tensor.shape[0], -1) if tensor.ndim > 1 else tensor.reshape(1, -1)).double()
