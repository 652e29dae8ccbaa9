"""Sequential methods that hold on to a teacher by distillation: LwF, LwF-VR and ZSCL.

The terms are those of ZSCL's public code (github.com/Thunderbeee/ZSCL, mtil/src/models/finetune.py): both models' image
features against the teacher's text features, image-to-text and text-to-image, each the cross entropy of distributions
softened by T, times T^2. Its scripts for LwF and LwF-VR give `--fair`, by which an earlier version of that code mixed
images of ImageNet into every task's own, and which its latest reads nowhere; the published rows are without it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from condu_ray.benchmark.references import load_references
from condu_ray.learn.lesson import Lesson
from condu_ray.learn.objective import Batch, Objective
from condu_ray.learn.teacher import Teacher, both_ways
from condu_ray.methods.registry import register
from condu_ray.methods.sequential import Sequential
from condu_ray.vlm.texts import foreign

_COUNT = "members of the ensemble"


class Distilling(Objective):
    """Cross entropy on the task, and distillation on images that are added to each step.

    Args:
        lesson: the lesson.
        teacher: who teaches.
        prompts: tokens of the prompts that are distilled over.
    """

    def __init__(self, lesson: Lesson, teacher: Teacher, prompts: Tensor) -> None:
        super().__init__(lesson)
        self.options = lesson.config.distillation
        self.teacher = teacher
        self.text_CD = teacher.texts(prompts)
        self._images = torch.empty(0)

    def added(self) -> Tensor:
        """Returns a step's images to distil on, as the model takes them; none for the task's own of the step."""
        raise NotImplementedError

    def inputs(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Appends this step's images to distil on."""
        self._images = self.added()
        images = torch.cat([batch.images, self._images]) if len(self._images) else batch.images
        return images, self.tokens_CL

    def loss(self, batch: Batch, image_BD: Tensor, text_CD: Tensor) -> Tensor:
        """Adds the distillation."""
        own = super().loss(batch, image_BD, text_CD)
        if not len(self._images):
            return own + self.distilled(batch.images, image_BD)
        return own + self.distilled(self._images, image_BD[len(batch.labels) :])

    def distilled(self, images: Tensor, image_BD: Tensor) -> Tensor:
        """`weight` times the distillation, both ways, of images whose current features are `image_BD`."""
        student = self.scale * image_BD @ self.text_CD.T
        teacher = self.scale * self.teacher.images(images) @ self.text_CD.T
        return self.options.weight * both_ways(teacher, student, self.options.temperature)


class Lwf(Distilling):
    """Cross entropy, and distillation from theta_(t-1) on a second batch of the task's images over some prompts.

    Args:
        lesson: the model holds theta_(t-1), which the teacher keeps.
        prompts: tokens of the prompts that are distilled over; None: the task's own.
    """

    def __init__(self, lesson: Lesson, prompts: Tensor | None = None) -> None:
        super().__init__(lesson, Teacher(lesson), lesson.tokens(lesson.task.prompts()) if prompts is None else prompts)
        self._second: Iterator[np.ndarray] | None = None
        if self.options.second_batch:
            assert lesson.second is not None
            self._second = lesson.second(lesson.added_images)

    def added(self) -> Tensor:
        """The second batch, if there is to be one."""
        return torch.empty(0) if self._second is None else self.lesson.images(next(self._second))

    def state(self) -> Mapping[str, Tensor]:
        """Nothing: the second batch is its step's."""
        return {}


class Zscl(Distilling):
    """Distillation from theta0 over reference images and captions, L2 to theta_(t-1), and an ensemble of weights."""

    def __init__(self, lesson: Lesson) -> None:
        assert lesson.references is not None
        super().__init__(lesson, Teacher(lesson, lesson.theta0), lesson.tokens(list(lesson.captions)))
        self._references = lesson.references(lesson.added_images)
        self._before = {name: p.detach().clone() for name, p in lesson.parameters.items()}
        self._ensemble = {name: p.detach().clone() for name, p in lesson.parameters.items()}
        self._count = 0

    def added(self) -> Tensor:
        """This step's reference images."""
        return self.lesson.images(next(self._references))

    def loss(self, batch: Batch, image_BD: Tensor, text_CD: Tensor) -> Tensor:
        """Cross entropy + distillation on the references + l2 * ||theta - theta_(t-1)||^2."""
        distilled = super().loss(batch, image_BD, text_CD)
        distance = sum(
            ((parameter - self._before[name]) ** 2).sum() for name, parameter in self.lesson.parameters.items()
        )
        return distilled + self.options.l2 * distance

    @torch.no_grad()
    def after_step(self, step: int, optimizer: torch.optim.Optimizer) -> None:
        """The weights enter the running mean, which began with theta_(t-1), at the iterations 0, n, 2 n, ...

        The public code counts iterations from 0 and has one more than steps, at the rate 0: its last weights are those
        after the last step.
        """
        every, steps = self.options.ensemble_every, self.lesson.settings.steps
        for _ in range((step % every == 0) + (step + 1 == steps and steps % every == 0)):
            self._count += 1
            for name, parameter in self.lesson.parameters.items():
                mean = self._ensemble[name]
                mean.add_(parameter - mean, alpha=1 / (self._count + 1))

    def state(self) -> Mapping[str, Tensor]:
        """The ensemble, and how many weights are in it."""
        return self._ensemble | {_COUNT: torch.tensor(self._count)}

    @torch.no_grad()
    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Takes the ensemble back."""
        self._count = int(state[_COUNT])
        for name, mean in self._ensemble.items():
            mean.copy_(state[name])

    @torch.no_grad()
    def finish(self) -> None:
        """The ensemble is the expert, but of a training that is over before its second iteration counts."""
        if self._count > 1:
            for name, parameter in self.lesson.parameters.items():
                parameter.copy_(self._ensemble[name])


@register("lwf", "Learning without forgetting, Li and Hoiem, ECCV 2016, arxiv.org/abs/1606.09282")
class LearningWithoutForgetting(Sequential):
    """Distils from theta_(t-1) on the current images over the current classes.

    From the paper: the teacher and its task. From ZSCL's script: both directions, T = 2, and that the images are
    a second batch without augmentation (`distillation.second_batch`; the paper has one batch).
    """

    @property
    def adds_images(self) -> bool:
        """By the setting."""
        return self.config.distillation.second_batch

    def expert_settings(self, position: int) -> dict[str, Any]:
        """The teacher's temperature and weight, and how many images it sees beside the step's."""
        found = {"objective": self.name} | self.config.distillation.identity(include={"temperature", "weight"})
        second = {"second_batch": self.config.distillation.batch_size}
        return found | (second if self.config.distillation.second_batch else {})

    def objective(self, lesson: Lesson) -> Objective:
        """Over the task's own prompts."""
        return Lwf(lesson)


@register("lwf-vr", "LwF-VR, Ding et al., 2022, arxiv.org/abs/2207.09248")
class RandomVocabulary(LearningWithoutForgetting):
    """LwF over prompts of random tokens, which stand for classes that are not known.

    From the paper: random vocabulary in place of old classes. From ZSCL's script: as for LwF.
    """

    draws_words = True

    def expert_settings(self, position: int) -> dict[str, Any]:
        """And the size of the vocabulary."""
        options = self.config.distillation.identity(include={"vocabulary", "vocabulary_length"})
        return super().expert_settings(position) | options

    def objective(self, lesson: Lesson) -> Objective:
        """Over prompts drawn by the run's seed."""
        options = self.config.distillation
        return Lwf(lesson, random_prompts(lesson, options.vocabulary, options.vocabulary_length))


@register("zscl", "ZSCL, Zheng et al., ICCV 2023, arxiv.org/abs/2303.06628")
class ZeroShotContinual(Sequential):
    """Distils from theta0 on reference images and texts, stays near theta_(t-1), and serves an ensemble of weights.

    From the paper: the three parts. From its code: the ensemble's members (the start and the weights at iterations
    0, 100, ..., 1000), every caption in every step (`distillation.max_captions 0`), T = 2, all factors 1.
    """

    needs = frozenset({"reference"})
    adds_images = True

    def expert_settings(self, position: int) -> dict[str, Any]:
        """All of its options, and the references' content."""
        kept = {"temperature", "weight", "max_captions", "batch_size", "ensemble_every", "l2"}
        references = load_references(self.config.distillation).fingerprint
        found = {"objective": self.name, "ensemble": "start, 0, every", "references": references}
        return found | self.config.distillation.identity(include=kept)

    def objective(self, lesson: Lesson) -> Objective:
        """Over the reference captions."""
        return Zscl(lesson)


def random_prompts(lesson: Lesson, count: int, length: int) -> Tensor:
    """Returns prompts of random tokens in the form of the tokenizer's, int64 [count, context length], on the device.

    As ZSCL's public code draws them (`virtual_vocab`): uniform over the tokenizer's vocabulary, by the run's seed.
    """
    tokenizer = lesson.backbone.tokenizer
    empty, word = tokenizer([""])[0], tokenizer(["a"])[0]
    first = int((empty != word).int().argmax())  # behind what begins a prompt, if anything does
    padding = (empty == empty.mode().values).nonzero().flatten()
    # Where padding itself ends a prompt (SigLIP, CLIPA) one of it stays.
    length = min(length, len(padding) - int(empty[first] == empty[padding[0]]))
    rest = empty[torch.isin(torch.arange(len(empty)), padding[len(padding) - length :], invert=True)]
    drawn = _words(tokenizer, empty)
    generator = torch.Generator().manual_seed(lesson.seed)
    places = torch.randint(0, len(drawn), (count, length), generator=generator)
    around = [part.expand(count, -1) for part in (rest[:first], rest[first:])]
    return torch.cat([around[0], drawn[places], around[1]], dim=1).to(lesson.device)


def _words(tokenizer: Any, empty: Tensor) -> Tensor:
    """Tokens that a text may have within: an end in the middle would cut a prompt short."""
    if foreign(tokenizer):  # which says what its special tokens are
        inner = getattr(tokenizer, "tokenizer", tokenizer)
        return torch.tensor(sorted(set(inner.get_vocab().values()) - set(inner.all_special_ids)))
    return torch.arange(int(empty[:2].min()))  # start and end are the two last of open_clip's own vocabulary
