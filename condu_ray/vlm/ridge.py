"""Ridge regression from random features to tasks: solved from sums, so that it is the same in any order of the tasks.

As RAIL's regression-based adapter (arXiv 2406.18868, "Random-Hidden Layer"), with tasks as targets.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from condu_ray.vlm.gaussian import Totals
from condu_ray.vlm.moments import RANDOM_GRID, on_grid, random_features

PENALTY = 1e-2
"""Ridge penalty, as a share of the mean variance of the random features."""


@dataclass(frozen=True)
class Ridge:
    """A linear map from random features to one score a task.

    Attributes:
        weights: float64 [M, T].
        mean: of the random features, [M].
        shares: each task's share of the images, [T]: the regression's score of the mean.
    """

    weights: Tensor
    mean: Tensor
    shares: Tensor

    def scores(self, image_ND: Tensor) -> Tensor:
        """About P(task | image), negative or above 1 at times: float64 [N, T]."""
        random_NM = random_features(on_grid(image_ND).double()) / RANDOM_GRID
        return (random_NM - self.mean) @ self.weights + self.shares


def ridge(totals: Totals) -> Ridge:
    """Solves the regression."""
    found = [totals.random_sums(name) for name in totals.names]
    count_T = torch.tensor([count for count, _ in found], dtype=torch.float64)
    sum_TM = torch.stack([sums for _, sums in found]) / RANDOM_GRID
    images, mean = float(count_T.sum()), sum_TM.sum(dim=0) / count_T.sum()
    scatter = totals.random_second() / RANDOM_GRID**2 - images * torch.outer(mean, mean)
    penalty = max(PENALTY * float(scatter.diagonal().mean()), 1e-6)
    penalised = scatter + penalty * torch.eye(len(scatter), dtype=torch.float64)
    targets = sum_TM - count_T.unsqueeze(1) * mean
    return Ridge(torch.linalg.solve(penalised, targets.T), mean, count_T / images)
