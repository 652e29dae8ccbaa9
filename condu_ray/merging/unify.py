"""The unify step of ConDU (arXiv 2503.10705, section 3.2) in one pass that materialises no decoupled delta.

Position by position every decoupled delta ``lambda_i * M_i,j * u_j`` is 0 or has the sign of ``u_j``, so that

    sum_i delta~_i,j = u_j * sum_i(lambda_i M_i,j)        and        max_i |delta~_i,j| = |u_j| * max_i(lambda_i M_i,j).

Both factors depend on ``j`` only through its mask bits, which index a table of 256 entries for every 8 tasks. The new
rescalers need, for every task, the sum of ``|u_j|`` over its mask, added in the order of ``blocks.py``. So one pass
reads ``u``, the bits and the new delta, and writes ``u`` and the bits.

Two ways with the same bits: the compiled loops of ``fused.py`` on a CPU, and torch's operations on chunks, for GPUs,
for small deltas, which are not worth a compiler's loading, and where there is no numba. ``reference.py`` is the literal
twin of both. Names: ``K8C`` = 8 strips of C columns (see ``trigger.py``).
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from types import ModuleType
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from condu_ray.merging.blocks import BLOCK, block_count, block_ranges, block_sums, total_of_blocks
from condu_ray.merging.delta import Delta, DeltaError, check_delta, check_layout
from condu_ray.merging.memory import empty, fetch_pages
from condu_ray.merging.threads import Job, run
from condu_ray.merging.trigger import (
    GROUP,
    codes,
    column_ranges,
    pack_strips,
    read_strips,
    trigger_bytes,
    unpack_strips,
    write_strips,
)

Rescaler = Literal["l1", "tensor_mean"]
"""How a delta's size is measured in lambda: ``"l1"`` sums |delta_j| over the whole delta (the paper), ``"tensor_mean"``
sums every tensor's mean |delta_j| (the authors' code), so that a bias weighs as much as a large matrix."""

CHUNK_CPU = 1 << 17
"""Positions per chunk on a CPU: the chunk's temporaries stay in its caches."""

CHUNK_CUDA = 1 << 22
"""Positions per chunk on a GPU: large enough to hide the launch of a kernel."""

FUSED_FROM = 1 << 21
"""Positions of a delta from which on the compiled loops are worth being loaded, or, once a machine, compiled."""

FUSED_AFTER = 1 << 27
"""Positions times tasks that a process unified by torch, a second or so, after which they are worth it always."""

_by_torch = [0]  # positions times tasks that this process unified by torch

_CODE_BITS = ((torch.arange(256)[:, None] >> torch.arange(GROUP)) & 1).double()  # bit t of code c: [256, 8]


class Unification(NamedTuple):
    """What ConDU keeps of all its tasks. Everything in it is read-only; T is the number of tasks."""

    unified: dict[str, Tensor]
    """u: the unified delta, shapes and dtypes of the deltas; empty before the first task."""
    triggers: dict[str, Tensor]
    """M: masks as ``uint8`` ``[T, ceil(numel / 8)]`` for every tensor, laid out as ``trigger.py`` says."""
    norms: tuple[float, ...]
    """Size of each task's decoupled delta, as ``Rescaler`` measures it; lambda keeps it over later sessions."""
    rescalers: tuple[float, ...]
    """lambda of each task, at least 0; 0 where the mask is empty."""


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


@torch.no_grad()
def unify(
    before: Unification, delta: Delta, *, rescaler: Rescaler = "l1", task: str | None = None, chunk_size: int = 0
) -> Unification:
    """Unify the decoupled deltas of all earlier tasks with the delta of a new one.

    Args:
        before: The result for the earlier tasks; left as it is.
        delta: The new task's delta: any floating dtype, all tensors on one device, layout as ``before.unified``.
        rescaler: How lambda measures a delta; must be the same at every session.
        task: Name of the new task, for messages.
        chunk_size: Positions that torch works on at a time, which bounds the memory beyond inputs and outputs (about 60
            bytes a position); 0 chooses by device, and takes the compiled loop where there is enough to do.

    Returns:
        New tensors, one task more; the same bits by either way, for every number of threads and chunk size.
        Half-precision deltas are worked on in float32; sums are float64.

    Raises:
        DeltaError: As :func:`~condu_ray.merging.delta.check_delta`; or ``u`` overflows its dtype.
    """
    check_layout(delta, before.unified if before.norms else None, task)
    unified, triggers, sums = unify_blocks(before, delta, chunk_size)
    total = loops.total_of_blocks if not chunk_size and (loops := fused_loops(delta)) else total_of_blocks
    sizes = torch.stack([total(sums.pop(name)) for name in sorted(delta)])
    if not bool(sizes[:, -1].isfinite().all()):
        check_delta(delta, task=task)
    counts = [delta[name].numel() for name in sorted(delta)]
    dtype = next(iter(delta.values())).dtype
    return Unification(unified, triggers, *factors(before.norms, sizes, counts, rescaler, dtype, task))


def factors(
    norms: tuple[float, ...],
    sizes: Tensor,
    counts: Sequence[int],
    rescaler: Rescaler,
    dtype: torch.dtype,
    task: str | None,
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Norms and rescalers after a session.

    Args:
        norms: Of the earlier tasks.
        sizes: Of each tensor the L1 norms of the earlier tasks' masked u, the new one's, and the new delta's: float64
            ``[tensors, T + 2]``, tensors in the order of names.
        counts: Positions of each tensor.
        rescaler: As in :func:`unify`.
        dtype: What u is stored in, for the message.
        task: Name of the new task, for the message.

    Raises:
        DeltaError: ``u`` overflows.
    """
    total = [0.0] * sizes.shape[1]
    for count, row in zip(counts, sizes.tolist(), strict=True):
        weight = 1.0 if rescaler == "l1" else 1.0 / max(count, 1)
        total = [sofar + weight * size for sofar, size in zip(total, row, strict=True)]
    *sizes_now, norm_new = total
    norms = (*norms, norm_new)
    rescalers = tuple(norm / size if size > 0 else 0.0 for norm, size in zip(norms, sizes_now, strict=True))
    if not all(map(math.isfinite, (*sizes_now, *rescalers))):
        raise DeltaError(f"task {task!r}: the unified delta overflows {dtype}")
    return norms, rescalers


_Unified = tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]
"""u, the masks, and of every tensor, for every block, the sizes of the earlier tasks' masked u, of the new task's and
of the new delta: float64 ``[blocks, T + 2]``."""


def unify_blocks(before: Unification, delta: Delta, chunk_size: int = 0) -> _Unified:
    """The part of :func:`unify` that goes over positions; layouts must have been checked."""
    work = _compiled if not chunk_size and fused_loops(delta) else _in_chunks
    return work(before, delta, chunk_size)


def fused_loops(delta: Delta) -> ModuleType | None:
    """The compiled loops, if they take this delta: on a CPU, and with enough to do to be worth their loading."""
    on_cpu = all(tensor.device.type == "cpu" for tensor in delta.values())
    large = _positions(delta) >= FUSED_FROM or _by_torch[0] >= FUSED_AFTER
    return fused() if on_cpu and large else None


def _positions(delta: Delta) -> int:
    return sum(tensor.numel() for tensor in delta.values())


@cache
def fused() -> ModuleType | None:
    """The compiled loops, imported late; ``None`` where numba cannot be had."""
    try:
        return import_module("condu_ray.merging.fused_jobs")
    except ImportError:
        return None


def _empty(before: Unification, name: str, tensor: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Place for a tensor's u and masks, and its masks before."""
    tasks, device = len(before.norms), tensor.device
    u = empty(tensor.shape, tensor.dtype, device)
    rows = empty((tasks + 1, trigger_bytes(tensor.numel())), torch.uint8, device)
    return u, rows, before.triggers[name] if tasks else rows[:0]


def _compiled(before: Unification, delta: Delta, _chunk_size: int) -> _Unified:
    loops = fused()
    assert loops is not None  # unify_blocks asked
    tasks = len(before.norms)
    tables = torch.empty(-(-tasks // GROUP), 256, 2, dtype=torch.float64)
    for table, start in zip(tables, range(0, tasks, GROUP), strict=True):
        table[:, 0], table[:, 1] = _tables(before.rescalers[start : start + GROUP], tables.device)
    places = {name: _empty(before, name, delta[name]) for name in sorted(delta)}
    sums: dict[str, Tensor] = {}

    def jobs() -> Iterator[Job]:
        for name, (u, rows, rows_old) in places.items():
            tensor = delta[name].detach().contiguous()
            sums[name] = torch.empty(block_count(tensor.numel()), tasks + 2, dtype=torch.float64)
            flat = tensor.view(-1)
            u_old = before.unified[name].view(-1) if tasks else flat
            wide = tables.to(wide_dtype(tensor.dtype))
            yield from loops.unify_jobs(flat, u_old, u.view(-1), rows_old, rows, wide, sums[name])

    fetch_pages(one for u, rows, _ in places.values() for one in (u, rows))
    run(jobs())
    return {name: one[0] for name, one in places.items()}, {name: one[1] for name, one in places.items()}, sums


@serial()
def _in_chunks(before: Unification, delta: Delta, chunk_size: int) -> _Unified:
    tasks = len(before.norms)
    _by_torch[0] += _positions(delta) * (tasks + 1)
    device = next(iter(delta.values())).device
    chunk_size = chunk_size or (CHUNK_CUDA if device.type == "cuda" else CHUNK_CPU)
    tables = [_tables(before.rescalers[start : start + GROUP], device) for start in range(0, tasks, GROUP)]
    unified: dict[str, Tensor] = {}
    triggers: dict[str, Tensor] = {}
    sums: dict[str, Tensor] = {}
    for name in sorted(delta):
        tensor = delta[name].detach()
        flat = tensor.reshape(-1)
        u, rows, rows_old = _empty(before, name, tensor)
        u_old = before.unified[name].view(-1) if tasks else flat
        wide = wide_dtype(tensor.dtype)
        tables_wide = [(table_sum.to(wide), table_max.to(wide)) for table_sum, table_max in tables]
        sums[name] = torch.empty(block_count(len(flat)), tasks + 2, dtype=torch.float64, device=device)
        for start, stop in block_ranges(len(flat), chunk_size):
            d, earlier = (read_strips(one, start, stop) for one in (flat, u_old))
            found = sums[name][start // BLOCK : -(-stop // BLOCK)]
            new = _chunk(d, earlier, rows_old[:, start:stop], rows[:, start:stop], tables_wide, found)
            write_strips(u.view(-1), start, stop, new)
        unified[name], triggers[name] = u, rows
    return unified, triggers, sums


def _tables(rescalers: Sequence[float], device: torch.device) -> tuple[Tensor, Tensor]:
    """Sum and largest of the rescalers that a code's bits select, each float64 ``[256]``."""
    padded = torch.tensor([*rescalers] + [0.0] * (GROUP - len(rescalers)), dtype=torch.float64, device=device)
    selected = _CODE_BITS.to(device) * padded
    total = selected[:, 0]
    for column in selected.T[1:]:
        total = total + column  # one after the other, as the compiled loop does
    return total, selected.amax(1)


def wide_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype to compute in."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def _chunk(
    d: Tensor, u_old: Tensor, rows_old: Tensor, rows_new: Tensor, tables: list[tuple[Tensor, Tensor]], sums: Tensor
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
    for task, row in enumerate(rows_old):
        sums[:, task] = block_sums(kept * unpack_strips(row))
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


@torch.no_grad()
def decouple(
    unified: Mapping[str, Tensor], triggers: Mapping[str, Tensor], task: int, scale: float
) -> dict[str, Tensor]:
    """Decoupled delta of one task: ``lambda_i * (M_i . u)`` (ConDU, section 3.2).

    Args:
        unified: u.
        triggers: Masks of all tasks, as in :class:`Unification`.
        task: Index of the task.
        scale: Its rescaler lambda.

    Returns:
        New tensors of ``unified``'s shapes and dtypes.
    """
    out = {name: empty(u.shape, u.dtype, u.device) for name, u in unified.items()}
    loops = fused_loops(unified)
    compiled = {torch.float32, torch.float64} if loops else set()
    if loops:
        fetch_pages(one for one in out.values() if one.dtype in compiled)
        run(
            job
            for name, u in unified.items()
            if u.dtype in compiled
            for job in loops.decouple_jobs(u.view(-1), triggers[name][task], scale, out[name].view(-1))
        )
    with serial():
        for name, u in unified.items():
            if u.dtype not in compiled:
                _decouple(u.view(-1), triggers[name][task], scale, out[name].view(-1))
    return out


def _decouple(u: Tensor, row: Tensor, scale: float, out: Tensor) -> None:
    for start, stop in column_ranges(len(u), CHUNK_CUDA if u.device.type == "cuda" else CHUNK_CPU):
        wide = read_strips(u, start, stop).to(wide_dtype(u.dtype)) * scale
        write_strips(out, start, stop, wide.mul_(unpack_strips(row[start:stop])))
