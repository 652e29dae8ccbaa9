"""What ConDU costs beside accuracy: bytes by counting, seconds of the aggregated prediction by measuring."""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from condu_ray.benchmark import Task
from condu_ray.learn.evaluate import Evaluator
from condu_ray.learn.features import PRETRAINED, Weights
from condu_ray.learn.loop import compute_context
from condu_ray.merging.delta import Delta
from condu_ray.merging.trigger import trigger_bytes
from condu_ray.vlm import router
from condu_ray.vlm.inputs import normalise
from condu_ray.vlm.model import Backbone, set_weights
from condu_ray.vlm.zeroshot import image_features

TASKS = (1, 2, 5, 10, 20, 50, 100)
"""Numbers of tasks in the table of storage."""
_SCALARS = 8 + 8
"""A task's rescaler and norm, float64."""


@dataclass(frozen=True)
class Footprint:
    """Bytes of T tasks' experts, counted.

    Attributes:
        delta: one expert's delta; the unified delta has as many.
        trigger: what one more task adds: a bit a parameter (each tensor rounded up to a byte), rescaler and norm.
        model: a whole model: all parameters and buffers.
    """

    delta: int
    trigger: int
    model: int

    @classmethod
    def of(cls, delta: Delta, model: torch.nn.Module) -> Footprint:
        """Counts from one delta and its model."""
        return cls(
            sum(tensor.nbytes for tensor in delta.values()),
            sum(trigger_bytes(tensor.numel()) for tensor in delta.values()) + _SCALARS,
            sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers())),
        )

    def unified(self, tasks: int) -> int:
        """Bytes of a unified delta with triggers: what `UnifiedDelta.nbytes` is."""
        return self.delta + tasks * self.trigger

    def experts(self, tasks: int) -> int:
        """Bytes of T experts' deltas."""
        return tasks * self.delta

    def table(self, tasks: Sequence[int] = TASKS) -> list[dict[str, Any]]:
        """Returns a dict for each number of tasks: `tasks`, `unified`, `experts` (bytes) and `share` of the latter."""
        return [
            {"tasks": t, "unified": self.unified(t), "experts": self.experts(t)}
            | {"share": self.unified(t) / self.experts(t)}
            for t in tasks
        ]

    def held(self, experts: int) -> tuple[int, int]:
        """Bytes beside theta0's model of what answers by K experts.

        Returns:
            (unified delta, K triggers, and one working model into which experts are put in turn; K whole models).
        """
        return self.unified(experts) + self.model, experts * self.model


@torch.no_grad()
def aggregation_cost(
    evaluator: Evaluator, task: Task, experts: Sequence[Weights], prototypes: Sequence[Tensor], repeats: int = 3
) -> list[dict[str, Any]]:
    """Measures images a second of the prediction by theta0 and K experts, nothing kept but the class features.

    In a pass over a batch theta0 encodes the images and routes them; then one expert after another encodes the whole
    batch and adds its logits. The seconds up to the K-th are those of K experts. `swapped` puts each expert together
    (theta0 + lambda * mask * u) into one working model at its turn; `held` leaves that out, as if K whole models lay in
    memory (the working model then encodes K times: its weights do not count for the time).

    Args:
        evaluator: whose backbone, device, precision and batch size. It is not changed.
        task: first test images of this task.
        experts: T experts.
        prototypes: theirs, [C, D] each.
        repeats: passes, of which the medians are taken, after one that does not count.

    Returns:
        A dict for each K = 1..T: `experts`, `batch` (images), `swapped` and `held` (images a second), and
        `swapped_latency` and `held_latency` (seconds of a batch of one image).
    """
    features = evaluator.features
    pixels, _ = next(iter(features.decoded.batches(task)))
    images = normalise(torch.from_numpy(pixels).to(features.device), features.backbone.spec.preprocess)
    texts = [features.text(weights, task).to(features.device) for weights in (PRETRAINED, *experts)]
    base, working = _copy(features.backbone), _copy(features.backbone)
    for model in (base, working):
        set_weights(model, features.theta0, None)
    known = [each.to(features.device) for each in prototypes]

    def run_through(images_BCHW: Tensor, place: Callable[[Weights], None]) -> list[float]:
        begin, seconds = _now(features.device), []
        image_BD = image_features(base.model, images_BCHW)  # fp32, as routing wants it
        weight_BE = router.similarities(image_BD, known)
        total_BC = image_BD @ texts[0].T
        for index, (weights, text_CD) in enumerate(zip(experts, texts[1:], strict=True)):
            place(weights)
            with compute_context(features.device, features.precision):
                image_BD = image_features(working.model, images_BCHW)
            total_BC += weight_BE[:, index, None] * (image_BD @ text_CD.T)
            total_BC.argmax(dim=1)
            seconds.append(_now(features.device) - begin)
        return seconds

    def medians(images_BCHW: Tensor, place: Callable[[Weights], None]) -> list[float]:
        passes = [run_through(images_BCHW, place) for _ in range(repeats + 1)][1:]
        return [statistics.median(found) for found in zip(*passes, strict=True)]

    def swap(weights: Weights) -> None:
        set_weights(working, features.theta0, weights.delta())

    measured = [medians(batch, place) for batch in (images, images[:1]) for place in (swap, lambda weights: None)]
    return [
        {"experts": index + 1, "batch": len(images), "swapped": len(images) / swapped, "held": len(images) / held}
        | {"swapped_latency": swapped_one, "held_latency": held_one}
        for index, (swapped, held, swapped_one, held_one) in enumerate(zip(*measured, strict=True))
    ]


def _copy(backbone: Backbone) -> Backbone:
    return replace(backbone, model=copy.deepcopy(backbone.model))


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
