"""ConDU's unify and decouple as one Triton kernel over the blocks of all tensors, for deltas on a GPU.

The arithmetic of ``chunks.py`` in the same order, and so the bits that a CPU makes: a program has a block (see
``blocks.py``) in its registers, so that all is read and written once. ``gpu_jobs.py`` calls it.

A kernel gets all tensors at once, by a table of their addresses: a model has hundreds, most of them small, and a launch
for each would take longer than its work.
"""

# Triton knows tuples, by strip, that grow by ``+`` alone.
# ruff: noqa: RUF005
# mypy: disable-error-code="assignment, var-annotated"

from __future__ import annotations

import triton
import triton.language as tl

from condu_ray.merging import blocks

BLOCK = tl.constexpr(blocks.BLOCK)
FIELDS = tl.constexpr(8)
"""What the table says of a tensor: addresses of d, u before, u, masks before and masks; positions; columns; and the
first of its blocks among those of all."""


@triton.jit  # type: ignore[untyped-decorator]
def _place(table, tensor_of, stored: tl.constexpr):  # type: ignore[no-untyped-def]
    """This program's tensor: its addresses, positions, columns, and the columns in hand."""
    block = tl.program_id(0).to(tl.int64)
    row = table + FIELDS * tl.load(tensor_of + block).to(tl.int64)
    d = tl.load(row).to(tl.pointer_type(stored))
    u_old = tl.load(row + 1).to(tl.pointer_type(stored))
    u_new = tl.load(row + 2).to(tl.pointer_type(stored))
    rows_old = tl.load(row + 3).to(tl.pointer_type(tl.uint8))
    rows_new = tl.load(row + 4).to(tl.pointer_type(tl.uint8))
    numel, width, first = tl.load(row + 5), tl.load(row + 6), tl.load(row + 7)
    columns = BLOCK * (block - first) + tl.arange(0, BLOCK)
    return d, u_old, u_new, rows_old, rows_new, numel, width, first, columns


@triton.jit
def _codes(rows, first, tasks, width, columns):  # type: ignore[no-untyped-def]
    """Masks of 8 tasks from ``first`` on: byte ``k`` is the code of strip ``k`` (``trigger.codes``)."""
    word = tl.zeros([BLOCK], tl.int64)
    for t in tl.static_range(8):
        there = columns < tl.where(first + t < tasks, width, 0)
        row = tl.load(rows + (first + t) * width + columns, there, 0)
        word |= row.to(tl.int64) << (8 * t)
    swap = (word ^ (word >> 7)) & 0x00AA00AA00AA00AA
    word = word ^ swap ^ (swap << 7)
    swap = (word ^ (word >> 14)) & 0x0000CCCC0000CCCC
    word = word ^ swap ^ (swap << 14)
    swap = (word ^ (word >> 28)) & 0x00000000F0F0F0F0
    return word ^ swap ^ (swap << 28)


@triton.jit
def _block_sums(values):  # type: ignore[no-untyped-def]
    """Sums over a block's columns, ``[BLOCK, n]``, which are halved: the order of a plain sum is the compiler's."""
    for step in tl.static_range(8):
        values = tl.sum(tl.reshape(values, (2, 128 >> step, values.shape[-1])), 0)
    return tl.reshape(values, (values.shape[-1],))


@triton.jit  # type: ignore[untyped-decorator]
def _factors(codes, at, wide: tl.constexpr):  # type: ignore[no-untyped-def]
    """Of codes the sum and the largest of the rescalers, in one load where both are of 4 bytes."""
    if wide == tl.float32:
        both = tl.load(codes.to(tl.pointer_type(tl.int64)) + at)
        total, most = both.to(tl.int32), (both >> 32).to(tl.int32)
        return total.to(tl.float32, bitcast=True), most.to(tl.float32, bitcast=True)
    else:
        return tl.load(codes + 2 * at), tl.load(codes + 2 * at + 1)


@triton.jit  # type: ignore[untyped-decorator]
def _size(strips, bits, wide: tl.constexpr):  # type: ignore[no-untyped-def]
    """Sums of what ``bits`` has, one strip after the other: float64 ``[BLOCK]``.

    For values that were of 4 bytes a bit is made 2.0, and they are halved, both exactly: less work than to choose
    between a value and 0. A float64 may be too small to be halved.
    """
    total = tl.zeros([BLOCK], tl.float64)
    for k in tl.static_range(8):
        if wide == tl.float32:
            two = (bits.to(tl.int64) << (62 - k)) & (1 << 62)
            total = tl.fma(two.to(tl.float64, bitcast=True), 0.5 * strips[k].to(tl.float64), total)
        else:
            total += tl.where((bits >> k) & 1 != 0, strips[k], 0)
    return total


# A kernel for 1 and for every multiple of 16 is not worth its compiling.
@triton.jit(do_not_specialize=["tasks", "groups"])  # type: ignore[untyped-decorator]
def unify_kernel(  # type: ignore[no-untyped-def]
    table, tensor_of, counts, codes, sums, tasks, groups, stored: tl.constexpr, wide: tl.constexpr
):
    """Unifies a block.

    Args:
        table: int64 ``[tensors, FIELDS]``.
        tensor_of: int32 ``[blocks]``, the tensor of every block.
        counts: int64 ``[tensors]``, how many blocks it has.
        codes: ``[groups, 256, 2]`` in ``wide``: of 8 tasks the sum and the largest of the rescalers that a code has.
        sums: takes float64 ``[T + 2, blocks of the tensor]`` of every tensor, one after the other.
        tasks: T, how many were unified before.
        groups: of 8 of them.
        stored: what deltas and u are stored in.
        wide: what is computed in.
    """
    d, u_old, u_new, rows_old, rows_new, numel, width, first, columns = _place(table, tensor_of, stored)
    inside, none = columns < width, tl.zeros([BLOCK], wide)
    news = ()  # by strip
    olds = ()
    for k in tl.static_range(8):
        at = k * width + columns
        there = inside & (at < numel)
        news, olds = news + (tl.load(d + at, there, 0),), olds + (tl.load(u_old + at, there, 0),)
    weights = (none, none, none, none, none, none, none, none)
    largest = weights
    for g in range(groups):
        words = _codes(rows_old, 8 * g, tasks, width, columns)
        heavier = ()
        larger = ()
        for k in tl.static_range(8):
            weight, most = _factors(codes, 256 * g + ((words >> (8 * k)).to(tl.int32) & 255), wide)
            heavier, larger = heavier + (weights[k] + weight,), larger + (tl.maximum(largest[k], most),)
        weights, largest = heavier, larger
    keep, match = tl.zeros([BLOCK], tl.int32), tl.zeros([BLOCK], tl.int32)
    strips = ()
    size = tl.zeros([BLOCK], tl.float64)
    for k in tl.static_range(8):
        x, v = news[k].to(wide), olds[k].to(wide)
        elected, most = tl.fma(weights[k], v, x) > 0, largest[k] * v
        new, earlier = tl.where(elected, x, 0 - x), tl.where(elected, most, 0 - most)
        u = tl.where(new > earlier, new, earlier)
        stays, matches = earlier > 0, new > 0
        if stored != wide:
            u = u.to(stored).to(wide)  # the masks and the sums are those of the stored u
            stays, matches = stays & (u > 0), matches & (u > 0)
        at = k * width + columns
        tl.store(u_new + at, tl.where(elected, u, 0 - u).to(stored), inside & (at < numel))  # 0 - 0 is 0.0
        keep, match = keep | tl.where(stays, 1 << k, 0), match | tl.where(matches, 1 << k, 0)
        strips = strips + (u,)
        size += tl.abs(x).to(tl.float64)
    tl.store(rows_new + tasks * width + columns, match.to(tl.uint8), inside)
    count = tl.load(counts + tl.load(tensor_of + tl.program_id(0)))
    sums += (tasks + 2) * first + tl.program_id(0) - first
    both = tl.join(_size(strips, match, wide), size)
    tl.store(sums + (tasks + tl.arange(0, 2)) * count, _block_sums(both))
    for t in range(tasks):
        row = tl.load(rows_old + t * width + columns, inside, 0).to(tl.int32) & keep
        tl.store(rows_new + t * width + columns, row.to(tl.uint8), inside)
        total = _block_sums(tl.reshape(_size(strips, row, wide), (BLOCK, 1)))
        tl.store(sums + t * count + tl.arange(0, 1), total)


@triton.jit(do_not_specialize=["columns"])  # type: ignore[untyped-decorator]
def total_kernel(table, counts, sums, totals, columns, step: tl.constexpr):  # type: ignore[no-untyped-def]
    """Sums of a tensor's blocks, a task's: what ``blocks.total_of_blocks`` does, in place."""
    tensor = tl.program_id(0) // columns
    count = tl.load(counts + tensor)
    first = tl.load(table + FIELDS * tensor + 7)
    sums += columns * first + (tl.program_id(0) % columns) * count
    there = count > 0
    while count > 1:
        half = (count + 1) // 2
        for begin in range(0, count - half, step):
            at = begin + tl.arange(0, step)
            pair = at < count - half
            tl.store(sums + at, tl.load(sums + at, pair) + tl.load(sums + half + at, pair), pair)
        tl.debug_barrier()  # others of this program read what was written
        count = half
    tl.store(totals + tl.program_id(0), tl.load(sums, there, 0))


@triton.jit  # type: ignore[untyped-decorator]
def decouple_kernel(table, tensor_of, scale, stored: tl.constexpr, wide: tl.constexpr):  # type: ignore[no-untyped-def]
    """``scale * (mask . u)`` of a block; like torch's product it leaves -0.0 where a negative u goes."""
    _, u, out, rows, _, numel, width, _, columns = _place(table, tensor_of, stored)
    row, factor = tl.load(rows + columns, columns < width, 0), tl.load(scale)
    for k in tl.static_range(8):
        at = k * width + columns
        there = (columns < width) & (at < numel)
        values = tl.load(u + at, there, 0).to(wide) * factor
        tl.store(out + at, (values * ((row >> k) & 1).to(wide)).to(stored), there)
