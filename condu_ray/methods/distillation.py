"""Sequential methods that hold on to a teacher by distillation: LwF, LwF-VR and ZSCL.

The terms are those of ZSCL's public code (github.com/Thunderbeee/ZSCL, mtil/src/models/finetune.py): both models' image
features against the teacher's text features, image-to-text and text-to-image.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from condu_ray.benchmark.references import load_references
from condu_ray.learn.lesson import Lesson
from condu_ray.learn.objective import Batch, Objective
from condu_ray.learn.teacher import Teacher, both_ways
from condu_ray.methods.registry import register
from condu_ray.methods.sequential import Sequential


class Lwf(Objective):
    """Cross entropy, and distillation from theta_(t-1) on the step's own images over some prompts.

    Args:
        lesson: the model holds theta_(t-1), which the teacher keeps.
        prompts: tokens of the prompts that are distilled over; None: the task's own.
    """

    def __init__(self, lesson: Lesson, prompts: Tensor | None = None) -> None:
        super().__init__(lesson)
        self.options = lesson.config.distillation
        self.teacher = Teacher(lesson)
        self.text_CD = self.teacher.texts(self.tokens_CL if prompts is None else prompts)

    def loss(self, batch: Batch, image_BD: Tensor, text_CD: Tensor) -> Tensor:
        """Adds `weight` times the distillation of the image's distribution over prompts, both ways."""
        return super().loss(batch, image_BD, text_CD) + self.distilled(batch.images, image_BD)

    def distilled(self, images: Tensor, image_BD: Tensor) -> Tensor:
        """The distillation terms of images whose current features are `image_BD`."""
        student = self.scale * image_BD @ self.text_CD.T
        teacher = self.scale * self.teacher.images(images) @ self.text_CD.T
        return self.options.weight * both_ways(teacher, student, self.options.temperature)


class Zscl(Lwf):
    """Distillation from theta0 over reference images and captions, L2 to theta_(t-1), and an ensemble of weights."""

    def __init__(self, lesson: Lesson) -> None:
        assert lesson.references is not None
        Objective.__init__(self, lesson)
        self.options = lesson.config.distillation
        self.teacher = Teacher(lesson, lesson.theta0)
        self.text_CD = self.teacher.texts(lesson.tokens(list(lesson.captions)))
        size = self.options.batch_size or lesson.settings.batch_size
        self._references = lesson.references(max(2, size // lesson.world))
        self._before = {name: p.detach().clone() for name, p in lesson.parameters.items()}
        self._ensemble = {name: p.detach().clone() for name, p in lesson.parameters.items()}
        self._count = 0
        self._images = torch.empty(0)

    def inputs(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Appends this step's reference images."""
        self._images = self.lesson.images(next(self._references))
        return torch.cat([batch.images, self._images]), self.tokens_CL

    def loss(self, batch: Batch, image_BD: Tensor, text_CD: Tensor) -> Tensor:
        """Cross entropy + distillation on the references + l2 * ||theta - theta_(t-1)||^2."""
        own = Objective.loss(self, batch, image_BD, text_CD)
        distance = sum(
            ((parameter - self._before[name]) ** 2).sum() for name, parameter in self.lesson.parameters.items()
        )
        return own + self.distilled(self._images, image_BD[len(batch.labels) :]) + self.options.l2 * distance

    @torch.no_grad()
    def after_step(self, step: int, optimizer: torch.optim.Optimizer) -> None:
        """Every `ensemble_every` steps the weights enter the running mean, which began with theta_(t-1)."""
        if (step + 1) % self.options.ensemble_every == 0:
            self._count += 1
            for name, parameter in self.lesson.parameters.items():
                mean = self._ensemble[name]
                mean.add_(parameter - mean, alpha=1 / (self._count + 1))

    @torch.no_grad()
    def finish(self) -> None:
        """The ensemble is the expert."""
        if self._count:
            for name, parameter in self.lesson.parameters.items():
                parameter.copy_(self._ensemble[name])


@register("lwf", "Learning without forgetting, Li and Hoiem, ECCV 2016, arxiv.org/abs/1606.09282")
class LearningWithoutForgetting(Sequential):
    """Distils from theta_(t-1) on the current images over the current classes."""

    def expert_settings(self, position: int) -> dict[str, Any]:
        """The teacher's temperature and weight."""
        return {"objective": self.name} | self.config.distillation.identity(include={"temperature", "weight"})

    def objective(self, lesson: Lesson) -> Objective:
        """Over the task's own prompts."""
        return Lwf(lesson)


@register("lwf-vr", "LwF-VR, Ding et al., 2022, arxiv.org/abs/2207.09248")
class RandomVocabulary(LearningWithoutForgetting):
    """LwF over prompts of random tokens, which stand for classes that are not known."""

    def expert_settings(self, position: int) -> dict[str, Any]:
        """And the size of the vocabulary."""
        options = self.config.distillation.identity(include={"vocabulary", "vocabulary_length"})
        return super().expert_settings(position) | options

    def objective(self, lesson: Lesson) -> Objective:
        """Over prompts drawn by the run's seed."""
        options = self.config.distillation
        return Lwf(lesson, random_prompts(lesson, options.vocabulary, options.vocabulary_length))


@register("zscl", "ZSCL, Zheng et al., ICCV 2023, arxiv.org/abs/2303.06628")
class ZeroShotContinual(LearningWithoutForgetting):
    """Distils from theta0 on reference images and texts, stays near theta_(t-1), and serves an ensemble of weights."""

    needs = frozenset({"reference"})

    def expert_settings(self, position: int) -> dict[str, Any]:
        """All of its options, and the references' content."""
        kept = {"max_captions", "batch_size", "ensemble_every", "l2"}
        references = load_references(self.config.distillation).fingerprint
        found = super().expert_settings(position) | self.config.distillation.identity(include=kept)
        return found | {"references": references}

    def objective(self, lesson: Lesson) -> Objective:
        """Over the reference captions."""
        return Zscl(lesson)


def random_prompts(lesson: Lesson, count: int, length: int) -> Tensor:
    """Returns prompts of random tokens between start and end, int64 [count, context length], on the device.

    As ZSCL's public code draws them (`virtual_vocab`): uniform over the tokenizer's vocabulary, by the run's seed.
    """
    empty = lesson.backbone.tokenizer([""])[0]
    start, end = int(empty[0]), int(empty[1])
    context = len(empty)
    length = min(length, context - 2)
    generator = torch.Generator().manual_seed(lesson.seed)
    tokens = torch.zeros(count, context, dtype=torch.long)
    # Start and end are the two last of the vocabulary; an end in the middle would cut the prompt short.
    tokens[:, 1 : length + 1] = torch.randint(0, min(start, end), (count, length), generator=generator)
    tokens[:, 0], tokens[:, length + 1] = start, end
    return tokens.to(lesson.device)
