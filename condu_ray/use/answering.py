"""Who answers for pictures: one model's weights, or the experts that the router finds, as the evaluators have it."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from condu_ray.benchmark.label_space import Labels
from condu_ray.learn.evaluate import Mixed, mix
from condu_ray.learn.features import PRETRAINED, Features, Weights
from condu_ray.options import Inference
from condu_ray.use.prediction import THETA0
from condu_ray.use.served import Served, UseError
from condu_ray.vlm import router

ROUTED_BY = frozenset({
    "aggregation", "top_k", "include_pretrained", "pretrained_weight", "prototypes", "prototype_images",
    "prototype_text",
})  # fmt: skip
"""Options of `Inference` that a prediction here heeds."""


def check_router(inference: Inference) -> None:
    """Refuses a run whose evaluators route by an option that is not heeded here, for answers would silently differ.

    Raises:
        UseError: names the option.
    """
    for name, field in type(inference).model_fields.items():
        if name not in ROUTED_BY and getattr(inference, name) != field.default:
            raise UseError(
                f"--inference.{name} {getattr(inference, name)}: pictures of an unknown task are not predicted by it "
                "here yet; name the task"
            )


@dataclass(frozen=True)
class Answer:
    """What was found of N pictures.

    Attributes:
        scores: over the columns of the label space, [N, C].
        factor: makes logits of them.
        mixed: who answered, where the router chose.
    """

    scores: Tensor
    factor: float
    mixed: Mixed | None


class Answering:
    """One backbone, whose weights are swapped in place; prototypes and experts are loaded when they are wanted.

    Args:
        served: what answers.
        device: where to compute.
        batch_size: images a forward pass.
    """

    def __init__(self, served: Served, device: str, batch_size: int) -> None:
        self.served, self.batch_size = served.to(device), batch_size
        self.features = Features(
            served.backbone, batch_size=batch_size, max_images=0, precision=served.precision, device=device
        )
        if device != "cpu":  # a switch of experts is then a copy on the device
            self.features.theta0 = {name: tensor.to(device) for name, tensor in self.features.theta0.items()}
        self.lock = threading.RLock()
        self._scale = float(served.backbone.model.logit_scale.detach().exp())
        self._prototypes: dict[str, Tensor] = {}

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks that are learned, in order."""
        return self.served.state.tasks

    def encode(
        self, weights: Weights, pixels_NHWC: np.ndarray, wanted_N: Tensor | None = None, precision: str | None = None
    ) -> Tensor:
        """Features of the pictures that are wanted, by the same batches as an evaluator's."""
        parts = []
        for start in range(0, len(pixels_NHWC), self.batch_size):
            batch = pixels_NHWC[start : start + self.batch_size]
            chosen = batch if wanted_N is None else batch[wanted_N[start : start + self.batch_size].numpy()]
            if len(chosen):
                parts.append(self.features.encode(weights, chosen, precision))
        return torch.cat(parts)

    def _texts(self, weights: Weights, space: Sequence[Labels], precision: str | None = None) -> Tensor:
        return torch.cat([self.features.text(weights, labels, precision) for labels in space])

    @torch.no_grad()
    def scores(self, weights: Weights | None, space: Sequence[Labels], pixels_NHWC: np.ndarray) -> Answer:
        """Returns scores over the classes of `space`; None as weights: the router finds experts picture by picture."""
        with self.lock:
            if weights is not None:
                image_ND = self.encode(weights, pixels_NHWC)
                return Answer(image_ND @ self._texts(weights, space).T, self._scale, None)
            base_ND = self.encode(PRETRAINED, pixels_NHWC, precision="fp32")

            def logits(expert: int, wanted_N: Tensor) -> Tensor:
                if expert == router.PRETRAINED:
                    answering, precision, image_WD = PRETRAINED, "fp32", base_ND[wanted_N]
                else:
                    answering, precision = self.served.weights(self.tasks[expert]), None
                    image_WD = self.encode(answering, pixels_NHWC, wanted_N)
                return self._scale * image_WD @ self._texts(answering, space, precision).T

            for task in self.tasks:
                if task not in self._prototypes:
                    self._prototypes[task] = self.served.prototypes(task)
            similarity_NE = router.similarities(base_ND, [self._prototypes[task] for task in self.tasks])
            mixed = mix(similarity_NE, self.served.method.config.inference, logits)
            return Answer(mixed.logits, 1.0, mixed)

    def experts(self, mixed: Mixed, row: int) -> dict[str, float]:
        """Returns who answered for a picture, and how much each counted."""
        found: dict[str, float] = {}
        for expert, weight in zip(mixed.experts[row].tolist(), mixed.weights[row].tolist(), strict=True):
            name = THETA0 if expert == router.PRETRAINED else self.tasks[expert]
            found[name] = found.get(name, 0.0) + weight
        return found
