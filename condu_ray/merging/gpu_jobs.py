"""The work of the Triton kernels (``gpu.py``) on tensors, and whether they make the bits that a CPU makes."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import nullcontext
from functools import cache
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
"""How kernels are launched: 2 columns a thread; products and sums stay apart, where they are not one on purpose."""

_STEP = 1024
"""Blocks that a program adds up at a time."""


def unify(tensors: Sequence[Operands], tables: Tensor) -> Tensor:
    """Unifies all tensors of a delta, of one dtype and on one GPU.

    Args:
        tensors: Of each what is read and written.
        tables: ``chunks.rescaler_tables`` of the earlier tasks: float64 ``[groups, 256, 2]``.

    Returns:
        Of each the sizes of the tasks' masked u and of the new delta: float64 ``[tensors, T + 2]``.
    """
    d, rows = tensors[0][0], tensors[0][4]
    tasks, stored, wide = len(rows) - 1, _TYPES[d.dtype], wide_dtype(d.dtype)
    counts = [block_count(len(one[0])) for one in tensors]
    table, tensor_of, counts_N = _table(tensors, counts)
    sums = torch.empty((tasks + 2) * sum(counts), dtype=torch.float64, device=d.device)
    totals = torch.empty(len(tensors), tasks + 2, dtype=torch.float64, device=d.device)
    with _device(d.device):
        unify_kernel[(sum(counts),)](
            table, tensor_of, counts_N, tables.to(wide), sums, tasks, len(tables), stored, _TYPES[wide], **_ON
        )
        total_kernel[(totals.numel(),)](table, counts_N, sums, totals, tasks + 2, _STEP)
    return totals


def decouple(tensors: Sequence[tuple[Tensor, Tensor, Tensor]], scale: float) -> None:
    """Decouples all tensors of a state, of one dtype and on one GPU.

    Args:
        tensors: Of each u, the task's row of masks, and what takes the decoupled delta; flat.
        scale: The task's rescaler.
    """
    u = tensors[0][0]
    wide = wide_dtype(u.dtype)
    counts = [block_count(len(one[0])) for one in tensors]
    table, tensor_of, _ = _table([(one, one, out, row, row) for one, row, out in tensors], counts)
    factor = torch.tensor([scale], dtype=wide, device=u.device)
    with _device(u.device):
        decouple_kernel[(sum(counts),)](table, tensor_of, factor, _TYPES[u.dtype], _TYPES[wide], **_ON)


def _device(device: torch.device) -> torch.cuda.device | nullcontext[None]:
    """Triton launches where torch is; its interpreter, on a CPU."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def _table(tensors: Sequence[Operands], counts: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
    """What kernels know of tensors, ``[tensors, gpu.FIELDS]``; the tensor of every block; the blocks of a tensor."""
    rows, first, device = [], 0, tensors[0][0].device
    for one, count in zip(tensors, counts, strict=True):
        numel = len(one[0])
        rows.append([*(part.data_ptr() for part in one), numel, trigger_bytes(numel), first])
        first += count
    counts_N = torch.tensor(counts, device=device)
    numbers = torch.arange(len(rows), dtype=torch.int32, device=device)
    tensor_of = torch.repeat_interleave(numbers, counts_N, output_size=first)
    return torch.tensor(rows, device=device), tensor_of, counts_N


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
    totals = unify(there, tables.to(device))
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
