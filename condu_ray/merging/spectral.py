"""Merging rules on the singular vectors of matrices: TSV-M and Iso-C, which read all deltas, one at a time.

Formulas from the papers and from their authors' code (github.com/AntoAndGar/task_singular_vectors, `TSVM_utils.py`;
github.com/danielm1405/iso-merging, `iso.py`), read in 2026. What is a matrix: `singular.py`.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from condu_ray.merging.averaging import DeltaSource, check_merged, each_delta, running_sum
from condu_ray.merging.delta import Delta, check_delta
from condu_ray.merging.singular import Svd, is_matrix, polar, svd


@torch.no_grad()
def tsv_m(deltas: Mapping[str, DeltaSource], *, scale: float = 1.0) -> dict[str, Tensor]:
    """Merge deltas by their task singular vectors (TSV-M; Gargiulo et al., CVPR 2025, arXiv 2412.00081).

    Of each of T deltas a matrix ``[M, N]`` keeps its ``k = min(M, N) // T`` largest singular values, at least one. With
    the factors of all tasks side by side, ``U = [U_1 ... U_T]``, ``S`` and ``V^T`` alike, the merged matrix is
    ``scale * Q_U diag(S) Q_V^T``: ``Q_U`` and ``Q_V^T`` are the nearest to U and V^T with orthonormal columns and rows
    (Procrustes), so that no task's directions overlap another's. All other tensors are averaged.

    Args:
        deltas: Name of the task -> its delta or a function that loads it, called once; any floating dtype, one layout.
        scale: Factor of the result (alpha in the paper, which finds 1 near the best).

    Returns:
        New float32 tensors, float64 for float64. The order of ``deltas`` changes rounding alone. Memory beyond the
        result and one delta: the factors, about ``(M + N) / max(M, N)`` deltas.

    Raises:
        DeltaError: There is no delta, their layouts differ, one holds NaN or infinity, or the result overflows.
    """
    factors: dict[str, list[Svd]] = {}
    total: Delta = {}
    names: list[str] = []
    for task, delta in each_delta(deltas):
        check_delta(delta, task=task)
        names = names or list(delta)
        others = {name: tensor for name, tensor in delta.items() if not is_matrix(name, tensor)}
        total = running_sum(total or None, others, task=task) if others else {}
        for name in (name for name in delta if name not in others):
            keep = max(1, min(delta[name].shape) // len(deltas))
            factors.setdefault(name, []).append(svd(delta[name]).first(keep))
        del delta, others

    merged = {name: tensor / len(deltas) for name, tensor in total.items()}
    for name in list(factors):
        parts = factors.pop(name)  # so that its memory is free for the next
        u, s, v = torch.cat([p.u for p in parts], 1), torch.cat([p.s for p in parts]), [p.v for p in parts]
        merged[name] = (polar(u) * s) @ polar(torch.cat(v))
    merged = {name: merged[name].mul_(scale) for name in names}
    check_merged(merged, deltas)
    return merged


@torch.no_grad()
def iso_c(deltas: Mapping[str, DeltaSource], *, scale: float = 1.0) -> dict[str, Tensor]:
    """Merge deltas into their sum with a flat spectrum (Iso-C; Marczak et al., ICML 2025, arXiv 2502.04959).

    A matrix ``[M, N]`` whose sum over all tasks is ``U diag(S) V^T`` becomes ``scale * mean(S) * U V^T``, with the mean
    over ``min(M, N)`` singular values. All other tensors are averaged. Directions in which the sum is 0 stay 0.

    Args:
        deltas: Name of the task -> its delta or a function that loads it, called once; any floating dtype, one layout.
        scale: Factor of the result (alpha in the paper, which chooses it on validation images).

    Returns:
        New float32 tensors, float64 for float64. The order of ``deltas`` changes rounding alone. Memory beyond one
        delta: two more of them.

    Raises:
        DeltaError: There is no delta, their layouts differ, one holds NaN or infinity, or the result overflows.
    """
    total: Delta = {}
    for task, delta in each_delta(deltas):
        total = running_sum(total or None, delta, task=task)
        del delta
    merged = {}
    for name, tensor in total.items():
        if is_matrix(name, tensor):
            found = svd(tensor)
            merged[name] = found.u @ found.v * (scale * found.s.sum() / max(1, min(tensor.shape)))
        else:
            merged[name] = tensor * (scale / len(deltas))
    check_merged(merged, deltas)
    return merged
