"""iCaRL as ZSCL has it: images of earlier data sets are kept, and theta0 is distilled on them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from condu_ray.learn.exemplars import exemplars_of
from condu_ray.learn.lesson import Lesson
from condu_ray.learn.objective import Objective
from condu_ray.learn.teacher import Teacher
from condu_ray.methods.distillation import Distilling
from condu_ray.methods.registry import register
from condu_ray.methods.sequential import Sequential


class Memory(Distilling):
    """Cross entropy on the task; on images of earlier data sets, distillation from theta0 over the task's prompts.

    Args:
        lesson: with the exemplars of earlier tasks, as many of each as its share of the memory, the first ones that
            herding chose.
    """

    def __init__(self, lesson: Lesson) -> None:
        super().__init__(lesson, Teacher(lesson, lesson.theta0), lesson.tokens(lesson.task.prompts()))
        self._draw = np.random.default_rng([lesson.seed, lesson.position, lesson.rank])
        most = share(lesson.config.replay.memory, len(lesson.exemplars))
        self._kept = [kept.pixels[:most] for kept in lesson.exemplars]
        self._places = [(task, row) for task, pixels in enumerate(self._kept) for row in range(len(pixels))]

        for _ in range(lesson.begin):
            self._drawn()

    def _drawn(self) -> np.ndarray:
        """Returns the places of a step's exemplars in the memory."""
        count = min(self.lesson.added_images, len(self._places))
        return self._draw.choice(len(self._places), size=count, replace=False)

    def added(self) -> Tensor:
        """Exemplars, drawn from the whole memory."""
        places = (self._places[place] for place in self._drawn())
        return self.lesson.images(np.stack([self._kept[task][row] for task, row in places]))

    def state(self) -> Mapping[str, Tensor]:
        """Nothing: the draws are the steps'."""
        return {}

    def files(self) -> Mapping[str, Callable[[Path], None]]:
        """Chooses this task's exemplars: as many as the next task may want."""
        most = share(self.lesson.config.replay.memory, self.lesson.position + 1)
        return exemplars_of(self.lesson, most, by_class=False)


class First(Objective):
    """The first task: nothing is distilled on, but exemplars are chosen."""

    files = Memory.files

    def state(self) -> Mapping[str, Tensor]:
        """Nothing."""
        return {}


def share(memory: int, tasks: int) -> int:
    """Returns how many images each of some data sets has in a memory; at least one."""
    return max(1, memory // max(1, tasks))


@register("icarl", "iCaRL, Rebuffi et al., CVPR 2017, arxiv.org/abs/1611.07725, as ZSCL's baseline")
class Icarl(Sequential):
    """Sequential, with a memory of earlier data sets' images on which theta0 is distilled.

    From ZSCL's public code, whose row is published: one memory for all earlier data sets, herding by data set and not
    by class, no cross entropy on exemplars, theta0 as the teacher, over the current task's prompts. From iCaRL's paper:
    herding, and as many images of each data set; its rehearsal by class is the method `rehearsal`.

    That code (`mtil/src/dynamic_dataset.py`) does otherwise than it says, which is not copied: of t earlier data sets
    the newest keeps memory - memory / t images, half of all that is distilled on; herding counts a place among the
    images that are left as one among all, so that others are kept, some twice; the first data set is not herded; and
    steps take the memory's images in their order, one data set after the other, where ours are drawn from all.
    """

    needs = frozenset({"exemplars"})
    adds_images = True

    def expert_settings(self, position: int) -> dict[str, Any]:
        """The memory, and how it is used."""
        options = self.config.distillation.identity(include={"batch_size", "temperature", "weight"})
        return {"objective": self.name, "memory": self.config.replay.memory} | options

    def objective(self, lesson: Lesson) -> Objective:
        """Plain where there is no exemplar."""
        return Memory(lesson) if lesson.exemplars else First(lesson)
