"""P(task | image): routers, each made from sums alone, calibrated by images that are kept out of them.

Names: ``N`` = images, ``T`` = tasks, ``C`` = classes of a task, ``D`` = width of features.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from condu_ray.vlm.calibration import fit_temperature
from condu_ray.vlm.gaussian import Totals, class_gaussians, task_gaussians
from condu_ray.vlm.moments import Moments
from condu_ray.vlm.ridge import ridge
from condu_ray.vlm.router import similarities

Kind = Literal["prototype", "gaussian", "ridge"]
Means = Literal["class", "task"]


class Router:
    """Scores tasks for an image of theta0.

    Args:
        kind: `prototype`: cosine to the nearest class prototype; `gaussian`: log-likelihood under Gaussians with one
            covariance; `ridge`: regression from random features.
        totals: the tasks.
        means: of `gaussian`: a mean a class, or a task.
        prototypes: of `prototype`: task to its class prototypes [C, D].
    """

    def __init__(
        self, kind: Kind, totals: Totals, means: Means = "class", prototypes: Mapping[str, Tensor] | None = None
    ) -> None:
        self.names: Sequence[str] = totals.names
        if kind not in get_args(Kind):
            raise ValueError(f"router {kind!r}: expected one of {', '.join(get_args(Kind))}")
        if kind == "prototype":
            assert prototypes is not None, "the prototype router has prototypes"
            known = [prototypes[name] for name in self.names]
            self._scores = lambda image_ND: similarities(image_ND, known).double()
        elif kind == "gaussian":
            self._scores = (class_gaussians(totals) if means == "class" else task_gaussians(totals)).log_likelihoods
        else:
            self._scores = ridge(totals).scores
        self.temperature = 1.0

    def scores(self, image_ND: Tensor) -> Tensor:
        """Returns float64 [N, T], larger is more likely, tasks by name (`names`)."""
        return self._scores(image_ND)

    def probabilities(self, image_ND: Tensor, names: Sequence[str] | None = None) -> Tensor:
        """Returns P(task | image), all tasks alike likely beforehand: float64 [N, T], rows sum to 1.

        Args:
            image_ND: theta0's features, float32, L2-normalised.
            names: the tasks in the order of the columns; None: by name.
        """
        chance_NT = torch.softmax(self.scores(image_ND) / self.temperature, dim=1)
        return chance_NT if names is None else chance_NT[:, [self.names.index(name) for name in names]]


def calibrated(
    kind: Kind, tasks: Mapping[str, Moments], means: Means = "class", prototypes: Mapping[str, Tensor] | None = None
) -> Router:
    """Makes a router of all images of some tasks, its temperature from the images that are kept one by one.

    These are taken out of the sums again while they judge (not out of prototypes, whose means hardly depend on them).
    """
    router = Router(kind, Totals(tasks), means, prototypes)
    feature_HD, label_H = held(tasks)
    fitted = without_held(tasks)
    if fitted is not None:
        judged = Router(kind, Totals(fitted), means, prototypes)
        router.temperature = fit_temperature(judged.scores(feature_HD), label_H)
    return router


def held(tasks: Mapping[str, Moments]) -> tuple[Tensor, Tensor]:
    """Returns the features that are kept one by one, float32 [H, D], and the task of each by number among the names."""
    names = sorted(tasks)
    features = torch.cat([tasks[name].held_features() for name in names])
    counts = torch.tensor([len(tasks[name].held) for name in names])
    return features, torch.repeat_interleave(torch.arange(len(names)), counts)


def without_held(tasks: Mapping[str, Moments]) -> dict[str, Moments] | None:
    """Returns the tasks' sums over all other images; None where some task would have none left, or none is kept."""
    left = {name: moments.without_held() for name, moments in tasks.items()}
    usable = all(moments.images for moments in left.values()) and any(len(moments.held) for moments in tasks.values())
    return left if usable else None
