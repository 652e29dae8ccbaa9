"""ConDU's unify and decouple as one compiled loop over blocks, for deltas on a CPU.

The same arithmetic in the same order as the torch path in ``unify.py``, and so the same bits: its dozen passes over a
chunk are one over a block here, which stays in a core's first cache. ``fused_jobs.py`` calls it.

A strip's bits of a task are the masks under which registers are added up, so that no weight is looked up: a block's
rows are turned into such masks first, once for both the weights and the sums.

Compiled on first use, some seconds, and kept in numba's cache: beside this file, or where that cannot be written in the
user's cache folder. numba sees by this file alone whether what it kept is stale (``vectors.py`` takes care of itself),
so that all that is compiled is here. A slice of an array would count its references: loops get arrays and places.
"""

from __future__ import annotations

import numpy as np

from condu_ray.merging import blocks
from condu_ray.merging.vectors import (
    add,
    both,
    choose,
    compiled,
    either,
    every,
    every_at,
    fma,
    has,
    larger,
    more,
    multiply,
    prefetch,
    put,
    put_mask,
    size,
    subtract,
    take,
    take_mask,
    to_bfloat16,
    to_double,
    to_float16,
    to_type,
    total,
)

BLOCK = 256
_GROUP = 8
_LANES = 32
"""Columns in hand: what is summed up over strips and tasks stays in AVX-512's registers."""
_BYTES = 64
"""Bytes of a row in hand."""
_BITS = BLOCK // 8
"""Bytes of a strip's mask."""

assert BLOCK == blocks.BLOCK


def scratch_bytes(tasks: int) -> int:
    """Bytes that a job with as many earlier tasks works in."""
    return 8 * (8 + 3 + 3 * 8) * BLOCK + 8 * _BITS * (tasks + 2) + BLOCK


@compiled
def _to_masks(rows, at, masks, t, tasks):  # type: ignore[no-untyped-def]
    """A block of a task's row to a mask for every strip."""
    for c in range(0, BLOCK, _BYTES):
        row = take(rows, at + c, _BYTES)
        for k in range(8):
            put_mask(masks, (k * tasks + t) * _BITS + c // 8, has(row, every(np.uint8(1 << k), row)))


@compiled
def _to_row(masks, at, out):  # type: ignore[no-untyped-def]
    """The way back."""
    for c in range(0, BLOCK, _BYTES):
        row = every(np.uint8(0), take(out, c, _BYTES))
        for k in range(8):
            bit = every(np.uint8(1 << k), row)
            row = choose(take_mask(masks, at + k * _BITS + c // 8, _BYTES), either(row, bit), row)
        put(out, c, row)


@compiled
def _positions(  # type: ignore[no-untyped-def]
    d, i, u_old, j, u_new, o, width, rescalers, rounded, ahead, masks, kept, columns
):
    """U of a block, whose strips begin at ``i``, ``j`` and ``o`` and every ``width`` values.

    Fills in the block's masks of where earlier tasks and where the new one agree with u, u where earlier ones do
    (``kept``, float64), and the sums over strips of the new task's u and of the new delta (``columns``).
    """
    tasks = len(rescalers)
    keep, match = 8 * tasks * _BITS, 8 * (tasks + 1) * _BITS
    for c in range(0, BLOCK, _LANES):
        zero = every(0, take(u_new, o, _LANES))
        none = to_double(zero)
        matched_sum, new_sum = none, none
        for k in range(8):
            at, bits = k * width + c, k * tasks * _BITS + c // 8
            if ahead:  # the next block's lines, while this one is worked on, a few at a time
                prefetch(d, i + at + BLOCK, _LANES, 0)
                prefetch(u_old, j + at + BLOCK, _LANES, 0)
                prefetch(u_new, o + at + BLOCK, _LANES, 1)
            weight, most = zero, none
            for first in range(0, tasks, _GROUP):
                group = none
                for t in range(first, min(first + _GROUP, tasks)):
                    mask, rescaler = take_mask(masks, bits + t * _BITS, _LANES), every_at(rescalers, t, none)
                    group = choose(mask, add(group, rescaler), group)
                    most = choose(mask, larger(most, rescaler), most)
                weight = add(weight, to_type(group, zero))
            x, v = take(d, i + at, _LANES), take(u_old, j + at, _LANES)
            elected, largest = more(fma(weight, v, x), zero), multiply(to_type(most, zero), v)
            new = choose(elected, x, subtract(zero, x))
            earlier = choose(elected, largest, subtract(zero, largest))
            u = choose(more(new, earlier), new, earlier)
            stays, matches = more(earlier, zero), more(new, zero)
            if rounded:
                u = to_bfloat16(u) if rounded == 1 else to_float16(u)
                stays, matches = both(stays, more(u, zero)), both(matches, more(u, zero))
            put(u_new, o + at, choose(elected, u, subtract(zero, u)))  # 0 - 0 is 0.0: equal results have equal bytes
            size_u = to_double(u)
            put(kept, k * BLOCK + c, choose(stays, size_u, none))
            put_mask(masks, keep + k * _BITS + c // 8, stays)
            put_mask(masks, match + k * _BITS + c // 8, matches)
            matched_sum = choose(matches, add(matched_sum, size_u), matched_sum)
            new_sum = add(new_sum, to_double(size(x)))
        put(columns, c, matched_sum)
        put(columns, BLOCK + c, new_sum)


@compiled
def _columns(kept, masks, at, other, step, c):  # type: ignore[no-untyped-def]
    """|u| of two tasks' positions in some columns, the strips added one after the other."""
    one = every(0, take(kept, c, _LANES))
    two = one
    for k in range(8):
        values, bits = take(kept, k * BLOCK + c, _LANES), k * step + c // 8
        one = choose(take_mask(masks, at + bits, _LANES), add(one, values), one)
        two = choose(take_mask(masks, other + bits, _LANES), add(two, values), two)
    return one, two


@compiled
def _sum_two(kept, masks, t, other, tasks, columns, sums, b):  # type: ignore[no-untyped-def]
    """|u| of two tasks' positions in a block: half the loads of one task's at a time, and as many registers as are."""
    at, beside, step = t * _BITS, other * _BITS, tasks * _BITS
    for c in range(0, 64, _LANES):
        one_0, two_0 = _columns(kept, masks, at, beside, step, c)
        one_2, two_2 = _columns(kept, masks, at, beside, step, c + 128)
        one_0, two_0 = add(one_0, one_2), add(two_0, two_2)
        one_1, two_1 = _columns(kept, masks, at, beside, step, c + 64)
        one_3, two_3 = _columns(kept, masks, at, beside, step, c + 192)
        put(columns, 2 * BLOCK + c, add(one_0, add(one_1, one_3)))
        put(columns, 2 * BLOCK + 64 + c, add(two_0, add(two_1, two_3)))
    sums[b, t] = total(take(columns, 2 * BLOCK, 64))
    sums[b, other] = total(take(columns, 2 * BLOCK + 64, 64))


@compiled
def _halved(columns, at):  # type: ignore[no-untyped-def]
    """Sum of a block's columns."""
    even = add(take(columns, at, 64), take(columns, at + 128, 64))
    return total(add(even, add(take(columns, at + 64, 64), take(columns, at + 192, 64))))


@compiled
def unify_blocks(  # type: ignore[no-untyped-def]
    d, u_old, u_new, width, shift, rows_old, rows_new, rescalers, sums, scratch, first, last, rounded
):
    """Unify blocks ``first:last``. ``d``, ``u_old`` and ``u_new`` are strips of ``width`` from column ``shift`` on."""
    numel, tasks = d.shape[0], len(rescalers)
    columns = len(rows_new) // (tasks + 1)
    kept = scratch[: 64 * BLOCK].view(np.float64)
    summed = scratch[64 * BLOCK : 88 * BLOCK].view(np.float64)
    at = 88 * BLOCK + 3 * 8 * BLOCK * d.itemsize
    padded = scratch[88 * BLOCK : at].view(d.dtype)
    byte = scratch[at : at + BLOCK]
    masks = scratch[at + BLOCK : at + BLOCK + 8 * _BITS * (tasks + 2)]
    for b in range(first, last):
        start = b * BLOCK
        stop = min(start + BLOCK, columns)
        count = stop - start
        for t in range(tasks):
            at = t * columns + start
            if count == BLOCK:
                _to_masks(rows_old, at, masks, t, tasks)
            else:
                byte[:] = 0
                for c in range(count):
                    byte[c] = rows_old[at + c]
                _to_masks(byte, 0, masks, t, tasks)
        at = start - shift
        if 7 * width + at + BLOCK <= numel and count == BLOCK:
            _positions(d, at, u_old, at, u_new, at, width, rescalers, rounded, 1, masks, kept, summed)
        else:
            padded[:] = 0
            for k in range(8):
                for c in range(max(0, min(count, numel - at - k * width))):
                    padded[k * BLOCK + c] = d[at + k * width + c]
                    padded[(8 + k) * BLOCK + c] = u_old[at + k * width + c]
            _positions(padded, 0, padded, 8 * BLOCK, padded, 16 * BLOCK, BLOCK, rescalers, rounded, 0, masks, kept, summed)
            for k in range(8):
                for c in range(max(0, min(count, numel - at - k * width))):
                    u_new[at + k * width + c] = padded[(16 + k) * BLOCK + c]
        _to_row(masks, 8 * tasks * _BITS, byte)
        for t in range(tasks):
            at = t * columns + start
            prefetch(rows_old, at + BLOCK, BLOCK, 0)
            prefetch(rows_new, at + BLOCK, BLOCK, 1)
            if t % 2 == 0:
                _sum_two(kept, masks, t, min(t + 1, tasks - 1), tasks, summed, sums, b)
            if count == BLOCK:
                for c in range(0, BLOCK, _BYTES):
                    put(rows_new, at + c, both(take(rows_old, at + c, _BYTES), take(byte, c, _BYTES)))
            else:
                for c in range(count):
                    rows_new[at + c] = rows_old[at + c] & byte[c]
        _to_row(masks, 8 * (tasks + 1) * _BITS, byte)
        at = tasks * columns + start
        if count == BLOCK:
            for c in range(0, BLOCK, _BYTES):
                put(rows_new, at + c, take(byte, c, _BYTES))
        else:
            for c in range(count):
                rows_new[at + c] = byte[c]
        sums[b, tasks] = _halved(summed, 0)
        sums[b, tasks + 1] = _halved(summed, BLOCK)


@compiled
def sum_blocks(sums):  # type: ignore[no-untyped-def]
    """What ``blocks.total_of_blocks`` does: the first row becomes the sum of all."""
    count = len(sums)
    while count > 1:
        half = (count + 1) // 2
        for b in range(count - half):
            for t in range(sums.shape[1]):
                sums[b, t] += sums[half + b, t]
        count = half


@compiled
def decouple_blocks(u, row, scale, out, width, first, last):  # type: ignore[no-untyped-def]
    """``scale * (mask . u)`` of blocks ``first:last``; like torch's product it leaves -0.0 where a negative u goes."""
    zero, one, factor = u.dtype.type(0), u.dtype.type(1), u.dtype.type(scale)
    for b in range(first, last):
        start = b * BLOCK
        stop = min(start + BLOCK, width)
        if stop - start == BLOCK and 7 * width + stop <= len(u):
            for c in range(start, stop, _BYTES):
                eight = take(row, c, _BYTES)
                for k in range(8):
                    at = k * width + c
                    prefetch(u, at + BLOCK, _BYTES, 0)
                    prefetch(out, at + BLOCK, _BYTES, 1)
                    values = take(u, at, _BYTES)
                    values = multiply(values, every(factor, values))
                    gone = multiply(values, every(zero, values))
                    put(out, at, choose(has(eight, every(np.uint8(1 << k), eight)), values, gone))
            continue
        for k in range(8):
            bit = np.uint8(1 << k)
            for c in range(start, min(stop, len(u) - k * width)):
                out[k * width + c] = (u[k * width + c] * factor) * (one if row[c] & bit else zero)
