"""TALL masks as compression (Wang et al., ICML 2024, arXiv 2405.07813): the sum of all deltas, and of each task a mask.

The rules themselves are in :mod:`condu_ray.merging.tall_mask`.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from condu_ray.merging.averaging import DeltaSource, each_delta, layout_of
from condu_ray.merging.compression.packed import Code, Compressed, check_one, live, live_count, whole
from condu_ray.merging.delta import Delta
from condu_ray.merging.tall_mask import consensus, sum_of, tall_mask
from condu_ray.merging.trigger import pack, unpack


@torch.no_grad()
def compress(deltas: Mapping[str, DeltaSource], *, threshold: float = 0.4) -> Compressed:
    """The sum in full precision, and of each task one bit a value: ``delta~_i = M_i . sum``.

    Args:
        deltas: Name of the task -> its delta or a function that loads it, called twice; any floating dtype, one layout.
        threshold: Of the masks (lambda in the paper).

    Returns:
        ``values`` of each tensor, shared, float32 or float64, and ``mask`` for each task; a further task changes both.

    Raises:
        DeltaError: There is no delta, their layouts differ, one holds NaN or infinity, or the sum overflows.
    """
    total = sum_of(deltas)
    shared: Code = _values(total)
    codes: dict[str, Code] = {}
    like: Delta = {}
    for task, delta in each_delta(deltas):
        like = like or layout_of(delta)
        masks = {name: tall_mask(tensor, total[name], threshold) for name, tensor in delta.items()}
        codes[task] = {f"{name}/mask": pack(_live(shared, name, mask)) for name, mask in masks.items()}
        del delta
    return Compressed(shared, codes, like, _masked)


@torch.no_grad()
def compress_consensus(
    deltas: Mapping[str, DeltaSource], *, threshold: float = 0.4, least: int = 2, scale: float = 0.3
) -> Compressed:
    """One model for all tasks by :func:`~condu_ray.merging.tall_mask.consensus`, in full precision.

    Args:
        deltas: As there; the first is called once more.
        threshold: As there.
        least: As there.
        scale: As there.

    Returns:
        ``values`` of each tensor, shared; nothing of a task alone.
    """
    merged = consensus(deltas, threshold=threshold, least=least, scale=scale)
    _, first = next(each_delta(deltas))
    return Compressed(_values(merged), {task: {} for task in deltas}, layout_of(first), _unmasked)


def _values(delta: Delta) -> Code:
    check_one(delta, None)
    code: Code = {}
    for name, values in live(code, delta):
        code[f"{name}/values"] = values
    return code


def _live(shared: Code, name: str, mask: Tensor) -> Tensor:
    """The rows of a mask that the sum has."""
    rows = shared.get(f"{name}/rows")
    return mask if rows is None else mask.reshape(len(mask), -1)[unpack(rows, (len(mask),))]


def _masked(shared: Code, code: Code, like: Delta) -> dict[str, Tensor]:
    found = {}
    for name, tensor in like.items():
        mask = unpack(code[f"{name}/mask"], (live_count(shared, name, tensor),))
        found[name] = whole(shared, name, torch.where(mask, shared[f"{name}/values"], 0.0), tensor)
    return found


def _unmasked(shared: Code, code: Code, like: Delta) -> dict[str, Tensor]:
    return {name: whole(shared, name, shared[f"{name}/values"], tensor) for name, tensor in like.items()}
