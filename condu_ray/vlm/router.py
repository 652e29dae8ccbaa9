"""Routing: which experts answer for an image of an unseen task, and with what weight (ConDU, "Predict")."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

PRETRAINED = -1
"""Index that stands for the pretrained model among the candidates."""


def similarities(image_BD: Tensor, prototypes: Sequence[Tensor]) -> Tensor:
    """w_i = max over classes k of task i of cos(image, P^i_k).

    Args:
        image_BD: theta0's image features, L2-normalised.
        prototypes: one [C_i, D] tensor of class prototypes a learned task, L2-normalised.

    Returns:
        [B, E] float32 in [-1, 1], E = len(prototypes).
    """
    return torch.stack([(image_BD @ proto_CD.T).amax(dim=1) for proto_CD in prototypes], dim=1)


def candidates(
    weights_BE: Tensor, *, top_k: int, include_pretrained: bool, aggregation: str, pretrained_weight: str = "best"
) -> tuple[Tensor, Tensor]:
    """Chooses K candidates an image and their weights.

    With `include_pretrained`, theta0 is always the first of the K (the paper gives it no weight of its own; the public
    code averages with equal weights).
    Ties go to the task learned first.

    Args:
        weights_BE: `similarities`.
        top_k: number of candidates, the pretrained model among them.
        include_pretrained: whether theta0 is a candidate.
        aggregation: `weighted` (paper: by w_i, negatives count as 0) or `mean` (public code: equal).
        pretrained_weight: of theta0 when `weighted`: `best`, as much as the most similar expert's, or `equal`, 1 / K',
            so that the experts share the rest.

    Returns:
        indices [B, K'] (`PRETRAINED` is theta0) and weights [B, K'] that sum to 1 in each row; K' <= top_k.
    """
    batch, experts = weights_BE.shape
    room = min(top_k - int(include_pretrained), experts)
    order = weights_BE.argsort(dim=1, descending=True, stable=True)[:, :room]
    chosen = weights_BE.gather(1, order)
    if include_pretrained:
        order = torch.cat([torch.full((batch, 1), PRETRAINED, device=order.device), order], dim=1)
        chosen = torch.cat([weights_BE.amax(dim=1, keepdim=True), chosen], dim=1)
    if aggregation == "mean":
        return order, torch.full_like(chosen, 1 / chosen.shape[1])
    if aggregation != "weighted":
        raise ValueError(f"aggregation {aggregation!r}: expected 'weighted' or 'mean'")
    chosen = chosen.clamp(min=0)
    total = chosen.sum(dim=1, keepdim=True)
    equal = torch.full_like(chosen, 1 / chosen.shape[1])
    if include_pretrained and pretrained_weight == "equal" and room:
        among = chosen[:, 1:].sum(dim=1, keepdim=True)
        shared = (1 - equal[:, :1]) * chosen[:, 1:] / among.clamp(min=1e-12)
        return order, torch.where(among > 0, torch.cat([equal[:, :1], shared], dim=1), equal)
    return order, torch.where(total > 0, chosen / total.clamp(min=1e-12), equal)
