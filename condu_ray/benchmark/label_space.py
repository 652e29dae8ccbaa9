"""Label spaces: the classes that a prediction chooses from, by protocol."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from condu_ray.benchmark.tasks import Task
from condu_ray.config import Protocol

XTAIL_TEMPLATE = "a photo of a {}."
"""The prompt of every class under `xtail`, as RAIL's public code has it (arXiv 2406.18868)."""


def label_space(protocol: Protocol, tasks: Sequence[Task]) -> tuple[Task, ...]:
    """Returns the tasks whose classes a prediction chooses from, with the templates of their prompts.

    Args:
        protocol: how it is measured.
        tasks: all tasks of the run.

    Returns:
        All tasks; under `xtail` with one template and by name, for of two classes of one name, which have one prompt
        there, the first is predicted; empty where the tested task's own classes are the label space.
    """
    if protocol in ("task", "own"):
        return ()
    if protocol == "union":
        return tuple(tasks)
    return tuple(replace(task, templates=(XTAIL_TEMPLATE,)) for task in sorted(tasks, key=lambda task: task.name))
