"""The work of the compiled loops (``fused.py``) in pieces of tensors, which threads take (``threads.py``)."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np
import torch
from torch import Tensor

from condu_ray.merging import blocks
from condu_ray.merging.fused import BLOCK, decouple_blocks, scratch_bytes, unify_blocks
from condu_ray.merging.threads import Job
from condu_ray.merging.trigger import read_strips, trigger_bytes, write_strips

PIECE = 64
"""Blocks that a thread takes at a time: a fraction of a millisecond, so that threads end together."""

_ROUNDED = {torch.float32: 0, torch.float64: 0, torch.bfloat16: 1, torch.float16: 2}
"""How u is rounded to what is stored: not, to bfloat16, to float16."""


def unify_jobs(
    d: Tensor, u_old: Tensor, u_new: Tensor, rows_old: Tensor, rows_new: Tensor, rescalers: Tensor, sums: Tensor
) -> Iterator[Job]:
    """The work of unifying one tensor.

    Args:
        d: The new delta's tensor, flat, contiguous, any floating dtype.
        u_old: u before, like ``d``; ``d`` itself where there is no task yet.
        u_new: Takes u, like ``d``.
        rows_old: Masks before, ``uint8`` ``[T, W]``.
        rows_new: Takes the masks, ``uint8`` ``[T + 1, W]``.
        rescalers: Of the earlier tasks, float64 ``[T]``.
        sums: Takes every block's sizes of the tasks' masked u and of the new delta: float64 ``[blocks, T + 2]``.
    """
    width, rounded, count = trigger_bytes(len(d)), _ROUNDED[d.dtype], blocks.block_count(len(d))
    arrays = rows_old.reshape(-1).numpy(), rows_new.view(-1).numpy(), rescalers.numpy(), sums.numpy()
    for first in range(0, count, PIECE):
        last = min(first + PIECE, count)
        # Tensors' memory begins with a cache line, numpy's does not: loops whose vectors lie across two are slower.
        scratch = torch.empty(scratch_bytes(len(rescalers)), dtype=torch.uint8).numpy()
        if not rounded:
            flat = d.numpy(), u_old.numpy(), u_new.numpy()
            yield partial(unify_blocks, *flat, width, 0, *arrays, scratch, first, last, 0)
            continue

        def widened(first: int = first, last: int = last, scratch: np.ndarray = scratch) -> None:
            start = first * BLOCK
            stop = min(last * BLOCK, width)
            strips = [read_strips(one, start, stop).float().reshape(-1) for one in (d, u_old)]
            strips.append(torch.empty_like(strips[0]))
            unify_blocks(*(one.numpy() for one in strips), stop - start, start, *arrays, scratch, first, last, rounded)
            write_strips(u_new, start, stop, strips[-1].view(8, -1))

        yield widened


def decouple_jobs(u: Tensor, row: Tensor, scale: float, out: Tensor) -> Iterator[Job]:
    """The work of decoupling one tensor: ``out = scale * (mask . u)``, all flat, in float32 or float64."""
    width, count = trigger_bytes(len(u)), blocks.block_count(len(u))
    arrays = u.numpy(), row.numpy(), scale, out.numpy(), width
    for first in range(0, count, PIECE):
        last = min(first + PIECE, count)
        yield partial(decouple_blocks, *arrays, first, last)
