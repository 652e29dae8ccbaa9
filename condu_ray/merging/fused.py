"""ConDU's unify and decouple as one compiled loop over blocks, for deltas on a CPU.

The same arithmetic in the same order as the torch path in ``unify.py``, and so the same bits: its dozen passes over a
chunk are one over a block here, which stays in a core's first cache. ``fused_jobs.py`` calls it.

Compiled on first use, some seconds, and kept in numba's cache: beside this file, or where that cannot be written in the
user's cache folder. numba sees by this file alone whether what it kept is stale, so that all that is compiled is here.

Written for LLVM's vectoriser: temporaries of a type share one buffer, so that few pointers must be told apart; arrays
are cut, and not read at an index that might be negative and count from the end.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from condu_ray.merging import blocks

BLOCK = 256
_GROUP = 8

# Temporaries of a block, by type: in the deltas' wide dtype, in float64, bytes.
_X, _V, _SUM, _MAX, _KEPT, _MATCHED, _U, _PAIRS, _, WIDE = (index * BLOCK for index in range(10))
_ACC, _ACC_MATCHED, _ACC_NEW, _DOUBLE = (index * BLOCK for index in range(4))
_KEEP, _MATCH, BYTES = (index * BLOCK for index in range(3))
_WORDS = BLOCK // 8
_W1, _W2, _W3, _W4, _W5, _W6, _W7 = (np.uint64(index * _WORDS) for index in range(1, 8))
SHARED = 8 * (8 * BLOCK + _DOUBLE)

assert BLOCK == blocks.BLOCK


def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compiled at the first call; kept on the disk where there is a place."""
    try:
        return njit(nogil=True, cache=True)(function)
    except RuntimeError:  # neither this folder nor the user's cache can be written
        return njit(nogil=True)(function)


def _fma_typed(typing: Any, a: Any, b: Any, c: Any) -> Any:
    return a(a, a, a), lambda context, builder, signature, arguments: builder.fma(*arguments)


_fma: Any = intrinsic(_fma_typed)
"""``_fma(a, b, c)`` is ``a * b + c``, rounded once: what torch's addcmul does."""


def _prefetch_typed(typing: Any, array: Any, index: Any, write: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        data = context.make_array(array)(context, builder, arguments[0]).data
        place = builder.bitcast(builder.gep(data, [arguments[1]]), ir.IntType(8).as_pointer())
        number = ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [place.type, number, number, number])
        function: Any = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")  # type: ignore[no-untyped-call]
        builder.call(function, [place, number(write.literal_value), number(3), number(1)])
        return context.get_dummy_value()

    return types.void(array, index, write), generate


_prefetch: Any = intrinsic(prefer_literal=True)(_prefetch_typed)
"""``_prefetch(array, index, write)`` asks for the cache line of ``array[index]``, an index into its memory; one past
the end does nothing. ``write`` is 1 where the line will be written, else 0: a number, for it is compiled in."""


@_compiled
def _load(array, start, count, target, at):  # type: ignore[no-untyped-def]
    """``count`` values of ``array``, a block or less, to ``target`` from ``at`` on; zeros behind them."""
    if count == BLOCK:  # a constant length: several times as fast
        for c in range(BLOCK):
            target[np.uintp(at + c)] = array[np.uintp(start + c)]
        return
    for c in range(count):
        target[at + c] = array[start + c]
    for c in range(count, BLOCK):
        target[at + c] = 0


@_compiled
def _store(source, at, array, start, count):  # type: ignore[no-untyped-def]
    """The way back."""
    if count == BLOCK:
        for c in range(BLOCK):
            array[np.uintp(start + c)] = source[np.uintp(at + c)]
        return
    for c in range(count):
        array[start + c] = source[at + c]


@_compiled
def _swap(upper, lower, span, mask):  # type: ignore[no-untyped-def]
    """Swaps the bits of two words that ``mask`` has in the lower and, ``span`` further, in the upper."""
    swap = ((upper >> span) ^ lower) & mask
    return upper ^ (swap << span), lower ^ swap


@_compiled
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


@_compiled
def _weights(codes, at, tables, g, F):  # type: ignore[no-untyped-def]
    """Sum and largest of the rescalers that a strip's codes, from word ``at`` on, select in table ``g``."""
    low, one, first = np.uint64(0xFF), np.uint64(1), np.uint64(512 * g)
    for c in range(_WORDS):
        word = codes[np.uintp(at + c)]
        for k in range(8):  # a load of two values for a position: quicker than adding up what the bits select
            code = first + (((word >> np.uint64(8 * k)) & low) << one)
            total, most = tables[code], tables[code + one]
            F[_PAIRS + 2 * (8 * c + k)] = total
            F[_PAIRS + 2 * (8 * c + k) + 1] = most


@_compiled
def _take_weights(F):  # type: ignore[no-untyped-def]
    """What ``_weights`` found of the first 8 tasks."""
    for c in range(BLOCK):
        F[_SUM + c] = F[_PAIRS + 2 * c]
        F[_MAX + c] = F[_PAIRS + 2 * c + 1]


@_compiled
def _add_weights(F):  # type: ignore[no-untyped-def]
    """What ``_weights`` found of 8 more tasks, to that of the tasks before."""
    for c in range(BLOCK):
        F[_SUM + c] += F[_PAIRS + 2 * c]
        most = F[_PAIRS + 2 * c + 1]
        F[_MAX + c] = most if most > F[_MAX + c] else F[_MAX + c]


@_compiled
def _rule(F):  # type: ignore[no-untyped-def]
    """U of a block's strip, and |u| where the earlier tasks and where the new one agree with its sign."""
    zero, one = F.dtype.type(0), F.dtype.type(1)
    for c in range(BLOCK):
        x, v = F[_X + c], F[_V + c]
        sign = one if _fma(F[_SUM + c], v, x) > zero else -one
        new, earlier = sign * x, (F[_MAX + c] * v) * sign
        u = new if new > earlier else earlier
        F[_KEPT + c] = u if earlier > zero else zero
        F[_MATCHED + c] = u if new > zero else zero
        F[_U + c] = u * sign + zero  # no -0.0, so that equal results have equal bytes


@_compiled
def _round(F, bits, rounded):  # type: ignore[no-untyped-def]
    """Round u to the nearest that half precision has, ties to even. ``bits`` is ``F`` seen as uint32."""
    if rounded == 1:
        for c in range(_KEPT, _PAIRS):
            b = bits[c]
            bits[c] = (b + np.uint32(0x7FFF) + ((b >> np.uint32(16)) & np.uint32(1))) & np.uint32(0xFFFF0000)
    else:
        half, least, limit = np.float32(0.5), np.float32(2.0**-14), np.float32(65536)
        for c in range(_KEPT, _PAIRS):
            x, b = F[c], bits[c]
            size = abs(x)
            small = (size + half) - half  # below 2**-14 its steps are 2**-24, as those of float32 from 0.5 on
            bits[c] = (b + np.uint32(0xFFF) + ((b >> np.uint32(13)) & np.uint32(1))) & np.uint32(0xFFFFE000)
            large = abs(F[c])
            found = small if size < least else (large if large < limit else np.float32(np.inf))
            F[c] = found if x >= 0 else -found
    for c in range(_KEPT, _PAIRS):
        F[c] += np.float32(0)  # a negative value that was rounded to -0.0


@_compiled
def _quarter(D, at):  # type: ignore[no-untyped-def]
    """Sum of a quarter of a block's columns, halved and halved again. Constant lengths: several times as fast."""
    for c in range(at, at + 32):
        D[c] += D[c + 32]
    for c in range(at, at + 16):
        D[c] += D[c + 16]
    for c in range(at, at + 8):
        D[c] += D[c + 8]
    even = (D[at] + D[at + 4]) + (D[at + 2] + D[at + 6])
    return even + ((D[at + 1] + D[at + 5]) + (D[at + 3] + D[at + 7]))


@_compiled
def _halved(D, at):  # type: ignore[no-untyped-def]
    """Sum of a block's columns."""
    for c in range(at, at + 64):
        D[c] = (D[c] + D[c + 128]) + (D[c + 64] + D[c + 192])
    return _quarter(D, at)


@_compiled
def _column(K, c, byte):  # type: ignore[no-untyped-def]
    """|u| of a task's positions in a column, the strips added one after the other."""
    s = K[c] if byte & 1 else 0.0
    s += K[BLOCK + c] if byte & 2 else 0.0
    s += K[2 * BLOCK + c] if byte & 4 else 0.0
    s += K[3 * BLOCK + c] if byte & 8 else 0.0
    s += K[4 * BLOCK + c] if byte & 16 else 0.0
    s += K[5 * BLOCK + c] if byte & 32 else 0.0
    s += K[6 * BLOCK + c] if byte & 64 else 0.0
    return s + (K[7 * BLOCK + c] if byte & 128 else 0.0)


@_compiled
def _masked(D, K, R, at):  # type: ignore[no-untyped-def]
    """|u| of the positions in a block of a task, whose row is at ``at``: its columns are halved twice on the way."""
    for c in range(64):
        b0, b1 = R[np.uintp(at + c)], R[np.uintp(at + c + 64)]
        b2, b3 = R[np.uintp(at + c + 128)], R[np.uintp(at + c + 192)]
        even = _column(K, c, b0) + _column(K, c + 128, b2)
        D[c] = even + (_column(K, c + 64, b1) + _column(K, c + 192, b3))
    return _quarter(D, _ACC)


@_compiled
def _add_strip(F, K, D, U, k):  # type: ignore[no-untyped-def]
    """A strip's |u|, its bits, and its share of the sums of the new task and of the new delta."""
    zero, none, bit = F.dtype.type(0), np.uint8(0), np.uint8(1 << k)
    at = k * BLOCK
    for c in range(BLOCK):
        K[np.uintp(at + c)] = F[_KEPT + c]
    for c in range(BLOCK):
        D[_ACC_MATCHED + c] += F[_MATCHED + c]
    for c in range(BLOCK):
        D[_ACC_NEW + c] += abs(F[_X + c])
    for c in range(BLOCK):
        U[_KEEP + c] |= bit if F[_KEPT + c] > zero else none
    for c in range(BLOCK):
        U[_MATCH + c] |= bit if F[_MATCHED + c] > zero else none


@_compiled
def _keep(R, at, U):  # type: ignore[no-untyped-def]
    """A task's bits where u kept its sign."""
    for c in range(BLOCK):
        R[np.uintp(at + c)] &= U[_KEEP + c]


@_compiled
def unify_blocks(  # type: ignore[no-untyped-def]
    d, u_old, u_new, width, shift, rows_old, rows_new, columns, tables, sums, scratch, first, last, rounded
):
    """Unify blocks ``first:last``. ``d``, ``u_old`` and ``u_new`` are strips of ``width`` from column ``shift`` on.

    Lines of memory are asked for a block ahead and a few at a time: a core can wait for some dozens only. The loops get
    whole arrays and places in them, for a slice of an array would count its references.
    """
    numel, tasks = d.shape[0], sums.shape[1] - 2
    groups, size, step = len(tables) // 512, d.itemsize, 64 // d.itemsize
    K = scratch[: 64 * BLOCK].view(np.float64)
    D = scratch[64 * BLOCK : 64 * BLOCK + 8 * _DOUBLE].view(np.float64)
    F = scratch[SHARED : SHARED + size * WIDE].view(d.dtype)
    at = SHARED + size * WIDE
    U, R = scratch[at : at + BYTES], scratch[at + BYTES : at + BYTES + 8 * groups * BLOCK]
    words, bits = R.view(np.uint64), F.view(np.uint32)
    at += BYTES + 8 * groups * BLOCK
    codes = scratch[at : at + 8 * groups * BLOCK].view(np.uint64)
    R[:] = 0
    for b in range(first, last):
        start = b * BLOCK
        stop = min(start + BLOCK, columns)
        for t in range(tasks):
            _load(rows_old, t * columns + start, stop - start, R, t * BLOCK)
        for g in range(groups):
            _codes(words, codes, g * BLOCK)
        U[:] = 0
        D[:] = 0
        for k in range(8):
            at = k * width + start - shift
            count = max(0, min(stop - start, numel - at))
            ahead = at + BLOCK  # the next block's lines, while this one is worked on, a few at a time
            for c in range(ahead, ahead + BLOCK, step):
                _prefetch(d, c, 0)
            _weights(codes, k * _WORDS, tables, 0, F)
            _take_weights(F)
            for g in range(1, groups):
                _weights(codes, g * BLOCK + k * _WORDS, tables, g, F)
                _add_weights(F)
            for c in range(ahead, ahead + BLOCK, step):
                _prefetch(u_old, c, 0)
            _load(d, at, count, F, _X)
            _load(u_old, at, count, F, _V)
            _rule(F)
            if rounded:
                _round(F, bits, rounded)
            for c in range(ahead, ahead + BLOCK, step):
                _prefetch(u_new, c, 1)
            _add_strip(F, K, D, U, k)
            _store(F, _U, u_new, at, count)
        for t in range(tasks):
            for c in range(t * columns + start + BLOCK, t * columns + start + 2 * BLOCK, 64):
                _prefetch(rows_old, c, 0)
                _prefetch(rows_new, c, 1)
            sums[b, t] = _masked(D, K, R, t * BLOCK)
            _keep(R, t * BLOCK, U)
            _store(R, t * BLOCK, rows_new, t * columns + start, stop - start)
        _store(U, _MATCH, rows_new, tasks * columns + start, stop - start)
        sums[b, tasks] = _halved(D, _ACC_MATCHED)
        sums[b, tasks + 1] = _halved(D, _ACC_NEW)


@_compiled
def decouple_blocks(u, row, scale, out, width, first, last):  # type: ignore[no-untyped-def]
    """``scale * (mask . u)`` of blocks ``first:last``; like torch's product it leaves -0.0 where a negative u goes."""
    zero, one = u.dtype.type(0), u.dtype.type(1)
    factor = u.dtype.type(scale)
    S = np.zeros(BLOCK, np.uint8)
    for b in range(first, last):
        start = b * BLOCK
        stop = min(start + BLOCK, width)
        _load(row, start, stop - start, S, 0)
        for k in range(8):
            at = k * width + start
            end = max(at, min(at + stop - start, len(u)))
            old, new = u[at:end], out[at:end]
            bit = np.uint8(1 << k)
            for c in range(len(old)):
                new[c] = (old[c] * factor) * (one if S[c] & bit else zero)
