"""Label spaces: the classes that a prediction chooses from, by protocol."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from condu_ray.benchmark.tasks import Task
from condu_ray.config import Protocol

XTAIL_TEMPLATE = "a photo of a {}."
"""The prompt of every class under `xtail`, as RAIL's public code has it (arXiv 2406.18868), whose names of two sets say
more: `number: "0 - zero"` of MNIST, and of EuroSAT `River satellite location`. Classes are called here as in MTIL."""


@dataclass(frozen=True)
class Labels:
    """The words of a task without its images: what a prediction chooses from where there is no task's folder.

    Attributes:
        name: of the task, or what stands for it.
        classes: class names.
        templates: prompts with one `{}` each; features are averaged over them.
    """

    name: str
    classes: tuple[str, ...]
    templates: tuple[str, ...]


Named = TypeVar("Named", Task, Labels)


def label_space(protocol: Protocol, tasks: Sequence[Named]) -> tuple[Named, ...]:
    """Returns the tasks whose classes a prediction chooses from, with the templates of their prompts.

    Args:
        protocol: how it is measured.
        tasks: all tasks of the run, or their words.

    Returns:
        All tasks; under `xtail` with one template and by name, for of two classes of one name, which have one prompt
        there, the first is predicted; empty where the tested task's own classes are the label space.
    """
    if protocol in ("task", "own"):
        return ()
    if protocol == "union":
        return tuple(tasks)
    return tuple(replace(task, templates=(XTAIL_TEMPLATE,)) for task in sorted(tasks, key=lambda task: task.name))
