"""Rehearsal: some images of every class of earlier tasks are kept, learned again and distilled on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from condu_ray.learn.exemplars import exemplars_of
from condu_ray.learn.lesson import Lesson
from condu_ray.learn.objective import Batch, Objective, classification_loss
from condu_ray.learn.teacher import Teacher, both_ways
from condu_ray.methods.registry import register
from condu_ray.methods.sequential import Sequential
from condu_ray.vlm.inputs import on_device


class Rehearsal(Objective):
    """Cross entropy on the task; on a batch of exemplars, cross entropy and distillation from theta_(t-1).

    Each step takes its exemplars from one earlier task, drawn by the seed, with that task's class prompts: labels stay
    within tasks, as they are in MTIL.

    Args:
        lesson: with the exemplars of earlier tasks.
    """

    def __init__(self, lesson: Lesson) -> None:
        super().__init__(lesson)
        self.options = lesson.config.distillation
        self._size = lesson.added_images
        self._draw = np.random.default_rng([lesson.seed, lesson.position, lesson.rank])
        tokens = [lesson.tokens(list(kept.prompts)) for kept in lesson.exemplars]
        self._tokens = [torch.cat([self.tokens_CL, kept_CL]) for kept_CL in tokens]
        self._images, self._label_B, self._from = torch.empty(0), torch.empty(0), 0
        if lesson.exemplars:
            self.teacher = Teacher(lesson)
            self._texts = [self.teacher.texts(kept_CL) for kept_CL in tokens]
            for _ in range(lesson.begin):
                self._drawn()

    def _drawn(self) -> tuple[int, np.ndarray]:
        """Returns a step's earlier task, and the rows of its exemplars."""
        task = int(self._draw.integers(len(self.lesson.exemplars)))
        count = len(self.lesson.exemplars[task].labels)
        return task, self._draw.choice(count, size=min(self._size, count), replace=False)

    def inputs(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Appends exemplars of one earlier task, and its prompts."""
        if not self.lesson.exemplars:
            return super().inputs(batch)
        self._from, rows = self._drawn()
        kept = self.lesson.exemplars[self._from]
        self._images = self.lesson.images(kept.pixels[rows])
        self._label_B = on_device(kept.labels[rows], self.lesson.device)
        return torch.cat([batch.images, self._images]), self._tokens[self._from]

    def loss(self, batch: Batch, image_BD: Tensor, text_CD: Tensor) -> Tensor:
        """Adds the exemplars' two terms."""
        own = super().loss(batch, image_BD, text_CD)
        if not self.lesson.exemplars:
            return own
        kept_BD, kept_CD = image_BD[len(batch.labels) :], text_CD[len(self.tokens_CL) :]
        rehearsed = classification_loss(
            self.scale * kept_BD @ kept_CD.T, self._label_B, self.lesson.settings.label_smoothing
        )
        fixed_CD = self._texts[self._from]
        teacher = self.scale * self.teacher.images(self._images) @ fixed_CD.T
        student = self.scale * kept_BD @ fixed_CD.T
        return own + rehearsed + self.options.weight * both_ways(teacher, student, self.options.temperature)

    def state(self) -> Mapping[str, Tensor]:
        """Nothing: the draws are the steps'."""
        return {}

    def files(self) -> Mapping[str, Callable[[Path], None]]:
        """Chooses this task's exemplars by the trained model's features, and has them stored beside the expert."""
        return exemplars_of(self.lesson, self.lesson.config.replay.per_class, by_class=True)


@register("rehearsal", "rehearsal of exemplars by herding, after iCaRL, Rebuffi et al., 2017, arxiv.org/abs/1611.07725")
class Rehearsing(Sequential):
    """Sequential, with exemplars a class by herding that are trained on and distilled on.

    From iCaRL's paper: herding by class, and that exemplars are both learned and distilled on. CLIP's class prompts
    stand in for its classifier of nearest means. What ZSCL calls iCaRL is the method `icarl`.
    """

    needs = frozenset({"exemplars"})
    adds_images = True

    def expert_settings(self, position: int) -> dict[str, Any]:
        """The exemplars' number, and how they are used."""
        options = self.config.distillation.identity(include={"batch_size", "temperature", "weight"})
        # Experts that were trained when this method was called icarl are its own.
        return {"objective": "icarl"} | options | self.config.replay.identity(include={"per_class"})

    def objective(self, lesson: Lesson) -> Objective:
        """Rehearsal; the first task has nothing to rehearse but chooses its exemplars."""
        return Rehearsal(lesson)
