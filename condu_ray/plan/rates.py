"""Learning rates: those of tasks that do not exist, and those that no task is trained by."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Sequence

from condu_ray.benchmark import Task
from condu_ray.benchmark.mini_mtil.draw import MINI_MTIL_TASKS
from condu_ray.benchmark.tasks import TaskError
from condu_ray.config import Experiment
from condu_ray.methods import Method
from condu_ray.names import nearest
from condu_ray.plan.data import drawn, has
from condu_ray.recipes import RECIPES
from condu_ray.store import artifacts
from condu_ray.store.layout import config_path

FIELDS = {"training": "full", "lora": "lora"}
"""Parts of the settings that have rates, and which methods train by them, by what these train."""


def check_rates(config: Experiment, tasks: Sequence[Task]) -> None:
    """Refuses a learning rate for a task that does not exist; the recipe's own, and those of other tasks, may stay.

    So may those that the run was begun with: a task that it has forgotten since may be nowhere any more.

    Raises:
        TaskError: there is one.
    """
    data = config.data or drawn(config)
    known = {task.name for task in tasks} | set(artifacts.names(data)) | set(MINI_MTIL_TASKS)
    for field in FIELDS:
        expected = known | getattr(_recipe(config), field).lr_by_task.keys()
        for name in getattr(config, field).lr_by_task:
            if name not in expected and not has(config, name) and name not in _begun_with(config, field):
                names = [task.name for task in tasks]
                raise TaskError(f"--{field}.lr_by_task {name}: no such task in {data}{nearest(name, names)}")


def unused_rates(
    config: Experiment, methods: Sequence[Method], tasks: Collection[str], fields: Collection[str] | None = None
) -> Iterator[str]:
    """Yields what to say of a peak rate by which nothing is trained, for each task has one of its own.

    Args:
        config: the configuration.
        methods: of it.
        tasks: their names.
        fields: of `FIELDS`, whose rate somebody gave; None: those whose rate is not the recipe's, while those of the
            tasks are.
    """
    for field, adapter in FIELDS.items():
        given, recipe = getattr(config, field), getattr(_recipe(config), field)
        known = recipe.lr_by_task.items() >= {(task, given.lr_by_task.get(task)) for task in tasks}
        meant = field in fields if fields is not None else given.lr != recipe.lr and known
        mine = [method for method in methods if method.starts_from != "nothing" and method.adapter == adapter]
        if meant and mine and all(task in method.training.lr_by_task for method in mine for task in tasks):
            yield (
                f"--{field}.lr {given.lr}: no task is trained by it, for each has a rate of its own "
                f"(--{field}.lr_by_task); give these"
            )


def _begun_with(config: Experiment, field: str) -> Collection[str]:
    """The tasks that have rates in the settings of the run as storage has them."""
    try:
        found: dict[str, float] = json.loads(artifacts.read_text(config_path(config.run_folder)))[field]["lr_by_task"]
        return found.keys()
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # it is not there yet
        return ()


def _recipe(config: Experiment) -> Experiment:
    return RECIPES[config.recipe]() if config.recipe in RECIPES else Experiment()
