"""What tasks' files held when a command looked at them, by which whoever reads them later sees that they still do.

Keys of experts, prototypes and measurements are made of these hashes. A file that is written anew while a run is at
work, or of which a node has another copy, would otherwise be trained or measured on under the key of what was there.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from condu_ray.benchmark.tasks import TEST, TRAIN, Task, TaskError


class ChangedError(TaskError):
    """A task's file is not what it was when the command began; nothing of what was made of it counts."""


Contents = Mapping[str, tuple[str, str]]
"""Training and test fingerprint by the task's name; of plain texts, for processes that load none of this."""


def contents_of(tasks: Iterable[Task]) -> Contents:
    """Returns those of what is there now; files are hashed where this process has not done so."""
    return {task.name: (task.train_fingerprint, task.test_fingerprint) for task in tasks}


def require_train(task: Task, contents: Contents) -> None:
    """Makes sure that a task's training images are what they were; one of which nothing is known passes.

    Raises:
        ChangedError: they are others.
    """
    if task.name in contents:
        require(task, contents[task.name][0])


def require(task: Task, train: str) -> None:
    """As `require_train`, by the training fingerprint itself."""
    if task.train_fingerprint != train:
        raise _changed(task, TRAIN)


def require_test(task: Task, contents: Contents) -> None:
    """The same of its test images."""
    if task.name in contents and task.test_fingerprint != contents[task.name][1]:
        raise _changed(task, TEST)


def _changed(task: Task, split: str) -> ChangedError:
    return ChangedError(
        f"{task.folder / split}: is not what it was when the command began: it, or the classes and templates beside "
        "it, were written meanwhile, or this node has another copy of them. Nothing that was made of it counts; let it "
        "be, or put it back, and give the command again"
    )
