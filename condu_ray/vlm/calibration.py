"""Probabilities that mean something: temperatures, a logistic model, and the expected calibration error."""

from __future__ import annotations

import torch
from torch import Tensor

SHARPEST, FLATTEST = 1e-4, 1e4
"""Temperatures that are tried, relative to the scores' own scale."""
BINS = 15
"""Bins of the expected calibration error."""


def fit_temperature(score_NT: Tensor, label_N: Tensor) -> float:
    """Finds the temperature T under which softmax(score / T) explains the labels best (Guo et al. 2017).

    Labels are softened by 1 / (N + 2), as Platt's are: N images that are all right do not make it certain.

    Args:
        score_NT: float64, of images that the scores were not fitted on.
        label_N: int64, the right column.

    Returns:
        T > 0; 1 where there is no image or one column.
    """
    count, columns = score_NT.shape
    if count == 0 or columns < 2:
        return 1.0
    slack = 1 / (count + 2)
    target_NT = torch.full_like(score_NT, slack / (columns - 1))
    target_NT[torch.arange(count), label_N] = 1 - slack
    low, high = 1 / FLATTEST, 1 / SHARPEST
    for _ in range(60):  # the loss is convex in 1 / T: its slope changes its sign once
        middle = (low * high) ** 0.5
        slope = ((torch.softmax(middle * score_NT, dim=1) - target_NT) * score_NT).sum(dim=1).mean()
        low, high = (middle, high) if slope < 0 else (low, middle)
    return 1 / (low * high) ** 0.5


def logistic(
    evidence_NF: Tensor, label_N: Tensor, weight_N: Tensor, prior: Tensor, strength: float, steps: int = 50
) -> Tensor:
    """Fits a logistic model by Newton's method.

    Args:
        evidence_NF: float64.
        label_N: 0 or 1, float64.
        weight_N: of each row, float64; they sum to 1.
        prior: coefficients that are held for likely, the intercept last: [F + 1].
        strength: of the prior, against the mean log-likelihood.
        steps: at most.

    Returns:
        Coefficients, the intercept last: [F + 1].
    """
    rows = torch.cat([evidence_NF, torch.ones(len(evidence_NF), 1, dtype=evidence_NF.dtype)], dim=1)
    found, penalty = prior.clone(), strength * torch.eye(len(prior), dtype=rows.dtype)
    for _ in range(steps):
        chance = torch.sigmoid(rows @ found)
        gradient = rows.T @ (weight_N * (chance - label_N)) + penalty @ (found - prior)
        hessian = (rows * (weight_N * chance * (1 - chance)).unsqueeze(1)).T @ rows + penalty
        step = torch.linalg.solve(hessian, gradient)
        found = found - step.clamp(-2, 2)
        if float(step.abs().max()) < 1e-10:
            break
    return found


def calibration_error(chance_N: Tensor, right_N: Tensor, bins: int = BINS) -> float:
    """The expected calibration error (Guo et al. 2017): mean over images of |confidence - accuracy| of their bin.

    Args:
        chance_N: confidence of each prediction, in [0, 1].
        right_N: whether it is right, bool.
        bins: of equal width.
    """
    place_N = (chance_N * bins).long().clamp(max=bins - 1)
    gap = torch.zeros(bins, dtype=torch.float64).index_add_(0, place_N, chance_N.double() - right_N.double())
    return float(gap.abs().sum() / max(len(chance_N), 1))
