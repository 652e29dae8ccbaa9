"""Learning from a teacher: a frozen copy of the model, and the softened cross entropy between its logits and ours."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional

from condu_ray.learn.lesson import Lesson
from condu_ray.vlm.context import cut, encode_text
from condu_ray.vlm.zeroshot import wide


def distillation_loss(teacher: Tensor, student: Tensor, temperature: float) -> Tensor:
    """T^2 * cross entropy of softmax(teacher / T) and softmax(student / T), mean over rows (Hinton et al. 2015).

    Args:
        teacher: logits [N, C], no gradient.
        student: logits [N, C].
        temperature: T > 0.
    """
    target = functional.softmax(teacher / temperature, dim=1)
    return functional.cross_entropy(student / temperature, target) * temperature**2


def both_ways(teacher_NC: Tensor, student_NC: Tensor, temperature: float) -> Tensor:
    """The sum of the image-to-text term (rows) and the text-to-image term (columns), as ZSCL's public code has it."""
    return distillation_loss(teacher_NC, student_NC, temperature) + distillation_loss(
        teacher_NC.T, student_NC.T, temperature
    )


class Teacher:
    """A frozen copy of a lesson's model.

    Args:
        lesson: its model is copied as it is now.
        weights: other weights for the copy by parameter name, such as theta0; None keeps those of the lesson.
    """

    def __init__(self, lesson: Lesson, weights: Mapping[str, Tensor] | None = None) -> None:
        self.model = copy.deepcopy(lesson.backbone.model).requires_grad_(False).eval()
        self.scale = wide(self.model.logit_scale.detach().exp())
        if weights is not None:
            named = dict(self.model.named_parameters())
            for name, tensor in weights.items():
                named[name].copy_(tensor)

    @torch.no_grad()
    def images(self, images_BCHW: Tensor) -> Tensor:
        """Returns L2-normalised features [B, D] float32."""
        return wide(self.model.encode_image(images_BCHW, normalize=True))

    @torch.no_grad()
    def texts(self, tokens_CL: Tensor, batch_size: int = 256) -> Tensor:
        """Returns L2-normalised features [C, D] float32."""
        parts = [wide(encode_text(self.model, cut(self.model, part))) for part in tokens_CL.split(batch_size)]
        return torch.cat(parts)
