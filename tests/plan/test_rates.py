"""Rates by which no task is trained are told of; those of tasks that do not exist are refused."""

import shutil

import pytest

from condu_ray.benchmark import load_tasks
from condu_ray.benchmark.tasks import TaskError
from condu_ray.config import Experiment
from condu_ray.constants import ORDER_1
from condu_ray.methods import get
from condu_ray.options import Lora
from condu_ray.plan.rates import check_rates, unused_rates
from condu_ray.recipes import mini_mtil, mtil_order1
from condu_ray.store.artifacts import write_text
from condu_ray.store.layout import config_path
from tests.conftest import write_task


def said(config, method, tasks=ORDER_1):
    return list(unused_rates(config, [get(method, config)], tasks))


def with_rate(config, field, lr, **more):
    return config.model_copy(update={field: getattr(config, field).model_copy(update={"lr": lr, **more})})


def test_a_rate_beside_a_recipes_rates_for_all_tasks_is_told_of():
    config = with_rate(mtil_order1(), "lora", 3e-4)
    [line] = said(config, "condu-lora")
    assert line.startswith("--lora.lr 0.0003: no task is trained by it")
    assert "--lora.lr_by_task" in line


@pytest.mark.parametrize(
    ("config", "method", "tasks"),
    [
        (mtil_order1(), "condu-lora", ORDER_1),  # nobody gave one
        (with_rate(mtil_order1(), "lora", 3e-4), "condu", ORDER_1),  # trains the whole model
        (with_rate(mtil_order1(), "lora", 3e-4), "pam", ORDER_1),  # has a rate of its own
        (with_rate(mtil_order1(), "lora", 3e-4), "zero-shot", ORDER_1),
        (with_rate(mtil_order1(), "lora", 3e-4), "condu-lora", (*ORDER_1, "birds")),  # trained by it
        (with_rate(mtil_order1(), "training", 3e-5), "condu", ORDER_1),  # two of eleven have others
        (with_rate(mtil_order1(), "lora", 3e-4, lr_by_task=dict.fromkeys(ORDER_1, 1e-4)), "condu-lora", ORDER_1),
        (mini_mtil().model_copy(update={"lora": Lora(lr=3e-4)}), "condu-lora", ("land", "faces")),
    ],
)
def test_a_rate_that_is_used_or_was_meant_is_not(config, method, tasks):
    assert said(config, method, tasks) == []


@pytest.mark.parametrize("part", ["training", "lora"])
def test_a_rate_of_a_task_that_a_further_folder_has_may_stay_and_of_one_that_is_forgotten(tmp_path, task_data, part):
    write_task(tmp_path / "more" / "gates", ("red", "blue"), 5)
    config = Experiment.model_validate({
        "data": task_data, "more_data": (tmp_path / "more",), "storage": tmp_path / "storage",
        "tasks": ("walls", "doors"), part: {"lr_by_task": {"gates": 1e-4}},
    })  # fmt: skip
    tasks = load_tasks(task_data, ["walls", "doors"])
    check_rates(config, tasks)  # as after a rollback, or before gates is added
    with pytest.raises(TaskError, match=f"--{part}.lr_by_task gate: no such task in .*did you mean gates"):
        check_rates(with_rate(config, part, 1e-4, lr_by_task={"gate": 1e-4}), tasks + load_tasks(tmp_path / "more"))
    shutil.rmtree(tmp_path / "more")
    with pytest.raises(TaskError, match=f"--{part}.lr_by_task gates: no such task"):
        check_rates(config, tasks)
    write_text(config_path(config.run_folder), config.model_dump_json())  # the run is there, and had learned it once
    check_rates(config, tasks)
    with pytest.raises(TaskError, match=f"--{part}.lr_by_task dors: no such task .*did you mean doors"):
        check_rates(with_rate(config, part, 1e-4, lr_by_task={"gates": 1e-4, "dors": 1e-4}), tasks)
