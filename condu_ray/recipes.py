"""Recipes: functions that return a whole configuration. `--recipe NAME` picks one; flags override it.

Those of MTIL are the public scripts' hyperparameters (github.com/zhangzicong518/ConDU), for `--data` as
`condu-ray prepare` writes it; condu_ray/constants.py says of each where it comes from. `xtail` has no such
script: it is RAIL's protocol on MTIL's splits and class names, with order I's rates and steps.
"""

from __future__ import annotations

from collections.abc import Callable

from condu_ray.config import Experiment, Training
from condu_ray.constants import ORDER_1, ORDER_2
from condu_ray.options import Distillation, Inference, Lora, Merging, Pam

_FULL = {"aircraft": 5e-5, "mnist": 5e-5}
_FULL_FEW_SHOT = {"aircraft": 5e-5, "oxford_pets": 5e-5}
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


def _mtil(name: str, order: tuple[str, ...], steps: int, full: dict[str, float], lora: tuple[float, ...]) -> Experiment:
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
            lr_by_task=full,
            warmup=100 / steps,
            weight_decay=0.0,
            beta2=0.999,
            label_smoothing=0.2,
            precision="fp32",
        ),
        lora=Lora(rank=64, scale=0.125, targets=("mlp",), init="normal", std=0.01, lr_by_task=rates),
        # The paper's rank. It has no rate for CLIP: the median of ConDU's stands in, with the same kind of scale.
        pam=Pam(rank=32, scale=32**-0.5, lr=1e-3),
        merging=Merging(wise_alpha=0.8),
        distillation=Distillation(max_captions=0),
    )


def mtil_order1() -> Experiment:
    """MTIL, order I: ViT-B/16 by OpenAI, 1000 iterations a task."""
    return _mtil("mtil_order1", ORDER_1, 1000, _FULL, _LORA)


def mtil_order2() -> Experiment:
    """MTIL, order II."""
    return _mtil("mtil_order2", ORDER_2, 1000, _FULL, _LORA)


def few_shot() -> Experiment:
    """Few-shot MTIL, order I: five images a class, each cropped once, 500 iterations; prototypes from all images."""
    base = _mtil("few_shot", ORDER_1, 500, _FULL_FEW_SHOT, _LORA_FEW_SHOT)
    training = base.training.model_copy(update={"crops": "frozen"})
    return base.model_copy(update={"shots": 5, "training": training, "inference": Inference(prototype_images="all")})


def task_agnostic() -> Experiment:
    """Task-agnostic MTIL, order I, as ConDU publishes it: the task is never known, the tested set's own classes."""
    return mtil_order1().model_copy(update={"recipe": "task_agnostic", "protocol": ("task", "own", "union")})


def xtail() -> Experiment:
    """X-TAIL by RAIL's rules on MTIL's data without CIFAR100 (RAIL has CoOp's splits and names); rates are ours.

    16 images a class (Flowers has 10 in MTIL's training split), classes of all sets, one template for all.
    """
    tasks = tuple(task for task in ORDER_1 if task != "cifar100")
    return mtil_order1().model_copy(update={"recipe": "xtail", "tasks": tasks, "shots": 16, "protocol": ("xtail",)})


RECIPES: dict[str, Callable[[], Experiment]] = {
    recipe.__name__: recipe
    for recipe in (mini_mtil, own_data, mtil_order1, mtil_order2, few_shot, task_agnostic, xtail)
}
"""Every recipe by its name."""
