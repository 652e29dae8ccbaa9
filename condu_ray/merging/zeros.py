"""Where a task's delta is 0: a row of bits as a mask's (see ``trigger.py``), or the positions, whichever is less.

With the elected signs and a task's mask it says the signs of the whole delta: in the mask the elected one, elsewhere
the other, or none. Few values of a fine-tuned model are exactly where they were, so this is nearly nothing.
"""

from __future__ import annotations

import torch
from torch import Tensor

from condu_ray.merging.trigger import trigger_bytes, unpack

_ONES = torch.tensor([code.bit_count() for code in range(256)], dtype=torch.uint8)
_STEP = 1 << 20
_LARGEST = 2**31
"""Positions of a tensor that an int32 counts."""


def zeros_of(row_W: Tensor, numel: int) -> Tensor:
    """The zeros of a tensor from the bits of all that is not 0.

    Args:
        row_W: ``uint8`` ``[ceil(numel / 8)]``: a bit a position that is not 0.
        numel: Positions.

    Returns:
        The row itself, or ``int32`` positions of the zeros in order.
    """
    ones = _ONES.to(row_W.device)
    bits = sum([int(ones[row_W[at : at + _STEP].int()].sum()) for at in range(0, len(row_W), _STEP)])
    if 4 * (numel - bits) >= len(row_W) or numel > _LARGEST:
        return row_W
    return unpack(row_W, (numel,)).logical_not_().nonzero().view(-1).to(torch.int32)


def row_of(zeros: Tensor, numel: int) -> Tensor:
    """The row of bits of all that is not 0, from what :func:`zeros_of` gave; not to be written to."""
    if zeros.dtype == torch.uint8:
        return zeros
    width = trigger_bytes(numel)
    row = torch.full((width,), 255, dtype=torch.uint8, device=zeros.device)
    for k in range(8):
        if (start := k * width) + width > numel:  # padding is 0
            row[max(0, numel - start) :] &= 255 - (1 << k)
    strips, columns = zeros // max(width, 1), zeros % max(width, 1)
    for k in range(8):
        row[columns[strips == k].long()] &= 255 - (1 << k)
    return row
