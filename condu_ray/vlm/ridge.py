"""Ridge regression from random features to tasks: solved from sums, so that it is the same in any order of the tasks.

As RAIL's regression-based adapter (arXiv 2406.18868, "Random-Hidden Layer"), with tasks as targets, and every task
weighing alike: of RAIL's sixteen images a class all classes are as many, while a task here may have eighty times the
images of another, to which least squares over images would give away nearly all of the smaller one's.
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
        mean: of the tasks' mean random features, [M].
    """

    weights: Tensor
    mean: Tensor

    def scores(self, image_ND: Tensor) -> Tensor:
        """About P(task | image), all tasks alike likely beforehand, negative or above 1 at times: float64 [N, T]."""
        random_NM = random_features(on_grid(image_ND).double()) / RANDOM_GRID
        return (random_NM - self.mean) @ self.weights + 1 / self.weights.shape[1]


def ridge(totals: Totals) -> Ridge:
    """Solves the regression; the squared errors of a task's images count by their mean."""
    total: Tensor | None = None
    means = []
    for name in totals.names:
        mean, second = totals.random_means(name)
        means.append(mean)
        total = second if total is None else total + second
    assert total is not None, "a router has a task"
    mean_TM, tasks = torch.stack(means), len(means)
    middle = mean_TM.mean(dim=0)
    scatter = total / tasks - torch.outer(middle, middle)
    penalty = max(PENALTY * float(scatter.diagonal().mean()), 1e-9)
    penalised = scatter + penalty * torch.eye(len(scatter), dtype=torch.float64)
    return Ridge(torch.linalg.solve(penalised, (mean_TM - middle).T / tasks), middle)
