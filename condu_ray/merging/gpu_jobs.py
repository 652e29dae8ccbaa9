"""The work of the Triton kernels (``gpu.py``) on tensors, and whether they make the bits that a CPU makes."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import nullcontext
from functools import cache, lru_cache
from typing import Literal, cast

import torch
import triton.language as tl
from torch import Tensor

from condu_ray.merging.blocks import BLOCK, block_count, total_of_blocks
from condu_ray.merging.chunks import Operands, decouple_chunks, rescaler_tables, unify_chunks, wide_dtype
from condu_ray.merging.gpu import decouple_kernel, total_kernel, unify_kernel
from condu_ray.merging.trigger import GROUP, trigger_bytes

log = logging.getLogger(__name__)

_TYPES = {
    torch.float32: tl.float32, torch.float64: tl.float64, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16,
}  # fmt: skip
_ON = {"num_warps": 4, "enable_fp_fusion": False}
"""How kernels are launched: products and sums stay apart, where they are not one on purpose."""

_UNIFY = {torch.float32: _ON | ({} if torch.version.hip else {"maxnreg": 80}), torch.float64: _ON}
_DECOUPLE = _ON | {"num_warps": 2}
"""The fastest of those tried on an H200, where more registers left too few threads to wait for memory. AMD's Triton
knows no bound on them."""

_STEP = 1024
"""Blocks that a program adds up at a time."""


def unify(tensors: Sequence[Operands], tables: Tensor) -> Tensor:
    """Unifies all tensors of a delta, of one dtype and on one GPU.

    Args:
        tensors: Of each what is read and written.
        tables: ``chunks.rescaler_tables`` of the earlier tasks: float64 ``[groups, 256, 2]``, on a CPU.

    Returns:
        Of each the sizes of the tasks' masked u and of the new delta: float64 ``[tensors, T + 2]``.
    """
    d, rows = tensors[0][0], tensors[0][4]
    tasks, stored, wide, device = len(rows) - 1, _TYPES[d.dtype], wide_dtype(d.dtype), d.device
    table, tensor_of, counts, blocks = _table(tensors)
    sums = torch.empty((tasks + 2) * blocks, dtype=torch.float64, device=device)
    totals = torch.empty(len(tensors), tasks + 2, dtype=torch.float64, device=device)
    with _device(device):
        codes = tables.to(wide).to(device)
        unify_kernel[(blocks,)](
            table, tensor_of, counts, codes, sums, tasks, len(tables), stored, _TYPES[wide], **_UNIFY[wide]
        )
        total_kernel[(totals.numel(),)](table, counts, sums, totals, tasks + 2, _STEP, **_ON)
    return totals


def decouple(tensors: Sequence[tuple[Tensor, Tensor, Tensor]], scale: float) -> None:
    """Decouples all tensors of a state, of one dtype and on one GPU.

    Args:
        tensors: Of each u, the task's row of masks, and what takes the decoupled delta; flat.
        scale: The task's rescaler.
    """
    u = tensors[0][0]
    wide = wide_dtype(u.dtype)
    table, tensor_of, _, blocks = _table([(one, one, out, row, row) for one, row, out in tensors])
    factor = torch.tensor([scale], dtype=wide, device=u.device)
    with _device(u.device):
        decouple_kernel[(blocks,)](table, tensor_of, factor, _TYPES[u.dtype], _TYPES[wide], **_DECOUPLE)


def _device(device: torch.device) -> torch.cuda.device | nullcontext[None]:
    """Triton launches where torch is; its interpreter, on a CPU."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def _table(tensors: Sequence[Operands]) -> tuple[Tensor, Tensor, Tensor, int]:
    """What kernels know of tensors, ``[tensors, gpu.FIELDS]``; of every block the tensor; of it the blocks; and all."""
    numels, device = tuple(len(one[0]) for one in tensors), tensors[0][0].device
    firsts, tensor_of, counts = _blocks(numels, device)
    rows = [
        (*(part.data_ptr() for part in one), numel, trigger_bytes(numel), first)
        for one, numel, first in zip(tensors, numels, firsts, strict=False)
    ]
    return torch.tensor(rows, device=device), tensor_of, counts, firsts[-1]


@lru_cache(maxsize=8)
def _blocks(numels: tuple[int, ...], device: torch.device) -> tuple[list[int], Tensor, Tensor]:
    """First blocks of tensors, and how many there are; of every block its tensor; of every tensor its blocks.

    A model's are asked for again and again, and making them is a part of what the host does while a GPU waits.
    """
    counts = torch.tensor([block_count(numel) for numel in numels])
    tensor_of = torch.arange(len(numels), dtype=torch.int32).repeat_interleave(counts)
    return [0, *counts.cumsum(0).tolist()], tensor_of.to(device), counts.to(device)


@cache
def trusted(device: torch.device, dtype: torch.dtype, work: Literal["unify", "decouple"]) -> bool:
    """Whether a kernel makes a CPU's bits of a small delta here, found out once; warns where it does not.

    Args:
        device: A GPU.
        dtype: Of the deltas.
        work: Which kernel.
    """
    if dtype not in _TYPES:
        return False
    try:
        (_check_unify if work == "unify" else _check_decouple)(device, dtype)
    except Exception as error:  # of a compiler, a driver, a device: whatever it is, torch does without
        text = f"{type(error).__name__}: {error}".strip().splitlines()[0]
        log.warning("Triton's %s on %s, %s: %s; torch does it there", work, device, dtype, text)
        return False
    return True


def _drawn(dtype: torch.dtype, tasks: int) -> list[Operands]:
    """What :func:`unify` takes of three tensors: values of about 1e-3, zeros, sums that are 0, random masks."""
    generator, found = torch.Generator().manual_seed(0), []
    for numel in (3 * 8 * BLOCK + 77, 8 * BLOCK, 5):
        d, u_old = (torch.randn(numel, generator=generator).mul(1e-3).to(dtype) for _ in range(2))
        d[::7], u_old[::11] = 0, 0
        u_old[::13] = -d[::13]
        shape = tasks, trigger_bytes(numel)
        rows = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
        found.append((d, u_old, torch.empty_like(d), rows, rows.new_empty(tasks + 1, shape[1])))
    return found


def _check_unify(device: torch.device, dtype: torch.dtype) -> None:
    tasks = GROUP + 3
    tables = rescaler_tables([0.5 + 0.1 * task for task in range(tasks)], torch.device("cpu"))
    here = _drawn(dtype, tasks)
    there = [cast(Operands, tuple(part.to(device, copy=True) for part in one)) for one in here]
    totals = unify(there, tables)
    for one, other, total in zip(here, there, totals, strict=True):
        sums = torch.empty(block_count(len(one[0])), tasks + 2, dtype=torch.float64)
        unify_chunks(*one, tables.to(wide_dtype(dtype)), sums)
        _check("u", one[2], other[2])
        _check("masks", one[4], other[4])
        _check("sizes", total_of_blocks(sums), total)


def _check_decouple(device: torch.device, dtype: torch.dtype) -> None:
    here = [(u, rows[0], torch.empty_like(u)) for _, u, _, rows, _ in _drawn(dtype, 1)]
    there = [(u.to(device), row.to(device), torch.empty_like(u, device=device)) for u, row, _ in here]
    decouple(there, 1.1)
    for (u, row, out), (_, _, found) in zip(here, there, strict=True):
        decouple_chunks(u, row, 1.1, out)
        _check("the decoupled delta", out, found)


def _check(what: str, expected: Tensor, found: Tensor) -> None:
    if not torch.equal(expected.view(torch.uint8), found.cpu().view(torch.uint8)):
        raise ArithmeticError(f"{what}: other bits than a CPU's")
