"""Recipes: functions that return a whole configuration. `--recipe NAME` picks one; flags override it.

Those of MTIL are the public scripts' hyperparameters (github.com/zhangzicong518/ConDU), for `--data` as
`condu-ray prepare` writes it; methods.md's section 2 is where they are written down.
"""

from __future__ import annotations

from collections.abc import Callable

from condu_ray.config import Distillation, Experiment, Lora, Training

ORDER_1 = (
    "aircraft", "caltech101", "cifar100", "dtd", "eurosat", "flowers", "food", "mnist", "oxford_pets", "stanford_cars",
    "sun397",
)  # fmt: skip
"""MTIL's order I."""
ORDER_2 = (
    "stanford_cars", "food", "mnist", "oxford_pets", "flowers", "sun397", "aircraft", "caltech101", "dtd", "eurosat",
    "cifar100",
)  # fmt: skip
"""MTIL's order II."""
_LORA = (1e-3, 5e-4, 2e-3, 2e-3, 1.5e-4, 1e-5, 2e-3, 1e-3, 1.5e-4, 2e-3, 1.5e-3)
_LORA_FEW_SHOT = (3e-3, 8e-4, 1.5e-3, 2e-3, 3e-4, 1e-5, 2e-3, 2.5e-3, 3e-4, 2e-3, 2e-3)


def _small(name: str, steps: int, lr: float, lora_lr: float) -> Experiment:
    distillation = Distillation(ensemble_every=10, max_captions=200, vocabulary=200)
    training, lora = Training(steps=steps, lr=lr), Lora(rank=16, lr=lora_lr)
    return Experiment(recipe=name, training=training, lora=lora, distillation=distillation)


def mini_mtil() -> Experiment:
    """The embedded default: small drawn domains, the shipped tiny CLIP, three minutes on two CPU cores."""
    return _small("mini_mtil", steps=200, lr=1e-3, lora_lr=5e-3)


def own_data() -> Experiment:
    """A folder of task folders with a CLIP of some ten million parameters at 64 pixels, on two CPU cores."""
    return _small("own_data", steps=100, lr=3e-4, lora_lr=2e-3)


def _mtil(name: str, order: tuple[str, ...], steps: int, lora: tuple[float, ...]) -> Experiment:
    rates = dict(zip(ORDER_1, lora, strict=True))
    return Experiment(
        recipe=name,
        tasks=order,
        paper="mtil",
        model="ViT-B-16",
        pretrained="openai",
        training=Training(
            steps=steps,
            batch_size=64,
            lr=1e-5,
            lr_by_task={"aircraft": 5e-5, "mnist": 5e-5},
            warmup=100 / steps,
            weight_decay=0.0,
            beta2=0.999,
            label_smoothing=0.2,
        ),
        lora=Lora(rank=64, scale=1.0, targets=("mlp",), init="normal", std=0.01, lr_by_task=rates),
    )


def mtil_order1() -> Experiment:
    """MTIL, order I: ViT-B/16 by OpenAI, 1000 iterations a task."""
    return _mtil("mtil_order1", ORDER_1, 1000, _LORA)


def mtil_order2() -> Experiment:
    """MTIL, order II."""
    return _mtil("mtil_order2", ORDER_2, 1000, _LORA)


def few_shot() -> Experiment:
    """Few-shot MTIL, order I: five images a class, 500 iterations a task."""
    return _mtil("few_shot", ORDER_1, 500, _LORA_FEW_SHOT).model_copy(update={"shots": 5})


def task_agnostic() -> Experiment:
    """Task-agnostic MTIL, order I, as ConDU publishes it: the task is never known, the tested set's own classes."""
    return mtil_order1().model_copy(update={"recipe": "task_agnostic", "protocol": ("task", "own", "union")})


def xtail() -> Experiment:
    """RAIL's X-TAIL: MTIL without CIFAR100, 16 images a class, classes of all sets, one template for all of them."""
    tasks = tuple(task for task in ORDER_1 if task != "cifar100")
    return mtil_order1().model_copy(update={"recipe": "xtail", "tasks": tasks, "shots": 16, "protocol": ("xtail",)})


RECIPES: dict[str, Callable[[], Experiment]] = {
    recipe.__name__: recipe
    for recipe in (mini_mtil, own_data, mtil_order1, mtil_order2, few_shot, task_agnostic, xtail)
}
"""Every recipe by its name."""
