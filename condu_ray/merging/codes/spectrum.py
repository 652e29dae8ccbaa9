"""What a matrix costs and loses when quantised singular vectors stand for it: a curve of bits against squared error.

A component is ``alpha * a b^T``: ``a`` and ``b`` are the levels of a singular pair, each of its own width, and
``alpha`` the factor that fits the matrix best. Widths grow along a path, each step that which saves most error a bit,
over all components together (water-filling: a component of four times the energy gets a bit more an entry). The error
after each step is that of the stored numbers, not an estimate. A matrix whose spectrum is flat is better kept as the
signs of its entries, with a factor a row, beside few components or none: these are points too.

Of all points the lower convex hull is offered, so that who buys along it loses error at a falling rate.

Names: ``R`` rows, ``C`` columns, ``K`` components, ``W`` widths.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from condu_ray.merging.codes.quantiser import levels, quantise, widths

MAX_RANK = 128
"""Components that a matrix may have; what then is left costs a bit an entry at most, as signs."""
FACTOR_BITS = 16
"""A component's or a row's factor: bfloat16."""
WIDTH_BITS = 8
"""The two widths of a component."""
_NOTHING = 1e-12
"""Share of a matrix's largest singular value below which another one is rounding."""

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Step:
    """The path's next step: a component gets these widths, and with them this factor."""

    component: int
    left: int
    right: int
    factor: float


@dataclass(frozen=True)
class Corner:
    """A point of the hull: the first `steps` of the path, with or without the signs of what they leave."""

    bits: int
    error: float
    steps: int
    signs: bool


@dataclass(frozen=True)
class Spectrum:
    """Singular vectors (float32 [R, K], [C, K]), the path over their widths, and the hull, from nothing on."""

    left: Tensor
    right: Tensor
    path: tuple[Step, ...]
    hull: tuple[Corner, ...]


@dataclass(frozen=True)
class Part:
    """What is kept of a matrix: K components, and a factor a row where the signs of the rest are kept."""

    left: tuple[Tensor, ...]
    """Level numbers, uint8 [R] a component."""
    right: tuple[Tensor, ...]
    """Level numbers, uint8 [C] a component."""
    widths: tuple[tuple[int, int], ...]
    factors: tuple[float, ...]
    """Of the components; numbers of bfloat16."""
    signs: Tensor | None = None
    """Whether the rest is negative, bool."""
    row_factors: Tensor | None = None
    """float32 [R], numbers of bfloat16."""


def spectrum(matrix_RC: Tensor, *, overhead: int = 0, signs: bool = True) -> Spectrum:
    """Computes a matrix's curve.

    Args:
        matrix_RC: float64, no row zero.
        overhead: bits that the matrix costs as soon as anything is kept of it.
        signs: whether signs of the rest are offered too.

    Returns:
        The hull's errors are squared and exact up to float64's rounding; its first corner is nothing at all.
    """
    left_RK, value_K, right_CK = singular(matrix_RC)
    left, right = _at_all_widths(left_RK), _at_all_widths(right_CK)
    path, bits, errors = _path(matrix_RC, left, right, value_K, overhead)
    points = [Corner(0, float(matrix_RC.square().sum()), 0, False)]
    points += [Corner(b, e, n + 1, False) for n, (b, e) in enumerate(zip(bits, errors, strict=True))]
    rows, columns = matrix_RC.shape
    if signs and rows > 1:
        own = rows * columns + FACTOR_BITS * rows
        for mark in (0, *(4**n for n in range(10) if 4**n <= len(path))):
            rest_RC = matrix_RC - expand(build(left_RK, right_CK, path[:mark]), matrix_RC.shape).double()
            size_R = rounded(rest_RC.abs().mean(dim=1)).double()
            error = float((rest_RC.abs() - size_R[:, None]).square().sum())
            points.append(Corner(own + (bits[mark - 1] if mark else overhead), error, mark, True))
    return Spectrum(left_RK, right_CK, tuple(path), tuple(_hull(points)))


def _at_all_widths(vectors_LK: Tensor) -> Tensor:
    """Levels of vectors: float64 [L, W, K]."""
    wide = vectors_LK.double()
    return torch.stack([levels(width)[quantise(wide, width).long()] for width in widths(len(wide))], dim=1)


def singular(matrix_RC: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Returns U, S, V of a float64 matrix, the largest first: float32 [R, K], float64 [K], float32 [C, K].

    By the eigenvectors of the smaller Gram matrix in float64, which is several times as fast as an SVD; directions
    whose value is lost in its rounding are left out. Of each pair the entry of V that is largest is positive.
    """
    wide = matrix_RC.shape[1] > matrix_RC.shape[0]
    tall = matrix_RC.T if wide else matrix_RC
    square, vector = torch.linalg.eigh(tall.T @ tall)
    square, vector = square.flip(0)[:MAX_RANK].clamp(min=0), vector.flip(1)[:, :MAX_RANK]
    keep = square > _NOTHING * square[0]
    value_K, near = square[keep].sqrt(), vector[:, keep]
    far = (tall @ near) / value_K
    left, right = (near, far) if wide else (far, near)
    peak_K = right.gather(0, right.abs().argmax(dim=0, keepdim=True)).sign()
    return (left * peak_K).float(), value_K, (right * peak_K).float()


def build(left_RK: Tensor, right_CK: Tensor, path: Sequence[Step]) -> Part:
    """Makes what the beginning of a path stands for: the components as they are after its last step."""
    last = {step.component: step for step in path}
    chosen = [last[number] for number in sorted(last)]
    left, right = (
        _level_numbers(vectors, [(step.component, width) for step, width in zip(chosen, side, strict=True)])
        for vectors, side in (
            (left_RK, [step.left for step in chosen]),
            (right_CK, [step.right for step in chosen]),
        )
    )
    return Part(left, right, tuple((s.left, s.right) for s in chosen), tuple(s.factor for s in chosen))


def with_signs(part: Part, matrix_RC: Tensor) -> Part:
    """Adds the signs of what a part leaves of a matrix, and a factor a row: the rest's mean magnitude."""
    rest_RC = matrix_RC - expand(part, matrix_RC.shape).double()
    return replace(part, signs=rest_RC < 0, row_factors=rounded(rest_RC.abs().mean(dim=1)))


def _level_numbers(vectors_LK: Tensor, wanted: Sequence[tuple[int, int]]) -> tuple[Tensor, ...]:
    """Returns the level numbers of (component, width) pairs, uint8 [L] each; those of one width in one go."""
    found: dict[tuple[int, int], Tensor] = {}
    for width in {width for _, width in wanted}:
        which = [component for component, each in wanted if each == width]
        found |= {
            (k, width): column
            for k, column in zip(which, quantise(vectors_LK[:, which].double(), width).T, strict=True)
        }
    return tuple(found[one] for one in wanted)


def sides(part: Part) -> tuple[Tensor, Tensor]:
    """Returns the components, of which there is one at least: float32 [R, K], the factors in it, and [C, K]."""
    left = torch.stack([levels(w)[n.long()] for n, (w, _) in zip(part.left, part.widths, strict=True)], dim=1)
    right = torch.stack([levels(w)[n.long()] for n, (_, w) in zip(part.right, part.widths, strict=True)], dim=1)
    factor_K = torch.tensor(part.factors, dtype=torch.float64)
    return (left * factor_K).float(), right.float()


def expand(part: Part, shape: tuple[int, ...]) -> Tensor:
    """Returns the matrix that is kept: float32 [R, C]."""
    if part.factors:
        left_RK, right_CK = sides(part)
        found = left_RK @ right_CK.T
    else:
        found = torch.zeros(shape)
    if part.signs is not None and part.row_factors is not None:
        size = part.row_factors[:, None]
        found = found + torch.where(part.signs, -size, size)
    return found


def rounded(values: Tensor) -> Tensor:
    """Rounds to what a factor can be: float32 of bfloat16's numbers."""
    return values.float().bfloat16().float()


def _path(
    matrix_RC: Tensor, left: Tensor, right: Tensor, value_K: Tensor, overhead: int
) -> tuple[list[Step], list[int], list[float]]:
    """Returns the steps, and after each the bits and the squared error.

    Args:
        matrix_RC: the matrix.
        left: levels of U at all widths, float64 [R, W, K].
        right: levels of V, float64 [C, W, K].
        value_K: singular values.
        overhead: bits beside.
    """
    (rows, columns), count = matrix_RC.shape, len(value_K)
    sides = tuple(np.array(widths(length)) for length in (rows, columns))
    left_gram, right_gram = (_gram(each) for each in (left, right))  # [W, K, W, K]
    image = (matrix_RC @ right.reshape(columns, -1)).reshape(rows, len(sides[1]), count)
    match = np.einsum("rak,rbk->abk", left.numpy(), image.numpy(), optimize=True)
    squares = np.einsum("akak->ak", left_gram)[:, None] * np.einsum("akak->ak", right_gram)[None]
    factor = rounded(torch.from_numpy(match / squares)).double().numpy()
    # How much of a component its levels miss, as if components did not touch one another: this decides the order.
    energy_K = value_K.square().numpy()
    cost = rows * sides[0][:, None] + columns * sides[1][None] + FACTOR_BITS + WIDTH_BITS
    slope, k, a, b = _climb(energy_K - match**2 / squares, energy_K, cost)
    order = np.lexsort((k, -slope))
    k, a, b = k[order], a[order], b[order]

    # Where each component is before each step; -1: not there yet.
    steps = len(k)
    before = np.full((2, steps, count), -1)
    for n in range(1, steps):
        before[:, n] = before[:, n - 1]
        before[:, n, k[n - 1]] = a[n - 1], b[n - 1]
    here = np.arange(steps)
    there = before[0] >= 0
    old_a, old_b = before[0, here, k], before[1, here, k]
    alphas = np.where(there, factor[before[0], before[1], np.arange(count)], 0.0)
    others = alphas.copy()
    others[here, k] = 0

    def change(i: Ints, j: Ints, alpha: Floats) -> Floats:
        """What the step's component, at these widths, adds to the squared error beside the others."""
        everyone = np.arange(count)[None]
        near = left_gram[i[:, None], k[:, None], before[0], everyone]
        near = near * right_gram[j[:, None], k[:, None], before[1], everyone]
        crossing = (others * near).sum(axis=1)
        found: Floats = alpha**2 * squares[i, j, k] + 2 * alpha * (crossing - match[i, j, k])
        return found

    was = change(old_a, old_b, alphas[here, k])
    now = change(a, b, factor[a, b, k])
    errors = float(matrix_RC.square().sum()) + np.cumsum(now - was)
    bits = overhead + np.cumsum(cost[a, b] - np.where(there[here, k], cost[old_a, old_b], 0))
    left_width, right_width = sides[0][a], sides[1][b]
    path = [
        Step(int(k[n]), int(left_width[n]), int(right_width[n]), float(factor[a[n], b[n], k[n]])) for n in range(steps)
    ]
    return path, bits.astype(int).tolist(), np.maximum(errors, 0.0).tolist()


def _gram(columns_LWK: Tensor) -> Floats:
    length, width, count = columns_LWK.shape
    flat = columns_LWK.reshape(length, -1)
    found: Floats = (flat.T @ flat).reshape(width, count, width, count).numpy()
    return found


def _climb(errors: Floats, energy_K: Floats, cost: Ints) -> tuple[Floats, Ints, Ints, Ints]:
    """Returns every component's widths (by their numbers) from none to the finest, along its hull.

    Args:
        errors: squared error [W, W, K] of a component at all widths.
        energy_K: that of a component that is not there.
        cost: bits [W, W].

    Returns:
        Squared error saved a bit, component, left and right width of each step; of a component in their order.
    """
    count, width = len(energy_K), cost.shape[1]
    at, spent = energy_K.copy(), np.zeros(count)
    flat_errors, flat_cost = errors.reshape(-1, count), cost.reshape(-1, 1)
    found = []
    while True:
        ahead = (flat_cost > spent) & (flat_errors < at)
        slope = np.where(ahead, (at - flat_errors) / np.where(ahead, flat_cost - spent, 1), -1)
        best = slope.argmax(axis=0)
        gain = slope[best, np.arange(count)]
        go = np.flatnonzero(gain > 0)
        if not len(go):
            break
        found.append((gain[go], go, best[go] // width, best[go] % width))
        at[go], spent[go] = flat_errors[best[go], go], flat_cost[best[go], 0]
    empty = np.zeros(0, dtype=np.int64)
    if not found:
        return np.zeros(0), empty, empty, empty
    slopes, *rest = (np.concatenate(each) for each in zip(*found, strict=True))
    return slopes, rest[0], rest[1], rest[2]


def _hull(points: list[Corner]) -> list[Corner]:
    """Returns the corners of the lower convex hull, from the first point to that of the least error."""
    bits, error = (np.array([getattr(one, name) for one in points], dtype=np.float64) for name in ("bits", "error"))
    found = [points[0]]
    while True:
        here = found[-1]
        ahead = (bits > here.bits) & (error < here.error)
        if not ahead.any():
            return found
        slope = np.where(ahead, (here.error - error) / np.where(ahead, bits - here.bits, 1), -1)
        best = np.flatnonzero(slope == slope.max())
        found.append(points[int(best[bits[best].argmax()])])
