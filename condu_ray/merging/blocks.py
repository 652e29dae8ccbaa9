"""Sums over a delta's positions in one fixed order, whoever computes them: chunks, threads, CPU or GPU.

A block is 256 columns of a tensor's 8 strips (see ``trigger.py``). Its sum adds the strips one after the other, then
halves the columns; the sums of blocks are halved again. Float64 all the way, from values that are 0 in the padding.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from condu_ray.merging.trigger import trigger_bytes

BLOCK = 256
"""Columns of a block: 2,048 positions, whose temporaries stay in the cache of a core."""


def block_count(numel: int) -> int:
    """Blocks of a tensor of ``numel`` positions."""
    return -(-trigger_bytes(numel) // BLOCK)


def block_ranges(numel: int, chunk_size: int) -> Iterator[tuple[int, int]]:
    """Cut a tensor's columns into chunks of whole blocks, as ``(start, stop)``.

    Args:
        numel: Positions of the tensor.
        chunk_size: Positions of a chunk; rounded up to whole blocks.
    """
    width = trigger_bytes(numel)
    step = BLOCK * max(1, -(-chunk_size // (8 * BLOCK)))
    for start in range(0, width, step):
        yield start, min(start + step, width)


def block_sums(values_K8C: Tensor) -> Tensor:
    """Sums of a chunk's blocks.

    Args:
        values_K8C: Strips ``[..., 8, C]``, at least 0, any floating dtype.

    Returns:
        float64 ``[..., ceil(C / BLOCK)]``.
    """
    first, *others = values_K8C.unbind(-2)
    sums = first.double()
    for strip in others:
        sums = sums + strip
    columns = sums.shape[-1]
    width = min(BLOCK, 1 << columns.bit_length())  # no halving of what is padding alone
    padded = torch.nn.functional.pad(sums, (0, -columns % width))
    blocks: Tensor = padded.reshape(*sums.shape[:-1], -(-columns // width), width)
    while (half := blocks.shape[-1] // 2) > 0:
        blocks = blocks[..., :half] + blocks[..., half:]
    return blocks[..., 0]


def total_of_blocks(sums: Tensor) -> Tensor:
    """Sum over the first dimension, in the order above.

    Args:
        sums: ``[blocks, ...]``; written to.

    Returns:
        ``[...]``; zeros if there is no block.
    """
    count = len(sums)
    if not count:
        return sums.new_zeros(sums.shape[1:])
    while count > 1:
        half = (count + 1) // 2
        sums[: count - half] += sums[half:count]
        count = half
    return sums[0].clone()
