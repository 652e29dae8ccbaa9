"""TALL masks (Wang et al., ICML 2024, arXiv 2405.07813): which values of the sum of all deltas are a task's own.

Formulas as in the authors' code (github.com/nik-dim/tall_masks, `tallmask_utils.py`), read in 2026. It tries lambda
from 0.2 to 0.6 and takes the best of them for each task on validation images, and the factor of the consensus in the
same way; there are none here, so that both are fixed.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from condu_ray.merging.averaging import DeltaSource, check_merged, each_delta, running_sum
from condu_ray.merging.delta import Delta


@torch.no_grad()
def tall_mask(value: Tensor, total: Tensor, threshold: float) -> Tensor:
    """Where a task's delta is more of the sum than all the others are: ``|delta| > threshold * |sum - delta|``.

    Args:
        value: A tensor of the task's delta, any floating dtype.
        total: The same of the sum of all deltas, float32 or float64.
        threshold: lambda in the paper; the larger, the fewer.

    Returns:
        Bool of their shape.
    """
    wide = value.detach().to(total.dtype)
    return wide.abs() > threshold * (total - wide).abs()


@torch.no_grad()
def sum_of(deltas: Mapping[str, DeltaSource]) -> dict[str, Tensor]:
    """The sum of all deltas, float32 or float64, one of them in memory at a time.

    Raises:
        DeltaError: There is no delta, their layouts differ, one holds NaN or infinity, or the sum overflows.
    """
    total: Delta = {}
    for task, delta in each_delta(deltas):
        total = running_sum(total or None, delta, task=task)
        del delta
    return dict(total)


@torch.no_grad()
def consensus(
    deltas: Mapping[str, DeltaSource], *, threshold: float = 0.4, least: int = 2, scale: float = 0.3
) -> dict[str, Tensor]:
    """Merge deltas by task arithmetic over those positions that several tasks' masks share (Consensus Merging).

    Args:
        deltas: Name of the task -> its delta or a function that loads it, called twice; any floating dtype, one layout.
        threshold: Of the masks.
        least: Tasks whose mask a position has to be in; 0 takes all positions, which is task arithmetic. With fewer
            deltas than that all of them have to agree.
        scale: Factor of the result.

    Returns:
        New float32 tensors, float64 for float64. Sums are in the order of ``deltas``, so that another order may round
        otherwise. Memory beyond the sum and one delta: 2 bytes a position.

    Raises:
        DeltaError: As :func:`sum_of`.
    """
    total = sum_of(deltas)
    votes = {name: torch.zeros(tensor.shape, dtype=torch.int16, device=tensor.device) for name, tensor in total.items()}
    for _, delta in each_delta(deltas):
        for name in delta:
            votes[name] += tall_mask(delta[name], total[name], threshold)
        del delta
    wanted = min(least, len(deltas))
    merged = {name: torch.where(votes.pop(name) >= wanted, total[name] * scale, 0.0) for name in list(total)}
    check_merged(merged, deltas)
    return merged
