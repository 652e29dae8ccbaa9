"""What an ablation works with: those of a run's methods that it is about, and an evaluator in this process."""

from __future__ import annotations

from collections.abc import Callable

import torch

from condu_ray.config import Experiment
from condu_ray.learn.evaluate import Evaluator
from condu_ray.methods import Method, get
from condu_ray.plan.stored_method import MissingRunError
from condu_ray.vlm.model import BackboneSpec, load_backbone


def keep_methods(config: Experiment, suitable: Callable[[Method], bool], which: str) -> Experiment:
    """Returns the configuration with those of its methods alone that an ablation is about.

    Args:
        config: of a run, which may have other methods too.
        suitable: whether the ablation is about a method.
        which: describes such methods, for the message.

    Raises:
        MissingRunError: the storage folder does not exist.
        ValueError: there is no such method, by name or at all.
    """
    if not config.storage.is_dir():
        raise MissingRunError(f"--storage {config.storage}: no such folder; give the storage of a finished run")
    kept = tuple(name for name in config.method if suitable(get(name, config)))
    if not kept:
        raise ValueError(f"--method {','.join(config.method)}: this is about {which}; name one that the run has")
    return config.model_copy(update={"method": kept})


def make_evaluator(config: Experiment, spec: BackboneSpec, precision: str) -> Evaluator:
    """Returns an evaluator in this process, as those of the run: on the GPU if there is one, else on the CPU.

    Args:
        config: batch size, images a task, and the CPU threads of this process.
        spec: the backbone.
        precision: resolved.
    """
    torch.set_num_threads(config.training.threads)
    return Evaluator(
        load_backbone(spec),
        batch_size=config.evaluation.batch_size,
        max_images=config.evaluation.max_images,
        precision=precision,
        device="cuda" if torch.cuda.is_available() else "cpu",
    )
