"""Rates by which no task is trained are told of."""

import pytest

from condu_ray.constants import ORDER_1
from condu_ray.methods import get
from condu_ray.options import Lora
from condu_ray.plan.rates import unused_rates
from condu_ray.recipes import mini_mtil, mtil_order1


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
