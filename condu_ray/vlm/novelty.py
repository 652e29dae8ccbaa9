"""P(new | image): whether an image is of none of the learned tasks, by theta0's features and prompts.

No image of an unlearned task is looked at: a small logistic model learns to weigh the evidence on the learned tasks,
each held out in turn as if it were new, by the images that are kept out of the sums.

Names: ``N`` = images, ``D`` = width of features, ``F`` = kinds of evidence, ``K`` = learned classes, ``U`` = others.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from condu_ray.vlm.calibration import logistic
from condu_ray.vlm.gaussian import Totals, background, class_gaussians
from condu_ray.vlm.moments import Moments
from condu_ray.vlm.routers import without_held

Rule = Literal["combined", "mahalanobis", "relative", "nearest", "prompts", "two-stage"]
RULES: Mapping[Rule, tuple[int, ...]] = {
    "combined": (0, 1, 2, 3), "mahalanobis": (0,), "relative": (1,), "nearest": (2,), "prompts": (3,), "two-stage": (),
}  # fmt: skip
"""Which evidence a rule weighs; `two-stage` is RAIL's: theta0's nearest prompt decides."""
USUAL = 0.7, -2.5
"""Weight of each kind of evidence, and the intercept, that are held for likely beforehand."""
STRENGTH = 1e-2
"""Of that belief, against the evidence of learned tasks; with one task there is no other."""
LIMIT = 6.0
"""Standard deviations beyond which evidence does not grow."""


@dataclass(frozen=True)
class Known:
    """What novelty is judged by, of one learned task.

    Attributes:
        moments: of its training images.
        text: [C, D], theta0's features of its classes' prompts, float32, L2-normalised.
    """

    moments: Moments
    text: Tensor


class Evidence:
    """How strange an image is to some tasks.

    Args:
        tasks: the learned tasks.
        scale: exp(logit_scale) of theta0.
    """

    def __init__(self, tasks: Mapping[str, Known], scale: float) -> None:
        totals = Totals({name: known.moments for name, known in tasks.items()})
        self._classes, self._background = class_gaussians(totals), background(totals)
        means = torch.cat([totals.classes(name)[1] for name in totals.names])
        self._mean_KD = functional.normalize(means, dim=1)
        self._text_KD, self._scale = torch.cat([tasks[name].text for name in totals.names]), scale

    def __call__(self, image_ND: Tensor, unknown_UD: Tensor) -> Tensor:
        """Returns evidence that images are new, larger is stranger: float64 [N, 4].

        The least squared Mahalanobis distance to a learned class's mean; the same less that to the mean of all images
        (relative: Ren et al. 2021, arXiv 2106.09022, by classes); the cosine to the nearest class mean, negative; and
        how much better the best prompt of an unknown class fits than the best of a learned one, in logits.

        Args:
            image_ND: theta0's features, float32, L2-normalised.
            unknown_UD: theta0's features of the prompts of the classes that no expert knows, U >= 1.
        """
        nearest_N = self._classes.distances(image_ND).amin(dim=1)
        relative_N = nearest_N - self._background.distances(image_ND)[:, 0]
        cosine_N = (image_ND.double() @ self._mean_KD.T).amax(dim=1)
        prompt_N = self._scale * (self.fit(image_ND, unknown_UD) - self.fit(image_ND, self._text_KD))
        return torch.stack([nearest_N, relative_N, -cosine_N, prompt_N], dim=1)

    @staticmethod
    def fit(image_ND: Tensor, text_UD: Tensor) -> Tensor:
        """The cosine to the nearest prompt, float64 [N]."""
        return (image_ND @ text_UD.T).amax(dim=1).double()


class Novelty:
    """P(new | image), calibrated on learned tasks.

    Args:
        tasks: the learned tasks.
        rule: what it goes by.
        scale: exp(logit_scale) of theta0.
        prior: P(new) of an image beforehand, in (0, 1).
    """

    def __init__(self, tasks: Mapping[str, Known], rule: Rule, scale: float, prior: float) -> None:
        self._columns = RULES[rule]
        self._shift = torch.logit(torch.tensor(prior, dtype=torch.float64))
        self._tasks, self._scale = tasks, scale
        self._evidence = Evidence(tasks, scale)
        self._fitted = _without_held(tasks)
        if self._fitted is None:
            self._columns = ()  # nothing is kept that could tell what usual evidence is: theta0's prompts decide
        self._coefficients = self._learned() if self._columns else None
        self._judge = Evidence(self._fitted, scale) if self._fitted else self._evidence
        self._last: tuple[Tensor, tuple[Tensor, Tensor]] | None = None

    def __call__(self, image_ND: Tensor, unknown_UD: Tensor) -> Tensor:
        """Returns P(new | image), float64 [N].

        Args:
            image_ND: theta0's features, float32, L2-normalised.
            unknown_UD: theta0's features of the prompts of the classes that no expert knows; without any, P is 0.
        """
        if not len(unknown_UD):
            return torch.zeros(len(image_ND), dtype=torch.float64)
        if self._coefficients is None:
            return (self._evidence(image_ND, unknown_UD)[:, 3] > 0).double()
        return torch.sigmoid(self.log_odds(image_ND, unknown_UD) + self._shift)

    def log_odds(self, image_ND: Tensor, unknown_UD: Tensor) -> Tensor:
        """Returns the evidence weighed, before the prior: float64 [N]; of `two-stage`, the prompts' alone."""
        if self._coefficients is None:
            return self._evidence(image_ND, unknown_UD)[:, 3]
        assert self._fitted is not None
        if self._last is None or not torch.equal(self._last[0], unknown_UD):
            self._last = unknown_UD, _usual(self._judge, self._tasks, unknown_UD)
        usual = self._last[1]
        return (
            _standard(self._judge(image_ND, unknown_UD), usual)[:, self._columns] @ self._coefficients[:-1]
            + (self._coefficients[-1])
        )

    def _learned(self) -> Tensor:
        """Learns the weights: each task in turn is new to the others."""
        weight, intercept = USUAL
        prior = torch.tensor([weight] * len(self._columns) + [intercept], dtype=torch.float64)
        assert self._fitted is not None
        rows, labels, weights = [], [], []
        for new in sorted(self._tasks):
            others = {name: known for name, known in self._tasks.items() if name != new}
            feature_HD = self._tasks[new].moments.held_features()
            if not len(feature_HD) or not any(len(known.moments.held) for known in others.values()):
                continue
            judge = Evidence({name: self._fitted[name] for name in others}, self._scale)
            usual = _usual(judge, others, self._tasks[new].text)
            old = torch.cat([known.moments.held_features() for _, known in sorted(others.items())])
            for label, feature in ((0.0, old), (1.0, feature_HD)):
                found = _standard(judge(feature, self._tasks[new].text), usual)[:, self._columns]
                rows.append(found)
                labels.append(torch.full((len(found),), label, dtype=torch.float64))
                weights.append(torch.full((len(found),), 1 / len(found), dtype=torch.float64))
        if not rows:
            return prior
        weight_N = torch.cat(weights)
        return logistic(torch.cat(rows), torch.cat(labels), weight_N / weight_N.sum(), prior, STRENGTH)


def _without_held(tasks: Mapping[str, Known]) -> dict[str, Known] | None:
    left = without_held({name: known.moments for name, known in tasks.items()})
    return {name: Known(left[name], known.text) for name, known in tasks.items()} if left is not None else None


def _usual(judge: Evidence, tasks: Mapping[str, Known], unknown_UD: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of the evidence over the learned tasks' images that are kept out of the sums."""
    parts = [known.moments.held_features() for _, known in sorted(tasks.items())]
    found = judge(torch.cat(parts), unknown_UD)
    return found.mean(dim=0), found.std(dim=0, correction=0).clamp(min=1e-6)


def _standard(evidence_NF: Tensor, usual: tuple[Tensor, Tensor]) -> Tensor:
    return ((evidence_NF - usual[0]) / usual[1]).clamp(-LIMIT, LIMIT)
