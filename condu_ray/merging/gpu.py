"""ConDU's unify and decouple as one Triton kernel over the blocks of all tensors, for deltas on a GPU.

The arithmetic of ``chunks.py`` in the same order, and so the bits that a CPU makes: a program has a block (see
``blocks.py``) in its registers, so that all is read and written once. ``gpu_jobs.py`` calls it.

A kernel gets all tensors at once, by a table of their addresses: a model has hundreds, most of them small, and a launch
for each would take longer than its work.
"""

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
def _block_sum(values):  # type: ignore[no-untyped-def]
    """A block's sum: its columns are halved, whose order a sum over all of them would leave to the compiler."""
    values = tl.sum(tl.reshape(values, (2, 128)), 0)
    values = tl.sum(tl.reshape(values, (2, 64)), 0)
    values = tl.sum(tl.reshape(values, (2, 32)), 0)
    values = tl.sum(tl.reshape(values, (2, 16)), 0)
    values = tl.sum(tl.reshape(values, (2, 8)), 0)
    values = tl.sum(tl.reshape(values, (2, 4)), 0)
    values = tl.sum(tl.reshape(values, (2, 2)), 0)
    return tl.sum(values, 0)


@triton.jit
def _halves(values):  # type: ignore[no-untyped-def]
    """The even and the odd of the last dimension."""
    return tl.split(tl.reshape(values, (BLOCK, values.shape[1] // 2, 2)))


@triton.jit
def _strips(values):  # type: ignore[no-untyped-def]
    """The strips of ``[8, BLOCK]``, one by one; in float64, so that no task's sum has to convert them again."""
    values = tl.trans(values.to(tl.float64))
    even, odd = _halves(values)
    by_4, by_2 = _halves(even)
    by_1, by_3 = _halves(odd)
    zero, four = tl.split(by_4)
    two, six = tl.split(by_2)
    one, five = tl.split(by_1)
    three, seven = tl.split(by_3)
    return zero, one, two, three, four, five, six, seven


@triton.jit
def _size(strips, bits):  # type: ignore[no-untyped-def]
    """A block's sum of what ``bits`` has: one strip after the other, and then its columns."""
    total = tl.zeros([BLOCK], tl.float64)
    for k in tl.static_range(8):
        total += tl.where((bits >> k) & 1 != 0, strips[k], 0)
    return _block_sum(total)


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
    k = tl.arange(0, 8)[:, None]
    at = k * width + columns[None, :]
    there = (columns < width)[None, :] & (at < numel)
    x, v = tl.load(d + at, there, 0).to(wide), tl.load(u_old + at, there, 0).to(wide)
    weight, most = tl.zeros([8, BLOCK], wide), tl.zeros([8, BLOCK], wide)
    for g in range(groups):
        words = _codes(rows_old, 8 * g, tasks, width, columns)
        code = 2 * (256 * g + ((words[None, :] >> (8 * k)) & 255).to(tl.int32))
        weight += tl.load(codes + code)
        most = tl.maximum(most, tl.load(codes + code + 1))
    elected, largest = tl.fma(weight, v, x) > 0, most * v
    new, earlier = tl.where(elected, x, 0 - x), tl.where(elected, largest, 0 - largest)
    u = tl.where(new > earlier, new, earlier)
    stays, matches = earlier > 0, new > 0
    if stored != wide:
        u = u.to(stored).to(wide)  # the masks and the sums are those of the stored u
        stays, matches = stays & (u > 0), matches & (u > 0)
    tl.store(u_new + at, tl.where(elected, u, 0 - u).to(stored), there)  # 0 - 0 is 0.0
    keep, match = tl.sum(stays.to(tl.int32) << k, 0), tl.sum(matches.to(tl.int32) << k, 0)
    count = tl.load(counts + tl.load(tensor_of + tl.program_id(0)))
    sums += (tasks + 2) * first + tl.program_id(0) - first
    sizes = _strips(u)
    inside = columns < width
    for t in range(tasks):
        row = tl.load(rows_old + t * width + columns, inside, 0).to(tl.int32) & keep
        tl.store(rows_new + t * width + columns, row.to(tl.uint8), inside)
        tl.store(sums + t * count, _size(sizes, row))
    tl.store(rows_new + tasks * width + columns, match.to(tl.uint8), inside)
    tl.store(sums + tasks * count, _size(sizes, match))
    tl.store(sums + (tasks + 1) * count, _size(_strips(tl.abs(x)), tl.full([BLOCK], 255, tl.int32)))


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
