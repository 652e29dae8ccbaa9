"""Probabilities that mean something: temperatures, a logistic model, and the expected calibration error."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from condu_ray.metrics import FLATTEST, SHARPEST

STEPS = 50
"""Newton steps, at most."""
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
    low, high = 1 / FLATTEST, 1 / SHARPEST  # relative to the scores' own scale
    for _ in range(60):  # the loss is convex in 1 / T: its slope changes its sign once
        middle = (low * high) ** 0.5
        slope = ((torch.softmax(middle * score_NT, dim=1) - target_NT) * score_NT).sum(dim=1).mean()
        low, high = (middle, high) if slope < 0 else (low, middle)
    return 1 / (low * high) ** 0.5


def logistic(evidence_NF: Tensor, label_N: Tensor, weight_N: Tensor, prior: Tensor, strength: float) -> Tensor:
    """Fits a logistic model in which evidence never speaks against what it is evidence of.

    Newton's method; a coefficient that would be negative is 0, and the others are fitted again.

    Args:
        evidence_NF: float64.
        label_N: 0 or 1, float64.
        weight_N: of each row, float64; they sum to 1.
        prior: coefficients that are held for likely, the intercept last: [F + 1].
        strength: of the prior, against the mean log-likelihood.

    Returns:
        Coefficients, the intercept last: [F + 1].
    """
    rows = torch.cat([evidence_NF, torch.ones(len(evidence_NF), 1, dtype=evidence_NF.dtype)], dim=1)
    free = torch.ones(len(prior), dtype=torch.bool)
    while True:
        found = torch.zeros_like(prior)
        found[free] = _newton(rows[:, free], label_N, weight_N, prior[free], strength)
        against = (found < 0) & free
        against[-1] = False
        if not against.any():
            return found
        free &= ~against


def _newton(rows: Tensor, label_N: Tensor, weight_N: Tensor, prior: Tensor, strength: float) -> Tensor:
    def loss(found: Tensor) -> float:
        fit = functional.binary_cross_entropy_with_logits(rows @ found, label_N, weight=weight_N, reduction="sum")
        return float(fit + strength / 2 * ((found - prior) ** 2).sum())

    found, penalty = prior.clone(), strength * torch.eye(len(prior), dtype=rows.dtype)
    for _ in range(STEPS):
        chance = torch.sigmoid(rows @ found)
        gradient = rows.T @ (weight_N * (chance - label_N)) + penalty @ (found - prior)
        hessian = (rows * (weight_N * chance * (1 - chance)).unsqueeze(1)).T @ rows + penalty
        step, size = torch.linalg.solve(hessian, gradient), 1.0
        while loss(found - size * step) > loss(found) and size > 1e-6:
            size /= 2  # far from the optimum a whole step can overshoot
        found = found - size * step
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
