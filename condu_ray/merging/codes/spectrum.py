"""What a matrix costs and loses when quantised singular vectors stand for it: a curve of bits against squared error.

A component is ``alpha * a b^T``: ``a`` and ``b`` are the levels of a singular pair, each of its own width, and
``alpha`` the factor that fits the matrix best. Widths grow along a path (`path.py`). The error after each step is that
of the stored numbers, not an estimate. A matrix whose spectrum is flat is better kept as the signs of its entries, with
a factor a row, beside few components or none: these are points too.

Of all points the lower convex hull is offered, so that who buys along it loses error at a falling rate.

Names: ``R`` rows, ``C`` columns, ``K`` components.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from condu_ray.merging.codes.part import Part, error_of_signs, narrow
from condu_ray.merging.codes.path import FACTOR_BITS, Floats, Ints, Path, climb
from condu_ray.merging.codes.quantiser import MAX_BITS, Quantised, level_numbers, quantise

MAX_RANK = 128
"""Components that a matrix may have; what then is left costs a bit an entry at most, as signs."""
_STRIP = 192
"""Columns of a Gram matrix that are computed at a time."""
_NOTHING = 1e-12
"""Share of a matrix's largest squared singular value below which another one's square is rounding."""


@dataclass(frozen=True)
class Corner:
    """A point of the hull: the first `steps` of the path, with or without the signs of what they leave."""

    bits: int
    error: float
    steps: int
    signs: bool


@dataclass(frozen=True)
class Spectrum:
    """The path over the widths of a matrix's singular vectors, and the hull, from nothing on."""

    left: Tensor
    """Level numbers of left singular vectors at all widths, packed: int32 [K, R]."""
    right: Tensor
    """Of right ones: int32 [K, C]."""
    path: Path
    hull: tuple[Corner, ...]


def spectrum(matrix_RC: Tensor, *, overhead: int = 0, signs: bool = True, compiled: bool = False) -> Spectrum:
    """Computes a matrix's curve.

    Args:
        matrix_RC: float64, no row zero.
        overhead: bits that the matrix costs as soon as anything is kept of it.
        signs: whether signs of the rest are offered too.
        compiled: whether vectors are quantised by the compiled loop; the result is the same.

    Returns:
        The hull's errors are squared and exact up to float64's rounding; its first corner is nothing at all.
    """
    left_RK, value_K, right_CK = singular(matrix_RC)
    left, right = (quantise(vectors, compiled=compiled) for vectors in (left_RK, right_CK))
    path, bits, errors = climb(matrix_RC, left, right, value_K, overhead)
    count = len(path)
    steps, signed = np.arange(count + 1), np.zeros(count + 1, dtype=np.bool_)
    bits, errors = np.append(0, bits), np.append(float(matrix_RC.square().sum()), errors)
    rows, columns = matrix_RC.shape
    if signs and rows > 1:
        marks = np.array([0, *(4**n for n in range(10) if 4**n <= count)])
        own = rows * columns + FACTOR_BITS * rows
        left_over = [error_of_signs(matrix_RC, _product(left, right, path.end(mark))) for mark in marks]
        bits = np.append(bits, own + np.where(marks > 0, bits[marks], overhead))
        errors, steps, signed = np.append(errors, left_over), np.append(steps, marks), np.append(signed, marks >= 0)
    hull = tuple(Corner(int(bits[n]), float(errors[n]), int(steps[n]), bool(signed[n])) for n in _hull(bits, errors))
    return Spectrum(left.packed, right.packed, path, hull)


def singular(matrix_RC: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Returns U, S, V of a float64 matrix, the largest first: float32 [R, K], float64 [K], float32 [C, K].

    By the eigenvectors of the smaller Gram matrix in float64, which is several times as fast as an SVD; directions
    whose value is lost in its rounding are left out. Of each pair the entry of V that is largest is positive.
    """
    wide = matrix_RC.shape[1] > matrix_RC.shape[0]
    tall = matrix_RC.T if wide else matrix_RC
    square, vector = torch.linalg.eigh(_lower_gram(tall), UPLO="L")
    square, vector = square.flip(0)[:MAX_RANK].clamp(min=0), vector.flip(1)[:, :MAX_RANK]
    keep = square > _NOTHING * square[0]
    value_K, near = square[keep].sqrt(), vector[:, keep]
    far = (tall @ near) / value_K
    left, right = (near, far) if wide else (far, near)
    peak_K = right.gather(0, right.abs().argmax(dim=0, keepdim=True)).sign()
    return (left * peak_K).float(), value_K, (right * peak_K).float()


def work_bytes(rows: int, columns: int) -> int:
    """Returns about how many bytes `spectrum` works in at a time: the matrix, eigenvectors, levels, their images."""
    least, most = sorted((rows, columns))
    count = min(MAX_RANK, least)
    return 8 * (2 * rows * columns + 4 * least**2 + MAX_BITS * count * (2 * most + 3 * least))


def _lower_gram(tall_RC: Tensor) -> Tensor:
    """Products of a matrix's columns, [C, C]; of large ones little more than what an eigensolver reads, the lower half.

    In strips, which a multiplication adds up as it adds up the whole: with MKL the bits are the same.
    """
    count = tall_RC.shape[1]
    if count < 2 * _STRIP:
        return tall_RC.T @ tall_RC
    found = tall_RC.new_zeros(count, count)
    for first in range(0, count, _STRIP):
        found[first:, first : first + _STRIP] = tall_RC[:, first:].T @ tall_RC[:, first : first + _STRIP]
    return found


def build(left_KR: Tensor, right_KC: Tensor, path: Path, steps: int) -> Part:
    """Makes what the first steps of a path stand for, of level numbers at all widths."""
    end = path.end(steps)
    which, factors = torch.from_numpy(end.component), torch.from_numpy(end.factor)
    width_K2 = torch.from_numpy(np.stack([end.left, end.right], axis=1))
    left, right = (
        level_numbers(packed[which], width[:, None])
        for packed, width in zip((left_KR, right_KC), width_K2.T, strict=True)
    )
    return Part(left, right, width_K2, factors)


def _product(left: Quantised, right: Quantised, end: Path) -> Tensor:
    """What `part.expand` makes of components without the signs of a rest, from levels that are there: [R, C]."""
    which, factor_K = torch.from_numpy(end.component), torch.from_numpy(end.factor)
    left_KR, right_KC = (
        one.values[which, one.places(width)] for one, width in zip((left, right), (end.left, end.right), strict=True)
    )
    left_RK, right_CK = narrow(left_KR, right_KC, factor_K)
    return left_RK @ right_CK.T


def _hull(bits: Ints, error: Floats) -> list[int]:
    """Returns the corners of points' lower convex hull, from the first point to that of the least error."""
    order = np.argsort(bits, kind="stable")
    bits, error = bits[order], error[order]
    found = [0]
    while True:
        here = found[-1]
        first = int(np.searchsorted(bits, bits[here], side="right"))
        slope = (error[here] - error[first:]) / (bits[first:] - bits[here])
        top = slope.max(initial=0.0)
        if top == 0:
            return [int(at) for at in order[found]]
        best = first + np.flatnonzero(slope == top)
        found.append(int(best[bits[best].argmax()]))
