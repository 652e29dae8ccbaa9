"""Objectives of fine-tuning: what goes through the model in a step, and the loss.

The plain objective is cross entropy against the class prompts. A method that adds to it subclasses `Objective` in its
own file: `inputs` may append images or prompts to the step's one forward pass, `loss` uses their features, `after_step`
may touch parameters and optimizer, `finish` and `files` say what remains.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

from condu_ray.learn.draws import Draws
from condu_ray.learn.lesson import Lesson
from condu_ray.learn.sharing import encode_shared
from condu_ray.vlm.context import Cut, encode_text
from condu_ray.vlm.zeroshot import wide

if TYPE_CHECKING:
    from open_clip import CLIP


class ClipClassifier(nn.Module):
    """A CLIP model that encodes images and prompts in one forward pass.

    One module with one forward, so that DistributedDataParallel sees every parameter that is used.

    Attributes:
        shared: tokens that all workers of the expert have alike in every step: each encodes a part of them.
        draws: what the prompts' pass of `forward` draws; None: what comes next.
    """

    def __init__(self, model: CLIP) -> None:
        super().__init__()
        self.model: CLIP = model
        self.shared: Tensor | None = None
        self.draws: Draws | None = None
        self._cut = Cut(model)

    def forward(self, images_BCHW: Tensor, tokens_CL: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the L2-normalised features of images [B, D] and prompts [C, D], float32 (or a model's float64)."""
        image_BD = self.images(images_BCHW)
        with self.draws.again() if self.draws else nullcontext():
            return image_BD, self.texts(tokens_CL)

    def images(self, images_BCHW: Tensor) -> Tensor:
        """Returns the L2-normalised features of images [B, D]."""
        return wide(self.model.encode_image(images_BCHW, normalize=True))

    def texts(self, tokens_CL: Tensor) -> Tensor:
        """Returns the L2-normalised features of prompts [C, D]."""
        cut_CL, encode = self._cut(tokens_CL), partial(encode_text, self.model)
        return wide(encode_shared(encode, cut_CL) if tokens_CL is self.shared else encode(cut_CL))


@dataclass(frozen=True)
class Batch:
    """One step's share of the task's stream: `images` [B, 3, H, W] normalised, `labels` int64 [B], 0-based `step`."""

    step: int
    images: Tensor
    labels: Tensor

    def parts(self, count: int) -> list[Batch]:
        """Returns it in `count` equal parts, in order."""
        split = zip(self.images.chunk(count), self.labels.chunk(count), strict=True)
        return [Batch(self.step, images, labels) for images, labels in split]


def classification_loss(logits_BC: Tensor, label_B: Tensor, label_smoothing: float) -> Tensor:
    """Cross entropy with label smoothing; a scalar."""
    return functional.cross_entropy(logits_BC, label_B, label_smoothing=label_smoothing)


class Objective:
    """Plain fine-tuning: cross entropy of exp(logit_scale) * cos(image, class prompt).

    Args:
        lesson: what training works with; the model holds the weights that training starts from.
    """

    def __init__(self, lesson: Lesson) -> None:
        self.lesson = lesson
        self.tokens_CL = lesson.tokens(lesson.task.prompts())
        self.scale = lesson.backbone.model.logit_scale.detach().exp().to(lesson.device)

    def inputs(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Returns the images and the tokens of this step's forward pass, the task's own first."""
        return batch.images, self.tokens_CL

    def loss(self, batch: Batch, image_BD: Tensor, text_CD: Tensor) -> Tensor:
        """Returns the step's loss, a scalar, from the features of what `inputs` returned."""
        own_BD, own_CD = image_BD[: len(batch.labels)], text_CD[: len(self.tokens_CL)]
        return classification_loss(self.scale * own_BD @ own_CD.T, batch.labels, self.lesson.settings.label_smoothing)

    def after_step(self, step: int, optimizer: torch.optim.Optimizer) -> None:
        """Called after the optimizer's 0-based `step`."""

    def state(self) -> Mapping[str, Tensor]:
        """Returns what later steps depend on beside parameters, optimizer and `lesson.begin`, for a checkpoint.

        A class that does not define this itself is begun anew where its training was lost. One that does has its own
        streams and draws begin at step `lesson.begin`.
        """
        return {}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Takes back what `state` returned after `lesson.begin` steps, on the lesson's device."""

    def finish(self) -> None:
        """Called after the last step, before the expert is read from the model."""

    def files(self) -> Mapping[str, Callable[[Path], None]]:
        """Returns what the expert's artifact holds beside the delta: file name to a function that writes it."""
        return {}
