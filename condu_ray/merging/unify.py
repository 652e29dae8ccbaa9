"""The unify step of ConDU (arXiv 2503.10705, section 3.2) in one pass that materialises no decoupled delta.

Position by position every decoupled delta ``lambda_i * M_i,j * u_j`` is 0 or has the sign of ``u_j``, so that

    sum_i delta~_i,j = u_j * sum_i(lambda_i M_i,j)        and        max_i |delta~_i,j| = |u_j| * max_i(lambda_i M_i,j).

Both factors depend on ``j`` only through its mask bits, which index a table of 256 entries for every 8 tasks. The new
rescalers need, for every task, the sum of ``|u_j|`` over its mask, added in the order of ``blocks.py``. So one pass
reads ``u``, the bits and the new delta, and writes ``u`` and the bits.

Three ways with the same bits: the compiled loops of ``fused.py`` on a CPU, the kernels of ``gpu.py`` on a GPU, and
torch's operations on chunks (``chunks.py``) for small deltas, which are not worth a compiler's loading, and where there
is no numba or no Triton. ``reference.py`` is the literal twin of all. Names: ``K8C`` = 8 strips of C columns (see
``trigger.py``).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from importlib import import_module
from types import ModuleType
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from condu_ray.merging.blocks import block_count, total_of_blocks
from condu_ray.merging.chunks import Operands, decouple_chunks, rescaler_tables, serial, unify_chunks, wide_dtype
from condu_ray.merging.delta import Delta, DeltaError, check_delta, check_layout
from condu_ray.merging.memory import empty, fetch_pages
from condu_ray.merging.threads import run
from condu_ray.merging.trigger import trigger_bytes

Rescaler = Literal["l1", "tensor_mean"]
"""How a delta's size is measured in lambda: ``"l1"`` sums |delta_j| over the whole delta (the paper), ``"tensor_mean"``
sums every tensor's mean |delta_j| (the authors' code), so that a bias weighs as much as a large matrix."""

FUSED_FROM = 1 << 21
"""Positions of a delta from which on the compiled loops are worth being loaded, or, once a machine, compiled."""

DECOUPLED_FROM = 1 << 25
"""As `FUSED_FROM`, where a process has decoupled alone: torch takes 8 ns a position for that, the loops half of it."""

CPU = torch.device("cpu")

GPUS = frozenset({"cuda"})
"""Kinds of devices that kernels are for."""

FUSED_AFTER = 1 << 27
"""Positions times tasks that a process unified by torch, a second or so, after which they are worth it always."""

_by_torch = [0]  # positions times tasks that this process unified by torch, and positions that it decoupled


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
    kernels = None if chunk_size else gpu_kernels(delta, "unify")
    if kernels:
        unified, triggers, operands = _places(before, delta)
        sizes = kernels.unify([operands(name) for name in unified], rescaler_tables(before.rescalers, CPU)).cpu()
    else:
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
    unified, triggers, operands = _places(before, delta)
    tasks, device = len(before.norms), next(iter(delta.values())).device
    tables = rescaler_tables(before.rescalers, device)
    sums = {
        name: torch.empty(block_count(u.numel()), tasks + 2, dtype=torch.float64, device=device)
        for name, u in unified.items()
    }
    if not chunk_size and (loops := fused_loops(delta)):
        fetch_pages([*unified.values(), *triggers.values()])
        run(
            job
            for name in unified
            for job in loops.unify_jobs(*operands(name), tables.to(wide_dtype(delta[name].dtype)), sums[name])
        )
    else:
        _by_torch[0] += _positions(delta) * (tasks + 1)
        with serial():
            for name in unified:
                unify_chunks(*operands(name), tables.to(wide_dtype(delta[name].dtype)), sums[name], chunk_size)
    return unified, triggers, sums


def _places(
    before: Unification, delta: Delta
) -> tuple[dict[str, Tensor], dict[str, Tensor], Callable[[str], Operands]]:
    """Memory for u and for the masks by name, in the order of names, and what a tensor's are made of, when it is."""
    tasks = len(before.norms)
    unified = {name: empty(delta[name].shape, delta[name].dtype, delta[name].device) for name in sorted(delta)}
    triggers = {
        name: empty((tasks + 1, trigger_bytes(u.numel())), torch.uint8, u.device) for name, u in unified.items()
    }

    def operands(name: str) -> Operands:
        d = delta[name].detach().reshape(-1).contiguous()  # a vector with gaps in memory stays one under reshape
        rows = triggers[name]
        u_old = before.unified[name].view(-1) if tasks else d
        return d, u_old, unified[name].view(-1), before.triggers[name] if tasks else rows[:0], rows

    return unified, triggers, operands


def gpu_kernels(delta: Delta, work: Literal["unify", "decouple"]) -> ModuleType | None:
    """The kernels of ``gpu_jobs.py``, if they take this delta: on a GPU, all of one dtype, and worth their compiling.

    Where they have not made a CPU's bits of a small delta, torch does it (``gpu_jobs.trusted``).

    Args:
        delta: What is unified, or what takes the decoupled delta.
        work: Which of the two.
    """
    device, dtype = next((one.device, one.dtype) for one in delta.values())
    alike = all(one.device == device and one.dtype == dtype for one in delta.values())
    if device.type not in GPUS or not alike or _positions(delta) < FUSED_FROM:
        return None
    try:
        kernels = import_module("condu_ray.merging.gpu_jobs")
    except ImportError:  # no Triton
        return None
    return kernels if kernels.trusted(device, dtype, work) else None


def fused_loops(delta: Delta, *, decouples: bool = False) -> ModuleType | None:
    """The compiled loops, if they take this delta: on a CPU, and with enough to do to be worth their loading.

    Args:
        delta: What is worked on.
        decouples: Whether it is decoupled alone, for which alone they are loaded later.
    """
    on_cpu = all(tensor.device.type == "cpu" for tensor in delta.values())
    first = DECOUPLED_FROM if decouples and not fused.cache_info().currsize else FUSED_FROM
    large = _positions(delta) >= first or _by_torch[0] >= FUSED_AFTER
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
    if out and (kernels := gpu_kernels(out, "decouple")):
        kernels.decouple([(u.view(-1), triggers[name][task], out[name].view(-1)) for name, u in unified.items()], scale)
        return out
    loops = fused_loops(unified, decouples=True)
    if not loops:
        _by_torch[0] += _positions(unified)
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
                decouple_chunks(u.view(-1), triggers[name][task], scale, out[name].view(-1))
    return out
