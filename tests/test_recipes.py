"""Recipes are named, can be picked, and give every method the rates of its kind of expert."""

import pytest

from condu_ray.command_line import parse
from condu_ray.methods import get
from condu_ray.recipes import ORDER_1, ORDER_2, RECIPES


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_named_as_its_function(name):
    assert RECIPES[name]().recipe == name
    assert parse(["--recipe", name]) == RECIPES[name]()


@pytest.mark.parametrize("name", ["mtil_order1", "mtil_order2", "few_shot", "task_agnostic"])
def test_rates_by_task_reach_training(name):
    config = RECIPES[name]()
    assert set(config.tasks) == set(config.lora.lr_by_task) == set(ORDER_1)
    for task in config.tasks:
        full, adapters = (get(method, config).training.identity_for(task) for method in ("condu", "condu-lora"))
        assert full["lr"] == config.training.rate(task)
        assert adapters["lr"] == config.lora.lr_by_task[task]


def test_both_orders_have_the_same_tasks():
    assert sorted(ORDER_1) == sorted(ORDER_2)
