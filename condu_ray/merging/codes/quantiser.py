"""Scalar quantisation of vectors whose entries look Gaussian, as those of singular vectors do: Lloyd-Max levels.

A vector of length n is kept as n level numbers; its size is kept elsewhere, in the one factor of its component. The
levels are those of a standard normal (Max, 1960, "Quantizing for minimum distortion"; Lloyd, 1982), which a test holds
to their defining property: each is the mean of what is nearest to it.
"""

from __future__ import annotations

from functools import cache

import torch
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
"""Standard deviations of the levels against that of the entries, of which the best is taken: tails differ."""


@cache
def levels(bits: int) -> Tensor:
    """Returns the levels of a width in ascending order: float64 [2^bits]; for 0 bits the one level 1."""
    if bits == 0:
        return torch.ones(1, dtype=torch.float64)
    positive = torch.tensor(_POSITIVE[bits], dtype=torch.float64)
    return torch.cat([-positive.flip(0), positive])


def widths(length: int) -> tuple[int, ...]:
    """Returns the widths that a vector of a length may have: no bit for a single number, whose size is kept anyway."""
    return (0,) if length == 1 else tuple(range(1, MAX_BITS + 1))


def quantise(vectors_LK: Tensor, bits: int) -> Tensor:
    """Chooses level numbers for the columns of a matrix, so that a multiple of the levels is nearest to the column.

    Args:
        vectors_LK: float64, no column zero.
        bits: 0 (for L = 1) to `MAX_BITS`.

    Returns:
        uint8 [L, K].
    """
    if bits == 0:
        return torch.zeros(vectors_LK.shape, dtype=torch.uint8)
    table = levels(bits)
    edges = (table[1:] + table[:-1]) / 2
    unit_LK = vectors_LK / vectors_LK.square().mean(dim=0).sqrt()
    best_K = torch.full((vectors_LK.shape[1],), -1.0, dtype=torch.float64)
    found_LK = torch.zeros(vectors_LK.shape, dtype=torch.uint8)
    for spread in (1.0,) if bits == 1 else _SPREADS:
        index_LK = torch.bucketize(unit_LK / spread, edges)
        value_LK = table[index_LK]
        cosine_K = (unit_LK * value_LK).sum(dim=0) / value_LK.square().sum(dim=0).sqrt()
        better_K = cosine_K > best_K
        best_K = torch.where(better_K, cosine_K, best_K)
        found_LK = torch.where(better_K, index_LK.to(torch.uint8), found_LK)
    return found_LK
