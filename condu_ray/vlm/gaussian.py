"""A Gaussian a class or task on theta0's features, one shared covariance: the analysis behind routing and novelty.

Names: ``N`` = images, ``T`` = tasks, ``K`` = classes of all tasks that have an image, ``D`` = width of features.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from condu_ray.vlm.moments import GRID, RANDOM_GRID, Moments


class Totals:
    """The moments of several tasks together; adding a task and taking it away again leaves the same bits.

    Args:
        tasks: task to its moments.
    """

    def __init__(self, tasks: Mapping[str, Moments] | None = None) -> None:
        self._tasks: dict[str, Moments] = {}
        self._second: Tensor | None = None
        for name, moments in (tasks or {}).items():
            self.add(name, moments)

    @property
    def names(self) -> list[str]:
        """The tasks, by name: in which order they were added changes nothing."""
        return sorted(self._tasks)

    def add(self, name: str, moments: Moments) -> None:
        """Adds a task.

        Raises:
            ValueError: it is there already, or has no image.
        """
        if name in self._tasks:
            raise ValueError(f"task {name}: the router has it already; forget it first")
        if not moments.images:
            raise ValueError(f"task {name}: has no training image, so that no router can know it")
        self._tasks[name] = moments
        self._second = moments.second.clone() if self._second is None else self._second + moments.second

    def forget(self, name: str, moments: Moments) -> None:
        """Takes away what `add` added.

        Args:
            name: the task.
            moments: those that were added.

        Raises:
            ValueError: there is no such task, or it was added with other moments.
        """
        if name not in self._tasks:
            raise ValueError(f"task {name}: the router does not have it")
        if not torch.equal(self._tasks[name].sums, moments.sums):
            raise ValueError(f"task {name}: was added with other moments; give those")
        del self._tasks[name]
        assert self._second is not None
        self._second = self._second - moments.second

    def second(self) -> Tensor:
        """Sum of the outer products of all features, float64 [D, D]."""
        assert self._second is not None, "a router has a task"
        return self._second / GRID**2

    def classes(self, name: str) -> tuple[Tensor, Tensor]:
        """Returns a task's images a class, float64, and their sums, float64 [., D], of classes that have an image."""
        counts, sums = self._tasks[name].counts, self._tasks[name].sums
        return counts[counts > 0].double(), sums[counts > 0] / GRID

    def random_means(self, name: str) -> tuple[Tensor, Tensor]:
        """Returns the means over a task's images of their random features [M], and of the outer products [M, M]."""
        moments = self._tasks[name]
        steps = moments.images * RANDOM_GRID
        return moments.random_sums.sum(dim=0) / steps, moments.random_second / (steps * RANDOM_GRID)


@dataclass(frozen=True)
class Gaussians:
    """Means with one shared covariance, in coordinates in which that covariance is the identity.

    Attributes:
        whitener: float64 [D, D]; features times its transpose have the identity as covariance.
        means: whitened, float64 [K, D].
        owners: number of the task of each mean, int64 [K].
    """

    whitener: Tensor
    means: Tensor
    owners: Tensor

    def distances(self, image_ND: Tensor) -> Tensor:
        """Squared Mahalanobis distance of each image to each mean: float64 [N, K]."""
        white_ND = image_ND.double() @ self.whitener.T
        square = (white_ND**2).sum(1, keepdim=True) + (self.means**2).sum(1) - 2 * white_ND @ self.means.T
        return square.clamp(min=0)

    def log_likelihoods(self, image_ND: Tensor) -> Tensor:
        """Returns log p(image | task) but for a constant, classes of a task alike likely: float64 [N, T]."""
        half_NK = -self.distances(image_ND) / 2
        return torch.stack(
            [
                torch.logsumexp(half_NK[:, self.owners == task], dim=1) - math.log(int((self.owners == task).sum()))
                for task in range(int(self.owners.max()) + 1)
            ],
            dim=1,
        )


def class_gaussians(totals: Totals) -> Gaussians:
    """A mean a class, the covariance within classes."""
    found = [totals.classes(name) for name in totals.names]
    counts = torch.cat([count for count, _ in found])
    owners = torch.repeat_interleave(torch.arange(len(found)), torch.tensor([len(count) for count, _ in found]))
    return _gaussians(totals, torch.cat([sums for _, sums in found]), counts, owners)


def task_gaussians(totals: Totals) -> Gaussians:
    """A mean a task, the covariance within tasks."""
    found = [totals.classes(name) for name in totals.names]
    sums = torch.stack([sums.sum(dim=0) for _, sums in found])
    return _gaussians(totals, sums, torch.stack([count.sum() for count, _ in found]), torch.arange(len(found)))


def background(totals: Totals) -> Gaussians:
    """One mean and covariance of all images, whatever their class."""
    found = [totals.classes(name) for name in totals.names]
    sums = torch.stack([sums.sum(dim=0) for _, sums in found]).sum(dim=0, keepdim=True)
    counts = torch.stack([count.sum() for count, _ in found]).sum().reshape(1)
    return _gaussians(totals, sums, counts, torch.zeros(1, dtype=torch.int64))


def _gaussians(totals: Totals, sums_KD: Tensor, count_K: Tensor, owners: Tensor) -> Gaussians:
    mean_KD = sums_KD / count_K.unsqueeze(1)
    images, freedom = float(count_K.sum()), float(count_K.sum()) - len(count_K)
    scatter = totals.second() - (mean_KD * count_K.unsqueeze(1)).T @ mean_KD
    covariance = shrunk(scatter / max(freedom, 1.0), max(images, 1.0))
    whitener = torch.linalg.solve_triangular(
        torch.linalg.cholesky(covariance), torch.eye(len(covariance), dtype=torch.float64), upper=False
    )
    return Gaussians(whitener, mean_KD @ whitener.T, owners)


def shrunk(covariance_DD: Tensor, images: float) -> Tensor:
    """Shrinks a covariance towards a multiple of the identity, by the oracle approximating amount.

    Chen et al. 2010, arXiv 0907.4698, in the form of scikit-learn's `OAS`. It needs no image but the covariance alone.

    Args:
        covariance_DD: float64, of so many images.
        images: how many.
    """
    width = len(covariance_DD)
    size, spread = float(covariance_DD.diagonal().mean()), float((covariance_DD**2).mean())
    identity = torch.eye(width, dtype=covariance_DD.dtype)
    if size <= 0:  # one image a class: nothing is known of the covariance
        return identity / width
    rest = (images + 1) * (spread - size**2 / width)
    amount = min(1.0, (spread + size**2) / rest) if rest > 0 else 1.0
    amount = max(amount, 1e-6)  # directions that no image varies in
    return (1 - amount) * covariance_DD + amount * size * identity
