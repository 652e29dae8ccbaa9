"""Unify and decouple by torch's operations on chunks of a tensor, for what the compiled loops and kernels don't take.

Positions of a chunk are strips ``[8, C]`` (``trigger.py``), chunks are whole blocks (``blocks.py``).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from condu_ray.merging.blocks import BLOCK, block_ranges, block_sums
from condu_ray.merging.trigger import (
    GROUP,
    codes,
    pack_strips,
    read_strips,
    unpack_strips,
    write_strips,
)

CHUNK_CPU = 1 << 17
"""Positions per chunk on a CPU: the chunk's temporaries stay in its caches."""

CHUNK_CUDA = 1 << 22
"""Positions per chunk on a GPU: large enough to hide the launch of a kernel."""

_CODE_BITS = ((torch.arange(256)[:, None] >> torch.arange(GROUP)) & 1).double()  # bit t of code c: [256, 8]

Operands = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]
"""Of a tensor the new delta, u before and u, flat; the masks before, ``[T, W]``, and the masks, ``[T + 1, W]``."""


@contextmanager
def serial() -> Iterator[None]:
    """Run torch's CPU operations on the calling thread alone.

    A chunk's operations are so short that starting two threads for each gains a quarter at best, and on a busy machine,
    where every operation waits for a thread that is not scheduled, costs a factor of 10 and more (measured).
    """
    threads = torch.get_num_threads()
    if threads == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def wide_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype to compute in."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def rescaler_tables(rescalers: Sequence[float], device: torch.device) -> Tensor:
    """Of every 8 tasks the sum and the largest of the rescalers that a code selects: float64 ``[groups, 256, 2]``."""
    padded = torch.tensor([*rescalers] + [0.0] * (-len(rescalers) % GROUP), dtype=torch.float64, device=device)
    selected = _CODE_BITS.to(device) * padded.view(-1, 1, GROUP)
    total = selected[..., 0]
    for column in selected.unbind(-1)[1:]:
        total = total + column  # one after the other, as the compiled loop does
    return torch.stack([total, selected.amax(-1)], -1)


def unify_chunks(
    d: Tensor,
    u_old: Tensor,
    u_new: Tensor,
    rows_old: Tensor,
    rows_new: Tensor,
    tables: Tensor,
    sums: Tensor,
    chunk_size: int = 0,
) -> None:
    """Unifies one tensor, on any device.

    Args:
        d: The new delta's tensor, flat, contiguous, any floating dtype.
        u_old: u before, like ``d``; ``d`` itself where there is no task yet.
        u_new: Takes u, like ``d``.
        rows_old: Masks before, ``uint8`` ``[T, W]``.
        rows_new: Takes the masks, ``uint8`` ``[T + 1, W]``.
        tables: :func:`rescaler_tables` of the earlier tasks, in the dtype to compute in.
        sums: Takes every block's sizes of the tasks' masked u and of the new delta: float64 ``[blocks, T + 2]``.
        chunk_size: Positions to work on at a time; 0 chooses by device.
    """
    by_group = [tuple(map(Tensor.contiguous, table.unbind(-1))) for table in tables]
    for start, stop in block_ranges(len(d), chunk_size or _chunk_size(d.device)):
        new, earlier = (read_strips(one, start, stop) for one in (d, u_old))
        found = sums[start // BLOCK : -(-stop // BLOCK)]
        u = _unify(new, earlier, rows_old[:, start:stop], rows_new[:, start:stop], by_group, found)
        write_strips(u_new, start, stop, u)


def _chunk_size(device: torch.device) -> int:
    return CHUNK_CUDA if device.type == "cuda" else CHUNK_CPU


def _unify(
    d: Tensor, u_old: Tensor, rows_old: Tensor, rows_new: Tensor, tables: list[tuple[Tensor, ...]], sums: Tensor
) -> Tensor:
    """Unify one chunk: writes ``rows_new`` ``[T + 1, C]`` and ``sums`` ``[blocks, T + 2]``, returns u ``[8, C]``."""
    stored, wide = d.dtype, wide_dtype(d.dtype)
    d, u_old = d.to(wide), u_old.to(wide)
    weight_sum = weight_max = torch.zeros((), dtype=wide, device=d.device)
    for g, (table_sum, table_max) in enumerate(tables):
        index = codes(rows_old[GROUP * g : GROUP * (g + 1)]).to(torch.int32).view(-1)
        picked_sum = table_sum.index_select(0, index).view(d.shape)
        picked_max = table_max.index_select(0, index).view(d.shape)
        weight_sum = picked_sum if g == 0 else weight_sum.add_(picked_sum)
        weight_max = picked_max if g == 0 else torch.maximum(weight_max, picked_max, out=weight_max)

    # Elected sign, +1 or -1 and -1 where the sum is exactly 0. Signs by multiplication: torch.where is far slower.
    sign = strictly_positive(torch.addcmul(d, weight_sum, u_old)).mul_(2).sub_(1)
    new = sign * d
    earlier = (weight_max * u_old).mul_(sign)
    u = torch.maximum(earlier, new)  # |u|, never negative: some summand has the elected sign, or all are 0
    keep, match = strictly_positive(earlier), strictly_positive(new)
    sums[:, -1] = block_sums(new.abs())
    if stored != wide:
        u = u.to(stored).to(wide)  # the masks and the sums are those of the stored u ...
        stays = strictly_positive(u)  # ... which may have been rounded to 0
        keep, match = keep * stays, match * stays

    torch.bitwise_and(rows_old, pack_strips(keep), out=rows_new[:-1])
    rows_new[-1] = pack_strips(match)
    sums[:, -2] = block_sums(u * match)
    kept = u * keep
    together = max(1, BLOCK // max(1, len(u[0])))  # tasks at a time: of a small tensor as many as make a block
    for task in range(0, len(rows_old), together):
        rows = rows_old[task : task + together]
        sums[:, task : task + len(rows)] = block_sums(kept * unpack_strips(rows)).T
    return u.mul_(sign).add_(0.0)  # no -0.0, so that equal results have equal bytes


def strictly_positive(values: Tensor) -> Tensor:
    """1 where a value is above 0, else 0, in its own dtype: several times as fast as by way of bool."""
    return torch.gt(values, 0, out=torch.empty(values.shape, dtype=values.dtype, device=values.device))


def sums_by_bit(index: Tensor, weight: Tensor) -> Tensor:
    """For each of 8 bits the sum of ``weight`` where ``index`` has it: float64 ``[8]``."""
    if index.device.type == "cpu":
        return torch.bincount(index, weights=weight, minlength=256) @ _CODE_BITS
    # bincount adds in no fixed order on a GPU; plain sums give the same bits at every run.
    return torch.stack([(weight * ((index >> bit) & 1)).sum() for bit in range(GROUP)])


def decouple_chunks(u: Tensor, row: Tensor, scale: float, out: Tensor) -> None:
    """Decouples one tensor: ``out = scale * (mask . u)``, all flat, any floating dtype."""
    for start, stop in block_ranges(len(u), _chunk_size(u.device)):
        wide = read_strips(u, start, stop).to(wide_dtype(u.dtype)) * scale
        write_strips(out, start, stop, wide.mul_(unpack_strips(row[start:stop])))
