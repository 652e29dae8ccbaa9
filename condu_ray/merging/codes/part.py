"""What is kept of a matrix: components of levels, and where they buy more the signs of what these leave."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache

import torch
from torch import Tensor

from condu_ray.merging.codes.quantiser import MAX_BITS, levels

_ENTRIES = 1 << 16
"""Entries of a matrix that are worked on at a time: in float64 half of a second cache."""


@dataclass(frozen=True)
class Part:
    """What is kept of a matrix: K components, and a factor a row where the signs of the rest are kept."""

    left: Tensor
    """Level numbers, uint8 [K, R]."""
    right: Tensor
    """Level numbers, uint8 [K, C]."""
    widths: Tensor
    """Of the components, left and right: int64 [K, 2]."""
    factors: Tensor
    """Of the components: float64 [K], numbers of bfloat16."""
    signs: Tensor | None = None
    """Whether the rest is negative, bool [R, C]."""
    row_factors: Tensor | None = None
    """float32 [R], numbers of bfloat16."""


def with_signs(part: Part, matrix_RC: Tensor) -> Part:
    """Adds the signs of what a part leaves of a matrix, and a factor a row: the rest's mean magnitude."""
    rest_RC = matrix_RC - expand(part, matrix_RC.shape).double()
    return replace(part, signs=rest_RC < 0, row_factors=rounded(rest_RC.abs().mean(dim=1)))


def error_of_signs(matrix_RC: Tensor, kept_RC: Tensor) -> float:
    """Returns the squared error that is left where the signs of a matrix's rest are kept.

    Args:
        matrix_RC: float64.
        kept_RC: float32, what is kept beside.
    """
    found, step = 0.0, max(1, _ENTRIES // max(1, matrix_RC.shape[1]))
    for first in range(0, len(matrix_RC), step):
        at = slice(first, first + step)
        rest = (matrix_RC[at] - kept_RC[at]).abs_()
        left = (rest - rounded(rest.mean(dim=1, keepdim=True)).double()).view(-1)
        found += float(left @ left)
    return found


def sides(part: Part) -> tuple[Tensor, Tensor]:
    """Returns the components: float32 [R, K], the factors in it, and [C, K]."""
    left_K, right_K = part.widths.T
    return narrow(_of_widths(part.left, left_K), _of_widths(part.right, right_K), part.factors)


def narrow(left_KR: Tensor, right_KC: Tensor, factor_K: Tensor) -> tuple[Tensor, Tensor]:
    """As `sides`, of levels in float64."""
    return (left_KR * factor_K[:, None]).float().T.contiguous(), right_KC.float().T.contiguous()


def _of_widths(numbers_KL: Tensor, width_K: Tensor) -> Tensor:
    """Returns levels of numbers: float64 [K, L]."""
    return _all_levels()[width_K[:, None], numbers_KL.long()]


@cache
def _all_levels() -> Tensor:
    """Levels by width and number: float64 [widths, numbers], 0 where there is none."""
    found = torch.zeros(MAX_BITS + 1, 1 << MAX_BITS, dtype=torch.float64)
    for width, row in enumerate(found):
        row[: 1 << width] = levels(width)
    return found


def expand(part: Part, shape: tuple[int, ...]) -> Tensor:
    """Returns the matrix that is kept: float32 [R, C]."""
    left_RK, right_CK = sides(part)
    found = left_RK @ right_CK.T
    if part.signs is not None and part.row_factors is not None:
        size = part.row_factors[:, None]
        found = found + torch.where(part.signs, -size, size)
    return found


def rounded(values: Tensor) -> Tensor:
    """Rounds to what a factor can be: float32 of bfloat16's numbers."""
    return values.float().bfloat16().float()
