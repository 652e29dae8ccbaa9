"""Recipes have the papers' hyperparameters, task by task, in the order in which methods.md lists the tasks."""

import pytest

from condu_ray.command_line import parse
from condu_ray.methods import get
from condu_ray.recipes import ORDER_1, ORDER_2, RECIPES

FT = dict.fromkeys(ORDER_1, 1e-5) | {"aircraft": 5e-5, "mnist": 5e-5}
LORA = dict(zip(ORDER_1, (1e-3, 5e-4, 2e-3, 2e-3, 1.5e-4, 1e-5, 2e-3, 1e-3, 1.5e-4, 2e-3, 1.5e-3), strict=True))
FEW = dict(zip(ORDER_1, (3e-3, 8e-4, 1.5e-3, 2e-3, 3e-4, 1e-5, 2e-3, 2.5e-3, 3e-4, 2e-3, 2e-3), strict=True))
PAPERS = {"mtil_order1": LORA, "mtil_order2": LORA, "few_shot": FEW, "task_agnostic": LORA}


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_named_as_its_function(name):
    assert RECIPES[name]().recipe == name
    assert parse(["--recipe", name]) == RECIPES[name]()


@pytest.mark.parametrize("name", PAPERS)
def test_the_papers_settings(name):
    found, steps = RECIPES[name](), 500 if name == "few_shot" else 1000
    assert (found.model, found.pretrained) == ("ViT-B-16", "openai")
    training = found.training
    assert (training.steps, training.batch_size, training.label_smoothing) == (steps, 64, 0.2)
    assert (training.beta2, training.weight_decay, round(training.warmup * steps)) == (0.999, 0.0, 100)
    assert found.tasks == (ORDER_2 if name == "mtil_order2" else ORDER_1)
    assert (found.shots, found.label_space) == (
        5 if name == "few_shot" else None,
        "union" if name == "task_agnostic" else "task",
    )
    assert (found.lora.rank, found.lora.scale, found.lora.targets, found.lora.std) == (64, 1.0, ("mlp",), 0.01)


@pytest.mark.parametrize("name", PAPERS)
@pytest.mark.parametrize("task", ORDER_1)
def test_the_papers_rates_reach_training(name, task):
    config = RECIPES[name]()
    assert get("condu", config).training.recipe_for(task)["lr"] == FT[task]
    assert get("condu-lora", config).training.recipe_for(task)["lr"] == PAPERS[name][task]


def test_the_orders_are_mtils():
    assert set(ORDER_1) == set(ORDER_2)
    assert (ORDER_1[0], ORDER_1[-1], ORDER_2[0], ORDER_2[-1]) == ("aircraft", "sun397", "stanford_cars", "cifar100")
