"""ConDU's unify and decouple as one compiled loop over blocks, for deltas on a CPU.

The same arithmetic in the same order as in ``chunks.py``, by torch, and so the same bits: its dozen passes over a
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
    fence,
    fma,
    has,
    larger,
    look_up,
    more,
    multiply,
    of_pairs,
    prefetch,
    put,
    put_mask,
    size,
    stream,
    subtract,
    take,
    take_mask,
    to_bfloat16,
    to_double,
    to_float16,
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
_WORDS = BLOCK // 8
_STREAMED = 1 << 21
"""Bytes of a result from which on it goes past the caches: several cores' results have no room there together."""
_W1, _W2, _W3, _W4, _W5, _W6, _W7 = (np.uint64(index * _WORDS) for index in range(1, 8))

assert BLOCK == blocks.BLOCK


def scratch_bytes(tasks: int) -> int:
    """Bytes that a job with as many earlier tasks works in."""
    groups = -(-max(tasks, 1) // _GROUP)
    return BLOCK * (64 + 24 + 192 + 16 * groups + (tasks + 2) + 1)


@compiled
def _load(array, start, count, target, at):  # type: ignore[no-untyped-def]
    """``count`` bytes of a row, a block or less, to ``target``; zeros behind them."""
    if count == BLOCK:
        for c in range(0, BLOCK, _BYTES):
            put(target, at + c, take(array, start + c, _BYTES))
        return
    for c in range(BLOCK):
        target[at + c] = array[start + c] if c < count else 0


@compiled
def _store(source, at, array, start, count):  # type: ignore[no-untyped-def]
    """The way back."""
    if count == BLOCK:
        for c in range(0, BLOCK, _BYTES):
            put(array, start + c, take(source, at + c, _BYTES))
        return
    for c in range(count):
        array[start + c] = source[at + c]


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
def _swap(upper, lower, span, mask):  # type: ignore[no-untyped-def]
    """Swaps the bits of two words that ``mask`` has in the lower and, ``span`` further, in the upper."""
    swap = ((upper >> span) ^ lower) & mask
    return upper ^ (swap << span), lower ^ swap


@compiled
def _codes(rows, codes, at):  # type: ignore[no-untyped-def]
    """Rows of 8 tasks to codes of 8 strips, from word ``at`` on; as in ``trigger.codes``, Hacker's Delight 7-3."""
    four, two, one = np.uint64(4), np.uint64(2), np.uint64(1)
    fours, twos, ones = np.uint64(0x0F0F0F0F0F0F0F0F), np.uint64(0x3333333333333333), np.uint64(0x5555555555555555)
    for c in range(_WORDS):
        e = np.uintp(at + c)
        a0, a1, a2, a3 = rows[e], rows[e + _W1], rows[e + _W2], rows[e + _W3]
        a4, a5, a6, a7 = rows[e + _W4], rows[e + _W5], rows[e + _W6], rows[e + _W7]
        a0, a4 = _swap(a0, a4, four, fours)
        a1, a5 = _swap(a1, a5, four, fours)
        a2, a6 = _swap(a2, a6, four, fours)
        a3, a7 = _swap(a3, a7, four, fours)
        a0, a2 = _swap(a0, a2, two, twos)
        a1, a3 = _swap(a1, a3, two, twos)
        a4, a6 = _swap(a4, a6, two, twos)
        a5, a7 = _swap(a5, a7, two, twos)
        a0, a1 = _swap(a0, a1, one, ones)
        a2, a3 = _swap(a2, a3, one, ones)
        a4, a5 = _swap(a4, a5, one, ones)
        a6, a7 = _swap(a6, a7, one, ones)
        codes[e], codes[e + _W1], codes[e + _W2], codes[e + _W3] = a0, a1, a2, a3
        codes[e + _W4], codes[e + _W5], codes[e + _W6], codes[e + _W7] = a4, a5, a6, a7


@compiled
def _positions(  # type: ignore[no-untyped-def]
    d, i, u_old, j, u_new, o, width, tables, rounded, ahead, streams, codes, masks, tasks, kept, columns
):
    """U of a block, whose strips begin at ``i``, ``j`` and ``o`` and every ``width`` values.

    Fills in the block's masks of where earlier tasks and where the new one agree with u, u where earlier ones do
    (``kept``, float64), and the sums over strips of the new task's u and of the new delta (``columns``).
    """
    groups = len(tables) // 512
    keep, match = tasks * BLOCK, (tasks + 1) * BLOCK
    for c in range(0, BLOCK, _LANES):
        zero = every(0, take(u_new, o, _LANES))
        none = to_double(zero)
        matched_sum, new_sum = none, none
        for k in range(8):
            at = k * width + c
            if ahead:  # the next block's lines, while this one is worked on, a few at a time
                prefetch(d, i + at + BLOCK, _LANES, 0)
                prefetch(u_old, j + at + BLOCK, _LANES, 0)
                if not streams:
                    prefetch(u_new, o + at + BLOCK, _LANES, 1)
            weight, most = zero, zero
            for g in range(groups):
                pairs = look_up(tables, 512 * g, codes, (8 * g + k) * BLOCK + c, _LANES)
                weight, most = add(weight, of_pairs(pairs, 0)), larger(most, of_pairs(pairs, 1))
            x, v = take(d, i + at, _LANES), take(u_old, j + at, _LANES)
            elected, largest = more(fma(weight, v, x), zero), multiply(most, v)
            new = choose(elected, x, subtract(zero, x))
            earlier = choose(elected, largest, subtract(zero, largest))
            u = choose(more(new, earlier), new, earlier)
            stays, matches = more(earlier, zero), more(new, zero)
            if rounded:
                u = to_bfloat16(u) if rounded == 1 else to_float16(u)
                stays, matches = both(stays, more(u, zero)), both(matches, more(u, zero))
            out = choose(elected, u, subtract(zero, u))  # 0 - 0 is 0.0: equal results have equal bytes
            if streams:
                stream(u_new, o + at, out)
            else:
                put(u_new, o + at, out)
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
def _streams(out, width, shift):  # type: ignore[no-untyped-def]
    """Whether a result goes past the caches: it has no room there, and its strips begin at cache lines."""
    line = _BYTES // out.itemsize
    begins = out.ctypes.data // out.itemsize
    return out.nbytes >= _STREAMED and begins % line == 0 and width % line == 0 and shift % line == 0


@compiled
def unify_blocks(  # type: ignore[no-untyped-def]
    d, u_old, u_new, width, shift, rows_old, rows_new, tables, sums, scratch, first, last, rounded
):
    """Unify blocks ``first:last``. ``d``, ``u_old`` and ``u_new`` are strips of ``width`` from column ``shift`` on."""
    numel, tasks, groups = d.shape[0], sums.shape[1] - 2, len(tables) // 512
    columns = len(rows_new) // (tasks + 1)
    kept, at = scratch[: 64 * BLOCK].view(np.float64), 64 * BLOCK
    summed, at = scratch[at : at + 24 * BLOCK].view(np.float64), at + 24 * BLOCK
    padded, at = scratch[at : at + 24 * d.itemsize * BLOCK].view(d.dtype), at + 24 * d.itemsize * BLOCK
    rows, at = scratch[at : at + 8 * groups * BLOCK], at + 8 * groups * BLOCK
    codes, at = scratch[at : at + 8 * groups * BLOCK], at + 8 * groups * BLOCK
    byte, at = scratch[at : at + BLOCK], at + BLOCK
    masks = scratch[at : at + (tasks + 2) * BLOCK]
    words, codes_of_words = rows.view(np.uint64), codes.view(np.uint64)
    rows[:] = 0
    streams = _streams(u_new, width, shift)
    for b in range(first, last):
        start = b * BLOCK
        count = min(BLOCK, columns - start)
        for t in range(tasks):
            _load(rows_old, t * columns + start, count, rows, t * BLOCK)
            _to_masks(rows, t * BLOCK, masks, t, tasks)
        for g in range(groups):
            _codes(words, codes_of_words, g * BLOCK)
        at = start - shift
        if 7 * width + at + BLOCK <= numel and count == BLOCK:
            _positions(
                d, at, u_old, at, u_new, at, width, tables, rounded, True, streams, codes, masks, tasks, kept, summed
            )
        else:
            padded[:] = 0
            v, u = 8 * BLOCK, 16 * BLOCK
            for k in range(8):
                for c in range(max(0, min(count, numel - at - k * width))):
                    padded[k * BLOCK + c] = d[at + k * width + c]
                    padded[v + k * BLOCK + c] = u_old[at + k * width + c]
            _positions(
                padded, 0, padded, v, padded, u, BLOCK, tables, rounded, False, False, codes, masks, tasks, kept, summed
            )
            for k in range(8):
                for c in range(max(0, min(count, numel - at - k * width))):
                    u_new[at + k * width + c] = padded[u + k * BLOCK + c]
        _to_row(masks, tasks * BLOCK, byte)
        for t in range(tasks):
            at = t * columns + start
            prefetch(rows_old, at + BLOCK, BLOCK, 0)
            prefetch(rows_new, at + BLOCK, BLOCK, 1)
            if t % 2 == 0:
                _sum_two(kept, masks, t, min(t + 1, tasks - 1), tasks, summed, sums, b)
            for c in range(0, BLOCK, _BYTES):
                put(rows, t * BLOCK + c, both(take(rows, t * BLOCK + c, _BYTES), take(byte, c, _BYTES)))
            _store(rows, t * BLOCK, rows_new, at, count)
        _to_row(masks, (tasks + 1) * BLOCK, byte)
        _store(byte, 0, rows_new, tasks * columns + start, count)
        sums[b, tasks] = _halved(summed, 0)
        sums[b, tasks + 1] = _halved(summed, BLOCK)
    fence()


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
    streams = _streams(out, width, 0)
    for b in range(first, last):
        start = b * BLOCK
        stop = min(start + BLOCK, width)
        if stop - start == BLOCK and 7 * width + stop <= len(u):
            for c in range(start, stop, _BYTES):
                eight = take(row, c, _BYTES)
                for k in range(8):
                    at = k * width + c
                    prefetch(u, at + BLOCK, _BYTES, 0)
                    if not streams:
                        prefetch(out, at + BLOCK, _BYTES, 1)
                    values = take(u, at, _BYTES)
                    values = multiply(values, every(factor, values))
                    gone = multiply(values, every(zero, values))
                    values = choose(has(eight, every(np.uint8(1 << k), eight)), values, gone)
                    if streams:
                        stream(out, at, values)
                    else:
                        put(out, at, values)
            continue
        for k in range(8):
            bit = np.uint8(1 << k)
            for c in range(start, min(stop, len(u) - k * width)):
                out[k * width + c] = (u[k * width + c] * factor) * (one if row[c] & bit else zero)
    fence()
