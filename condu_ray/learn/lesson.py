"""A lesson: one task to be learned, and everything that an objective may work with."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from condu_ray.benchmark import Task
from condu_ray.config import Experiment, Training
from condu_ray.merging.delta import Delta
from condu_ray.vlm.inputs import normalise, on_device
from condu_ray.vlm.model import Backbone


@dataclass(frozen=True)
class Exemplars:
    """Images that were kept of an earlier task: pixels uint8 [n, H, W, 3], labels int64 [n], its prompts."""

    task: str
    prompts: tuple[str, ...]
    pixels: np.ndarray
    labels: np.ndarray


@dataclass(frozen=True)
class Lesson:
    """One task to be learned.

    Attributes:
        task: the task.
        position: 0-based place in the order of learning.
        backbone: the model, at the weights that training starts from; its live parameters are what is trained.
        theta0: the pretrained weights by name, on the CPU.
        parameters: what the optimizer trains: the backbone's trainable parameters, or the factors of an adapter.
        begin: steps that were taken before, where the training goes on from a checkpoint.
        start: the merged adapter that training started from, for methods that start from their state; else None.
        settings: hyperparameters of this method's training.
        config: the run's configuration.
        precision: `fp32` or `bf16`.
        seed: the run's seed.
        rank, world: this worker among those of the expert.
        exemplars: what earlier tasks kept, for methods that declare exemplars.
        references: opens the stream of reference images, for methods that need them: batches of pixels uint8
            [b, H, W, 3] of a given size.
        second: opens another stream of the task's own training images, without augmentation, alike.
        captions: reference texts.
        training_images: opens the task's own training images, without augmentation: pixels and labels by batch.
    """

    task: Task
    position: int
    backbone: Backbone
    theta0: Mapping[str, Tensor]
    parameters: Mapping[str, nn.Parameter]
    settings: Training
    config: Experiment
    precision: str
    seed: int
    begin: int = 0
    start: Delta | None = None
    rank: int = 0
    world: int = 1
    exemplars: tuple[Exemplars, ...] = ()
    references: Callable[[int], Iterator[np.ndarray]] | None = None
    second: Callable[[int], Iterator[np.ndarray]] | None = None
    captions: tuple[str, ...] = ()
    training_images: Callable[[], Iterator[tuple[np.ndarray, np.ndarray]]] = field(default=lambda: iter(()))

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(iter(self.parameters.values())).device

    @property
    def added_images(self) -> int:
        """Images that a distilling method adds to this worker's share of a step; one alone is told from nothing."""
        return max(2, (self.config.distillation.batch_size or self.settings.batch_size) // self.world)

    def tokens(self, prompts: list[str]) -> Tensor:
        """Returns the tokens of prompts, int64 [C, L], on the device."""
        return self.backbone.tokenizer(prompts).to(self.device)

    def images(self, pixels: np.ndarray) -> Tensor:
        """Returns pixels, uint8 [b, H, W, 3], as the model takes them: [b, 3, H, W] of its dtype, normalised."""
        normalised = normalise(on_device(pixels, self.device), self.backbone.spec.preprocess)
        return normalised.to(next(iter(self.parameters.values())).dtype)
