"""The work of the compiled loops (``fused.py``) in pieces of tensors, which threads take (``threads.py``)."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from threading import local
from typing import Any

import torch
from torch import Tensor

from condu_ray.merging import blocks
from condu_ray.merging.fused import BLOCK, decouple_blocks, scratch_bytes, sum_blocks, unify_blocks
from condu_ray.merging.threads import Job
from condu_ray.merging.trigger import read_strips, trigger_bytes, write_strips

PIECE = 512
"""Blocks that a thread takes at most at a time: a millisecond or so, that threads end together."""

_WIDENED = 64
"""The same of half precision, whose pieces are widened to float32 and should stay in the caches."""

_LEAST = 32
"""Blocks that are worth being handed over."""

_of_thread = local()

_ROUNDED = {torch.float32: 0, torch.float64: 0, torch.bfloat16: 1, torch.float16: 2}
"""How u is rounded to what is stored: not, to bfloat16, to float16."""


def unify_jobs(
    d: Tensor, u_old: Tensor, u_new: Tensor, rows_old: Tensor, rows_new: Tensor, tables: Tensor, sums: Tensor
) -> Iterator[Job]:
    """The work of unifying one tensor: arguments as those of ``chunks.unify_chunks``, on a CPU, ``d`` contiguous."""
    width, rounded, count = trigger_bytes(len(d)), _ROUNDED[d.dtype], blocks.block_count(len(d))
    arrays = rows_old.reshape(-1).numpy(), rows_new.view(-1).numpy(), tables.view(-1).numpy(), sums.numpy()
    for first, last in _pieces(count, _WIDENED if rounded else PIECE):
        if not rounded:
            flat = d.numpy(), u_old.numpy(), u_new.numpy()
            yield partial(_unify, *flat, width, 0, *arrays, first, last, 0)
            continue

        def widened(first: int = first, last: int = last) -> None:
            start = first * BLOCK
            stop = min(last * BLOCK, width)
            strips = [read_strips(one, start, stop).float().reshape(-1) for one in (d, u_old)]
            strips.append(torch.empty_like(strips[0]))
            _unify(*(one.numpy() for one in strips), stop - start, start, *arrays, first, last, rounded)
            write_strips(u_new, start, stop, strips[-1].view(8, -1))

        yield widened


def _unify(*arguments: Any) -> None:
    """``unify_blocks`` in the thread's scratch. New memory for every piece would be new pages every time."""
    *arrays, first, last, rounded = arguments
    size = scratch_bytes(arrays[8].shape[1] - 2)
    if len(getattr(_of_thread, "scratch", ())) < size:
        # Tensors' memory begins with a cache line, numpy's does not: loops whose vectors lie across two are slower.
        _of_thread.scratch = torch.empty(size, dtype=torch.uint8).numpy()
    unify_blocks(*arrays, _of_thread.scratch, first, last, rounded)


def _pieces(count: int, most: int = PIECE) -> Iterator[tuple[int, int]]:
    """Cut a tensor's blocks for the threads, as ``(first, last)``: some pieces a thread, where they are worth it."""
    threads = torch.get_num_threads()
    step = most if threads == 1 else max(_LEAST, min(most, count // (4 * threads)))
    for first in range(0, count, step):
        yield first, min(first + step, count)


def total_of_blocks(sums: Tensor) -> Tensor:
    """As the function of that name in ``blocks.py``."""
    if not len(sums):
        return sums.new_zeros(sums.shape[1:])
    sum_blocks(sums.numpy())
    return sums[0]


def decouple_jobs(u: Tensor, row: Tensor, scale: float, out: Tensor) -> Iterator[Job]:
    """The work of decoupling one tensor: ``out = scale * (mask . u)``, all flat, in float32 or float64."""
    width, count = trigger_bytes(len(u)), blocks.block_count(len(u))
    arrays = u.numpy(), row.numpy(), scale, out.numpy(), width
    for first, last in _pieces(count):
        yield partial(decouple_blocks, *arrays, first, last)
