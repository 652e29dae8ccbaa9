"""EMR-Merging (Huang et al., NeurIPS 2024, arXiv 2405.17461): elect, mask and rescale, once, over all original deltas.

ConDU's rule (``unify.py``) without iteration: no delta has been decoupled and unified before, so that what comes out
bounds what ConDU can keep. Of the deltas so far three numbers a position are needed (sum, largest, smallest), and the
bits of which delta is above and which below 0. The elected sign then chooses one of the two bits as the mask. So each
delta is read once and then forgotten.

Names: ``K8C`` = 8 strips of C columns, ``W`` = bytes of a mask (see ``trigger.py``).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple, get_args

import torch
from torch import Tensor

from condu_ray.merging.averaging import DeltaSource, each_delta
from condu_ray.merging.delta import DeltaError, check_delta
from condu_ray.merging.trigger import (
    GROUP,
    codes,
    column_ranges,
    pack_strips,
    read_strips,
    trigger_bytes,
    write_strips,
)
from condu_ray.merging.unified import UnifiedDelta
from condu_ray.merging.unify import (
    CHUNK_CPU,
    CHUNK_CUDA,
    Rescaler,
    Unification,
    serial,
    strictly_positive,
    sums_by_bit,
    wide_dtype,
)


class _Tally(NamedTuple):
    """What is kept of one tensor over the deltas so far; strips ``[8, W]``, padded with zeros."""

    shape: torch.Size
    total: Tensor
    """Sum, float32 or float64."""
    largest: Tensor
    """Largest value or 0, in the deltas' dtype."""
    smallest: Tensor
    """Smallest value or 0, in the deltas' dtype."""
    above: Tensor
    """Bits of the values above 0, ``uint8`` ``[T, W]``; in the end the masks."""
    below: Tensor
    """Bits of the values below 0, ``uint8`` ``[T, W]``."""


@torch.no_grad()
@serial()
def emr(deltas: Mapping[str, DeltaSource], *, rescaler: Rescaler = "l1") -> UnifiedDelta:
    """Merge original deltas by EMR: one unified delta, and a mask and a rescaler for each task.

    Position by position, with ``s`` the sign of the sum of all deltas (-1 where that is exactly 0, as in the authors'
    code): ``u = s * max |delta_i|`` over the deltas of sign ``s``, ``M_i = 1`` where ``delta_i`` has the sign of ``u``,
    and ``lambda_i = size(delta_i) / size(M_i . u)``, 0 where the mask is empty.

    Args:
        deltas: Name of the task -> its delta or a function that loads it, called once; any floating dtype, one layout.
        rescaler: How lambda measures a delta: ``"l1"`` over the whole delta (the paper), ``"tensor_mean"`` (the
            authors' code).

    Returns:
        The tasks in the order of ``deltas``; decouple, save and load are ConDU's. With one or two tasks it is ConDU's
        own result. ``u`` is not rounded. The sum is float32 (float64 for float64) in the order of ``deltas``, so that
        another order may elect another sign where it cancels to below its rounding, and nothing else. Memory beyond
        one delta: three more of them (half precision: four) and 2 T bits a position.

    Raises:
        DeltaError: There is no delta, their layouts differ, or one holds NaN or infinity.
        ValueError: A task has no name, or the rescaler is unknown.
    """
    if rescaler not in get_args(Rescaler):
        raise ValueError(f"rescaler {rescaler!r} is not one of {', '.join(map(repr, get_args(Rescaler)))}")
    if not all(deltas):
        raise ValueError("a task needs a name")
    tallies: dict[str, _Tally] = {}
    norms: list[float] = []
    for task, delta in each_delta(deltas):  # no enumerate: it would hold on to the last delta
        tallies = tallies or {name: _tally(delta[name], len(deltas)) for name in sorted(delta)}
        norm = 0.0
        for name, tally in tallies.items():
            size = _add(tally, len(norms), delta[name].detach().reshape(-1))
            norm += size if rescaler == "l1" else size / max(delta[name].numel(), 1)
        if not math.isfinite(norm):
            check_delta(delta, task=task)
            raise DeltaError(f"task {task!r}: the size of the delta overflows")
        norms.append(norm)
        del delta

    unified, triggers = {}, {}
    sizes = [0.0] * len(deltas)
    for name in sorted(tallies):
        tally = tallies.pop(name)  # so that its memory is free for the next tensor's u
        unified[name], found = _elect(tally)
        triggers[name] = tally.above
        weight = 1.0 if rescaler == "l1" else 1.0 / max(unified[name].numel(), 1)
        sizes = [size + weight * more for size, more in zip(sizes, found, strict=True)]
    rescalers = tuple(norm / size if size > 0 else 0.0 for norm, size in zip(norms, sizes, strict=True))
    return UnifiedDelta(tuple(deltas), rescaler, Unification(unified, triggers, tuple(norms), rescalers))


def _tally(tensor: Tensor, tasks: int) -> _Tally:
    width = trigger_bytes(tensor.numel())
    values = (
        tensor.new_zeros(8, width, dtype=dtype) for dtype in (wide_dtype(tensor.dtype), tensor.dtype, tensor.dtype)
    )
    bits = (torch.empty(tasks, width, dtype=torch.uint8, device=tensor.device) for _ in range(2))
    return _Tally(tensor.shape, *values, *bits)


def _ranges(tally: _Tally) -> list[tuple[int, int]]:
    step = CHUNK_CUDA if tally.total.device.type == "cuda" else CHUNK_CPU
    return list(column_ranges(tally.shape.numel(), step))


def _add(tally: _Tally, index: int, flat: Tensor) -> float:
    """Add the delta of task ``index`` and return its L1 norm."""
    norm = torch.zeros((), dtype=torch.float64, device=flat.device)
    for start, stop in _ranges(tally):
        d = read_strips(flat, start, stop)
        total, largest, smallest = (strips[:, start:stop] for strips in (tally.total, tally.largest, tally.smallest))
        total.add_(d)
        torch.maximum(largest, d, out=largest)
        torch.minimum(smallest, d, out=smallest)
        tally.above[index, start:stop] = pack_strips(strictly_positive(d))
        tally.below[index, start:stop] = pack_strips(strictly_positive(-d))
        norm += d.abs().sum(dtype=torch.float64)
    return float(norm)


def _elect(tally: _Tally) -> tuple[Tensor, list[float]]:
    """Elect the signs, turn ``above`` into the masks, and return u and the L1 norm of each task's ``M_i . u``."""
    tasks = len(tally.above)
    groups = -(-tasks // GROUP)
    sizes = torch.zeros(groups, GROUP, dtype=torch.float64, device=tally.total.device)
    u = torch.empty(tally.shape, dtype=tally.largest.dtype, device=tally.total.device)
    for start, stop in _ranges(tally):
        total, largest, smallest = (strips[:, start:stop] for strips in (tally.total, tally.largest, tally.smallest))
        positive = total > 0
        chosen = torch.where(positive, largest, smallest).add_(0.0)  # no -0.0, so that equal results have equal bytes
        write_strips(u.view(-1), start, stop, chosen)
        masks, below = tally.above[:, start:stop], tally.below[:, start:stop]
        # One of two bits by a third, for 8 positions at a time: below ^ (elected & (above ^ below)).
        masks.bitwise_xor_(below).bitwise_and_(pack_strips(positive)).bitwise_xor_(below)
        kept = chosen.abs().double().view(-1)
        for g in range(groups):
            sizes[g] += sums_by_bit(codes(masks[GROUP * g : GROUP * (g + 1)]).to(torch.int32).view(-1), kept)
    return u, sizes.view(-1)[:tasks].tolist()
