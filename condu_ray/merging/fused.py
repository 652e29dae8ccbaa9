"""ConDU's unify and decouple as one compiled loop over blocks, for deltas on a CPU.

The same arithmetic in the same order as the torch path in ``unify.py``, and so the same bits: its dozen passes over a
chunk are one over a block here, which stays in a core's first cache. Threads take pieces of tensors (``threads.py``).

Compiled on first use, some seconds, and kept in numba's cache: beside this file, or where that cannot be written in the
user's cache folder. numba sees by this file alone whether what it kept is stale, so that all that is compiled is here.

Written for LLVM's vectoriser: temporaries of a type share one buffer, so that few pointers must be told apart; arrays
are cut, and not read at an index that might be negative and count from the end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic
from torch import Tensor

from condu_ray.merging import blocks
from condu_ray.merging.threads import Job
from condu_ray.merging.trigger import read_strips, trigger_bytes, write_strips

BLOCK = 256
_GROUP = 8

PIECE = 64
"""Blocks that a thread takes at a time: a fraction of a millisecond, so that threads end together."""

_ROUNDED = {torch.float32: 0, torch.float64: 0, torch.bfloat16: 1, torch.float16: 2}
"""How u is rounded to what is stored: not, to bfloat16, to float16."""

# Temporaries of a block, by type: in the deltas' wide dtype, in float64, bytes.
_X, _V, _SUM, _MAX, _KEPT, _MATCHED, _U, _WIDE = (index * BLOCK for index in range(8))
_ACC, _ACC_MATCHED, _ACC_NEW, _DOUBLE = (index * BLOCK for index in range(4))
_KEEP, _MATCH, _BYTES = (index * BLOCK for index in range(3))

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


def _prefetch_typed(typing: Any, array: Any, index: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        data = context.make_array(array)(context, builder, arguments[0]).data
        place = builder.bitcast(builder.gep(data, [arguments[1]]), ir.IntType(8).as_pointer())
        number = ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [place.type, number, number, number])
        function: Any = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")  # type: ignore[no-untyped-call]
        builder.call(function, [place, number(0), number(3), number(1)])
        return context.get_dummy_value()

    return types.void(array, index), generate


_prefetch: Any = intrinsic(_prefetch_typed)
"""Asks for the cache line of ``array[index]``, an index into its memory; one past the end does nothing."""


@_compiled
def _copy(source, target):  # type: ignore[no-untyped-def]
    """Copy, and zeros behind."""
    for c in range(len(source)):
        target[c] = source[c]
    for c in range(len(source), len(target)):
        target[c] = 0


@_compiled
def _weights(rows, bit, lams, total, most):  # type: ignore[no-untyped-def]
    """Sum and largest of the rescalers of 8 tasks where their rows have a bit."""
    zero, cast = total.dtype.type(0), total.dtype.type
    a0, a1, a2, a3 = lams[0], lams[1], lams[2], lams[3]
    a4, a5, a6, a7 = lams[4], lams[5], lams[6], lams[7]
    for c in range(BLOCK):
        s = a0 if rows[c] & bit else 0.0
        s += a1 if rows[BLOCK + c] & bit else 0.0
        s += a2 if rows[2 * BLOCK + c] & bit else 0.0
        s += a3 if rows[3 * BLOCK + c] & bit else 0.0
        s += a4 if rows[4 * BLOCK + c] & bit else 0.0
        s += a5 if rows[5 * BLOCK + c] & bit else 0.0
        s += a6 if rows[6 * BLOCK + c] & bit else 0.0
        s += a7 if rows[7 * BLOCK + c] & bit else 0.0
        total[c] = s
    b0, b1, b2, b3 = cast(a0), cast(a1), cast(a2), cast(a3)
    b4, b5, b6, b7 = cast(a4), cast(a5), cast(a6), cast(a7)
    for c in range(BLOCK):
        m = b0 if rows[c] & bit else zero
        y = b1 if rows[BLOCK + c] & bit else zero
        m = y if y > m else m
        y = b2 if rows[2 * BLOCK + c] & bit else zero
        m = y if y > m else m
        y = b3 if rows[3 * BLOCK + c] & bit else zero
        m = y if y > m else m
        y = b4 if rows[4 * BLOCK + c] & bit else zero
        m = y if y > m else m
        y = b5 if rows[5 * BLOCK + c] & bit else zero
        m = y if y > m else m
        y = b6 if rows[6 * BLOCK + c] & bit else zero
        m = y if y > m else m
        y = b7 if rows[7 * BLOCK + c] & bit else zero
        most[c] = y if y > m else m


@_compiled
def _add_weights(F):  # type: ignore[no-untyped-def]
    """What ``_weights`` found of 8 more tasks, in the places of x and v, to that of the tasks before."""
    for c in range(BLOCK):
        F[_SUM + c] += F[_X + c]
    for c in range(BLOCK):
        F[_MAX + c] = F[_V + c] if F[_V + c] > F[_MAX + c] else F[_MAX + c]


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
        for c in range(_KEPT, _WIDE):
            b = bits[c]
            bits[c] = (b + np.uint32(0x7FFF) + ((b >> np.uint32(16)) & np.uint32(1))) & np.uint32(0xFFFF0000)
    else:
        half, least, limit = np.float32(0.5), np.float32(2.0**-14), np.float32(65536)
        for c in range(_KEPT, _WIDE):
            x, b = F[c], bits[c]
            size = abs(x)
            small = (size + half) - half  # below 2**-14 its steps are 2**-24, as those of float32 from 0.5 on
            bits[c] = (b + np.uint32(0xFFF) + ((b >> np.uint32(13)) & np.uint32(1))) & np.uint32(0xFFFFE000)
            large = abs(F[c])
            found = small if size < least else (large if large < limit else np.float32(np.inf))
            F[c] = found if x >= 0 else -found
    for c in range(_KEPT, _WIDE):
        F[c] += np.float32(0)  # a negative value that was rounded to -0.0


@_compiled
def _masked(D, K, row):  # type: ignore[no-untyped-def]
    """|u| of a task's positions in a block, the strips added."""
    for c in range(BLOCK):
        byte = row[c]
        s = K[c] if byte & 1 else 0.0
        s += K[BLOCK + c] if byte & 2 else 0.0
        s += K[2 * BLOCK + c] if byte & 4 else 0.0
        s += K[3 * BLOCK + c] if byte & 8 else 0.0
        s += K[4 * BLOCK + c] if byte & 16 else 0.0
        s += K[5 * BLOCK + c] if byte & 32 else 0.0
        s += K[6 * BLOCK + c] if byte & 64 else 0.0
        s += K[7 * BLOCK + c] if byte & 128 else 0.0
        D[_ACC + c] = s


@_compiled
def _halved(D, at):  # type: ignore[no-untyped-def]
    """Sum of a block's columns, halved and halved again. Constant lengths: several times as fast."""
    for c in range(at, at + 128):
        D[c] += D[c + 128]
    for c in range(at, at + 64):
        D[c] += D[c + 64]
    for c in range(at, at + 32):
        D[c] += D[c + 32]
    for c in range(at, at + 16):
        D[c] += D[c + 16]
    for c in range(at, at + 8):
        D[c] += D[c + 8]
    even = (D[at] + D[at + 4]) + (D[at + 2] + D[at + 6])
    return even + ((D[at + 1] + D[at + 5]) + (D[at + 3] + D[at + 7]))


@_compiled
def _unify(d, u_old, u_new, width, shift, rows_old, rows_new, lams, sums, first, last, rounded):  # type: ignore[no-untyped-def]
    """Unify blocks ``first:last``. ``d``, ``u_old`` and ``u_new`` are strips of ``width`` from column ``shift`` on."""
    numel, tasks, columns = d.shape[0], rows_old.shape[0], rows_new.shape[1]
    groups = lams.shape[0] // _GROUP
    F = np.zeros(_WIDE, d.dtype)
    D, K = np.zeros(_DOUBLE, np.float64), np.zeros(8 * BLOCK, np.float64)
    U = np.zeros(_BYTES, np.uint8)
    group = _GROUP * BLOCK
    R = np.zeros(groups * group, np.uint8)
    zero, step = F.dtype.type(0), 64 // d.itemsize
    for b in range(first, last):
        start = b * BLOCK
        stop = min(start + BLOCK, columns)
        for t in range(tasks):
            _copy(rows_old[t, start:stop], R[t * BLOCK : (t + 1) * BLOCK])
        U[:] = 0
        D[:] = 0
        for k in range(8):  # the next block's lines, while this one is worked on
            at = k * width + start + BLOCK - shift
            for c in range(at, at + BLOCK, step):
                _prefetch(d, c)
                _prefetch(u_old, c)
        for t in range(tasks):
            for c in range(0, BLOCK, 64):
                _prefetch(rows_old, t * columns + start + BLOCK + c)
        for k in range(8):
            at = k * width + start - shift
            end = max(at, min(at + stop - start, numel))
            bit = np.uint8(1 << k)
            _weights(R[:group], bit, lams[:_GROUP], F[_SUM : _SUM + BLOCK], F[_MAX : _MAX + BLOCK])
            for g in range(1, groups):
                rows, lam = R[g * group : (g + 1) * group], lams[_GROUP * g : _GROUP * (g + 1)]
                _weights(rows, bit, lam, F[_X : _X + BLOCK], F[_V : _V + BLOCK])
                _add_weights(F)
            _copy(d[at:end], F[_X : _X + BLOCK])
            _copy(u_old[at:end], F[_V : _V + BLOCK])
            _rule(F)
            if rounded:
                _round(F, F.view(np.uint32), rounded)
            _copy(F[_KEPT : _KEPT + BLOCK], K[k * BLOCK : (k + 1) * BLOCK])
            for c in range(BLOCK):
                D[_ACC_MATCHED + c] += F[_MATCHED + c]
            for c in range(BLOCK):
                D[_ACC_NEW + c] += abs(F[_X + c])
            for c in range(BLOCK):
                U[_KEEP + c] |= bit if F[_KEPT + c] > zero else np.uint8(0)
            for c in range(BLOCK):
                U[_MATCH + c] |= bit if F[_MATCHED + c] > zero else np.uint8(0)
            _copy(F[_U : _U + end - at], u_new[at:end])
        for t in range(tasks):
            row, out = R[t * BLOCK : (t + 1) * BLOCK], rows_new[t, start:stop]
            for c in range(len(out)):
                out[c] = row[c] & U[_KEEP + c]
            _masked(D, K, row)
            sums[b, t] = _halved(D, _ACC)
        _copy(U[_MATCH : _MATCH + stop - start], rows_new[tasks, start:stop])
        sums[b, tasks] = _halved(D, _ACC_MATCHED)
        sums[b, tasks + 1] = _halved(D, _ACC_NEW)


@_compiled
def _decouple(u, row, scale, out, width, first, last):  # type: ignore[no-untyped-def]
    """``scale * (mask . u)`` of blocks ``first:last``; like torch's product it leaves -0.0 where a negative u goes."""
    zero, one = u.dtype.type(0), u.dtype.type(1)
    factor = u.dtype.type(scale)
    S = np.zeros(BLOCK, np.uint8)
    for b in range(first, last):
        start = b * BLOCK
        stop = min(start + BLOCK, width)
        _copy(row[start:stop], S)
        for k in range(8):
            at = k * width + start
            end = max(at, min(at + stop - start, len(u)))
            old, new = u[at:end], out[at:end]
            bit = np.uint8(1 << k)
            for c in range(len(old)):
                new[c] = (old[c] * factor) * (one if S[c] & bit else zero)


def unify_jobs(
    d: Tensor, u_old: Tensor, u_new: Tensor, rows_old: Tensor, rows_new: Tensor, rescalers: np.ndarray, sums: Tensor
) -> Iterator[Job]:
    """The work of unifying one tensor.

    Args:
        d: The new delta's tensor, flat, contiguous, any floating dtype.
        u_old: u before, like ``d``; ``d`` itself where there is no task yet.
        u_new: Takes u, like ``d``.
        rows_old: Masks before, ``uint8`` ``[T, W]``.
        rows_new: Takes the masks, ``uint8`` ``[T + 1, W]``.
        rescalers: lambda of the earlier tasks, float64, zeros up to a multiple of 8.
        sums: Takes every block's sizes of the tasks' masked u and of the new delta: float64 ``[blocks, T + 2]``.
    """
    width, rounded, count = trigger_bytes(len(d)), _ROUNDED[d.dtype], blocks.block_count(len(d))
    arrays = rows_old.numpy(), rows_new.numpy(), rescalers, sums.numpy()
    for first in range(0, count, PIECE):
        last = min(first + PIECE, count)
        if not rounded:
            flat = d.numpy(), u_old.numpy(), u_new.numpy()
            yield partial(_unify, *flat, width, 0, *arrays, first, last, 0)
            continue

        def widened(start: int = first * BLOCK, first: int = first, last: int = last) -> None:
            stop = min(last * BLOCK, width)
            strips = [read_strips(one, start, stop).float().reshape(-1) for one in (d, u_old)]
            strips.append(torch.empty_like(strips[0]))
            _unify(*(one.numpy() for one in strips), stop - start, start, *arrays, first, last, rounded)
            write_strips(u_new, start, stop, strips[-1].view(8, -1))

        yield widened


def decouple_jobs(u: Tensor, row: Tensor, scale: float, out: Tensor) -> Iterator[Job]:
    """The work of decoupling one tensor: ``out = scale * (mask . u)``, all flat, in float32 or float64."""
    width, count = trigger_bytes(len(u)), blocks.block_count(len(u))
    arrays = u.numpy(), row.numpy(), scale, out.numpy(), width
    for first in range(0, count, PIECE):
        last = min(first + PIECE, count)
        yield partial(_decouple, *arrays, first, last)
