"""The baselines' merging rules as their papers state them: the slow twins of all rules here but ConDU's.

Everything is dense, stacked and, unless another dtype is asked for, float64. Tests hold the fast rules against these;
nothing else uses them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from condu_ray.merging.delta import Delta
from condu_ray.merging.reference import Reference
from condu_ray.merging.unify import Rescaler


def mean(deltas: Sequence[Delta]) -> dict[str, Tensor]:
    """The mean of all deltas at once."""
    return {name: _stack(deltas, name).mean(0) for name in deltas[0]}


def total(deltas: Sequence[Delta]) -> dict[str, Tensor]:
    """The sum of all deltas at once."""
    return {name: _stack(deltas, name).sum(0) for name in deltas[0]}


def largest_magnitude(deltas: Sequence[Delta]) -> dict[str, Tensor]:
    """MagMax: position by position the value of the largest magnitude, the first of equals."""
    merged = {}
    for name, tensor in deltas[0].items():
        rows = _stack(deltas, name).reshape(len(deltas), -1)
        best = [max(column, key=abs) for column in rows.t().tolist()]  # max keeps the first of equals
        merged[name] = torch.tensor(best, dtype=torch.float64).reshape(tensor.shape)
    return merged


def ties(
    deltas: Sequence[Delta], density: float = 0.2, scale: float = 1.0, dtype: torch.dtype = torch.float64
) -> dict[str, Tensor]:
    """TIES in its three steps, on the flat ``[T, N]`` table of all deltas."""
    table = torch.stack([torch.cat([tensor.reshape(-1).to(dtype) for tensor in delta.values()]) for delta in deltas])
    size = table.shape[1]
    if size:  # Step 1: trim redundant parameters.
        thresholds = table.abs().sort(1).values[:, max(1, size - int(density * size)) - 1]
        table = torch.where(table.abs() >= thresholds[:, None], table, 0.0)
    elected = table.sum(0).sign()  # Step 2: elect final signs.
    elected[elected == 0] = elected.sum().sign()
    agrees = torch.where(elected > 0, table > 0, table < 0)  # Step 3: disjoint mean.
    merged = scale * (table * agrees).sum(0) / agrees.sum(0).clamp(min=1)
    parts = torch.split(merged, [tensor.numel() for tensor in deltas[0].values()])
    return {name: part.reshape(t.shape) for (name, t), part in zip(deltas[0].items(), parts, strict=True)}


def emr(deltas: Sequence[Delta], rescaler: Rescaler = "l1", dtype: torch.dtype = torch.float64) -> Reference:
    """EMR-Merging in its three steps; what it keeps has the form of ConDU's twin, which decouples it."""
    result = Reference(rescaler, dtype, masks=[{} for _ in deltas])
    for name, tensor in deltas[0].items():
        stack = _stack(deltas, name, dtype)
        elected = torch.where(stack.sum(0) > 0, 1.0, -1.0).to(dtype)  # Elect.
        largest = torch.where(stack.sign() == elected, stack.abs(), 0.0).amax(0)
        result.unified[name] = (elected * largest).to(tensor.dtype)
        for mask, delta in zip(result.masks, stack, strict=True):  # Mask.
            mask[name] = (delta.sign() == elected) & (largest > 0)
    for mask, delta in zip(result.masks, deltas, strict=True):  # Rescale.
        masked = {name: mask[name] * result.unified[name].to(dtype) for name in mask}
        size = result.size(masked)
        result.rescalers.append(result.size({name: t.to(dtype) for name, t in delta.items()}) / size if size else 0.0)
    return result


def tsv_m(deltas: Sequence[Delta], scale: float = 1.0) -> dict[str, Tensor]:
    """TSV-M as its authors' code has it: truncate, concatenate, orthogonalise both sides by another decomposition."""
    merged = mean(deltas)
    for name, tensor in deltas[0].items():
        if tensor.ndim == 2 and "embed" not in name:
            keep = max(1, min(tensor.shape) // len(deltas))
            parts = [torch.linalg.svd(matrix, full_matrices=False) for matrix in _stack(deltas, name)]
            u, v = torch.cat([u[:, :keep] for u, _, _ in parts], 1), torch.cat([v[:keep] for _, _, v in parts], 0)
            (p_u, _, q_u), (p_v, _, q_v) = (torch.linalg.svd(side, full_matrices=False) for side in (u, v))
            merged[name] = p_u @ q_u @ torch.diag(torch.cat([s[:keep] for _, s, _ in parts])) @ p_v @ q_v
    return {name: scale * tensor for name, tensor in merged.items()}


def iso_c(deltas: Sequence[Delta], scale: float = 1.0) -> dict[str, Tensor]:
    """Iso-C: the sum, with the mean of its singular values in place of each."""
    merged = mean(deltas)
    for name, tensor in deltas[0].items():
        if tensor.ndim == 2 and "embed" not in name:
            u, s, v = torch.linalg.svd(_stack(deltas, name).sum(0), full_matrices=False)
            merged[name] = u @ torch.diag(torch.full_like(s, float(s.mean()))) @ v
    return {name: scale * tensor for name, tensor in merged.items()}


def opcm(deltas: Sequence[Delta], alpha: float = 0.5) -> dict[str, Tensor]:
    """OPCM with its merged delta and its scale lambda_t after every step, in complete singular bases."""
    merged, scale, norms = {name: tensor.double() for name, tensor in deltas[0].items()}, 1.0, [_size(deltas[0])]
    for delta in deltas[1:]:
        norms.append(_size(delta))
        found = {}
        for name, tensor in delta.items():
            new = tensor.double()
            if tensor.ndim == 2 and "embed" not in name:
                u, s, v = torch.linalg.svd(merged[name], full_matrices=True)
                split = int((s.cumsum(0) / s.sum() > alpha).float().argmax())
                projected = u.T @ new @ v.T
                projected.diagonal().fill_(0)
                projected[:split, :split] = 0
                new = u @ projected @ v
            found[name] = scale * merged[name] + new
        scale = _size(found) / (sum(norms) / len(norms))
        merged = {name: tensor / scale for name, tensor in found.items()}
    return merged


def conflicts(adapter: Delta, global_: Delta, top_percent: float) -> dict[str, Tensor]:
    """PAM: ``sign(a) != sign(g)`` among the top percent of ``|g|``, one position after another."""
    magnitudes = sorted((abs(value) for g in global_.values() for value in g.reshape(-1).tolist()), reverse=True)
    count = int(top_percent / 100 * len(magnitudes))
    found = {}
    for name, g in global_.items():
        flags = [
            count > 0 and abs(y) >= magnitudes[count - 1] and y != 0 and _sign(x) != _sign(y)
            for x, y in zip(adapter[name].reshape(-1).tolist(), g.reshape(-1).tolist(), strict=True)
        ]
        found[name] = torch.tensor(flags, dtype=torch.bool).reshape(g.shape)
    return found


def _sign(value: float) -> int:
    return (value > 0) - (value < 0)


def _size(delta: Delta) -> float:
    return float(torch.cat([tensor.double().reshape(-1) for tensor in delta.values()]).norm())


def _stack(deltas: Sequence[Delta], name: str, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.stack([delta[name].to(dtype) for delta in deltas])
