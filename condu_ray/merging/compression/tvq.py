"""TVQ and RTVQ (Kim et al., ICCV 2025, arXiv 2503.06921): deltas in a few bits a value, or their mean and the rest.

The quantiser is the paper's, asymmetric between the least and the largest value of a tensor. RTVQ keeps the mean of all
deltas once in more bits, and of each task what that leaves, in fewer; the rest is taken from the mean as it is decoded,
so that the one's error is in the other's reach (the paper's error correction).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from condu_ray.merging.averaging import DeltaSource, each_delta, layout_of, running_mean
from condu_ray.merging.chunks import wide_dtype
from condu_ray.merging.compression.packed import (
    Code,
    Compressed,
    check_bits,
    check_one,
    live,
    live_count,
    pack_levels,
    unpack_levels,
    whole,
)
from condu_ray.merging.delta import Delta


@torch.no_grad()
def compress(delta: Delta, *, bits: int = 3, task: str | None = None) -> Code:
    """Makes the code of one delta.

    With ``scale = (2**bits - 1) / (max - min)`` and ``zero = -round(scale * min)`` over a tensor's values, a value x is
    kept as the level ``round(scale * x + zero)`` and comes back as ``(level - zero) / scale``: within half a step. 0
    comes back as 0 where it is in the range.

    Args:
        delta: Any floating dtype.
        bits: Of a level, 1 to 16.
        task: Name of the task, for messages.

    Returns:
        Of each tensor ``levels`` (``bits`` a value) and ``range`` (``scale`` and ``zero``, float64).

    Raises:
        DeltaError: As :func:`~condu_ray.merging.compression.packed.check_one`.
        ValueError: ``bits`` is not from 1 to 16.
    """
    check_bits(bits)
    check_one(delta, task)
    code: Code = {}
    for name, values in live(code, delta):
        if values.numel():
            scale, zero = code[f"{name}/range"] = _range(values, bits)
            levels = (values.double() * scale + zero).round_().clamp_(0, 2**bits - 1)
            code[f"{name}/levels"] = pack_levels(levels.to(torch.int32), bits)
    return code


@torch.no_grad()
def decode(code: Code, like: Delta) -> dict[str, Tensor]:
    """Brings a delta back, in the layout of ``like``."""
    found = {}
    for name, tensor in like.items():
        count = live_count(code, name, tensor)
        values = torch.zeros(count, dtype=torch.float64, device=tensor.device)
        if count:
            scale, zero = code[f"{name}/range"]
            values = (unpack_levels(code[f"{name}/levels"], count).double() - zero) / scale
        found[name] = whole(code, name, values, tensor)
    return found


@torch.no_grad()
def compress_residual(deltas: Mapping[str, DeltaSource], *, base_bits: int = 3, offset_bits: int = 2) -> Compressed:
    """RTVQ: the mean of the deltas in ``base_bits``, and of each task what that leaves in ``offset_bits``.

    Args:
        deltas: Name of the task -> its delta or a function that loads it, called twice; any floating dtype, one layout.
        base_bits: Of the mean, which all tasks share.
        offset_bits: Of each task.

    Returns:
        Codes of all tasks, each of which a further task changes. Memory beyond them and a delta: two more of them.

    Raises:
        DeltaError: There is no delta, their layouts differ, or as :func:`compress`.
        ValueError: A width is not from 1 to 16.
    """
    check_bits(base_bits)
    check_bits(offset_bits)
    mean: Delta = {}
    like: Delta = {}
    done: list[str] = []
    for task, delta in each_delta(deltas):
        check_one(delta, task)
        like = like or layout_of(delta)
        mean = running_mean(mean or None, delta, len(done), task=task)
        done.append(task)
        del delta
    shared = compress(mean, bits=base_bits)
    base = decode(shared, mean)
    del mean
    codes = {}
    for task, delta in each_delta(deltas):
        left = {name: tensor.detach().to(base[name].dtype) - base[name] for name, tensor in delta.items()}
        codes[task] = compress(left, bits=offset_bits, task=task)
        del delta, left
    return Compressed(shared, codes, like, _with_base)


def _with_base(shared: Code, code: Code, like: Delta) -> dict[str, Tensor]:
    wide = {
        name: tensor.new_empty((), dtype=wide_dtype(tensor.dtype)).expand(tensor.shape) for name, tensor in like.items()
    }
    base, left = decode(shared, wide), decode(code, wide)
    return {name: (base[name] + left[name]).to(tensor.dtype) for name, tensor in like.items()}


def _range(values: Tensor, bits: int) -> Tensor:
    """Scale and zero, float64; values that are all the same come back as they are."""
    low, high = (float(extreme) for extreme in torch.aminmax(values))
    if high > low:
        scale = (2**bits - 1) / (high - low)
        return torch.tensor([scale, -round(scale * low)], dtype=torch.float64, device=values.device)
    return torch.tensor([1 / low if low else 1.0, 0.0], dtype=torch.float64, device=values.device)
