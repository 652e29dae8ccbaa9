"""One expert from its start to its delta, without Ray and without storage: what a lane and a notebook train by."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, distributed, nn

from condu_ray.benchmark import Task
from condu_ray.benchmark.references import load_references
from condu_ray.learn.checkpoint import Checkpoint, Saving
from condu_ray.learn.chunks import reference_images, task_images
from condu_ray.learn.lesson import Exemplars, Lesson
from condu_ray.learn.loop import DivergedError, Progress, fine_tune
from condu_ray.learn.objective import ClipClassifier
from condu_ray.merging import subtract
from condu_ray.merging.delta import Delta
from condu_ray.methods.base import Method
from condu_ray.vlm import lora
from condu_ray.vlm.model import Backbone, set_weights
from condu_ray.vlm.towers import compiling, recomputing

SECOND = 2**31
"""Added to the run's seed for the order of a second stream of the task's images: no run has such a seed."""


@dataclass(frozen=True)
class Worker:
    """Who trains an expert: one process alone, or one of several that share each batch.

    Attributes:
        rank, world: this one among those of the expert.
        prepare: what is done to the model before training: brought to its device, wrapped to share gradients.
    """

    rank: int = 0
    world: int = 1
    prepare: Callable[[nn.Module], nn.Module] = lambda model: model


@dataclass(frozen=True)
class Trained:
    """A trained expert.

    Attributes:
        delta: its weight delta to theta0, on the CPU.
        factors: its LoRA factors; None where the whole model was trained.
        files: what else the method stores of it: file name to a function that writes it.
        loss: the mean over the last tenth of the steps.
    """

    delta: dict[str, Tensor]
    factors: dict[str, Tensor] | None
    files: Mapping[str, Callable[[Path], None]]
    loss: float


def train_expert(
    method: Method,
    task: Task,
    stream: Iterator[Mapping[str, np.ndarray]],
    *,
    backbone: Backbone,
    theta0: Mapping[str, Tensor],
    precision: str,
    position: int = 0,
    start: Delta | None = None,
    exemplars: Sequence[Exemplars] = (),
    worker: Worker | None = None,
    report: Callable[[Progress], None] = lambda progress: None,
    earlier: Checkpoint | None = None,
    saving: Saving | None = None,
) -> Trained | None:
    """Fine-tunes one expert by a method.

    Args:
        method: its objective, adapter and hyperparameters, with the configuration's options.
        task: what is learned.
        stream: batches for this worker, one for each step that is left.
        backbone: the model; its weights on return are those that training left, without any adapter.
        theta0: its pretrained weights.
        precision: `fp32` or `bf16`.
        position: 0-based place of the task.
        start: what training starts from in place of theta0: a weight delta, or LoRA factors for a method that trains
            these.
        exemplars: of earlier tasks, for methods that need them.
        worker: who trains; None: this process alone.
        report: called after every step.
        earlier: where to go on from; the same one on all workers.
        saving: where the first worker writes checkpoints; None: nowhere.

    Returns:
        The expert; None on all workers but the first.

    Raises:
        DivergedError: training lost its numbers on any worker, or the workers' parameters differ.
    """
    worker = worker or Worker()
    adapter = _put_in_place(method, backbone, theta0, start)
    try:
        torch.manual_seed(method.config.seed)
        clip = ClipClassifier(backbone.model)
        classifier = worker.prepare(clip)
        config, preprocess, begin = method.config, backbone.spec.preprocess, earlier.step if earlier else 0
        references = load_references(config.distillation) if "reference" in method.needs else None
        lesson = Lesson(
            task=task,
            position=position,
            backbone=backbone,
            theta0=theta0,
            parameters=adapter.parameters() if adapter else backbone.trainable,
            start=start if method.starts_from == "state" else None,
            settings=method.training,
            config=config,
            precision=precision,
            seed=config.seed,
            rank=worker.rank,
            world=worker.world,
            begin=begin,
            exemplars=tuple(exemplars),
            references=partial(_open, references.files, method, preprocess, worker, 0, begin) if references else None,
            second=partial(_open, (task.train,), method, preprocess, worker, SECOND, begin),
            captions=references.sample(config.distillation.max_captions, config.seed) if references else (),
            training_images=partial(task_images, task.train, preprocess, batch_size=64),
        )
        objective = method.objective(lesson)
        clip.shared = objective.tokens_CL if worker.world > 1 and distributed.is_initialized() else None
        settings = method.training
        with recomputing(backbone.model, settings.recompute), compiling(backbone.model, settings.compile):
            loss = fine_tune(
                classifier, stream, objective, report, earlier=earlier, saving=None if worker.rank else saving
            )
        if worker.rank:
            return None
        if adapter is None:
            delta, factors = subtract(backbone.snapshot(), theta0), None
        else:
            factors = adapter.factors()
            delta = lora.materialise(factors, method.lora.scale)
        if broken := [name for name, tensor in delta.items() if not tensor.isfinite().all()]:
            raise DivergedError(f"task {task.name}: the last step left no finite number in {broken[0]}")
        return Trained(delta, factors, dict(objective.files()), loss)
    finally:
        if adapter is not None:
            adapter.detach()


def _put_in_place(
    method: Method, backbone: Backbone, theta0: Mapping[str, Tensor], start: Delta | None
) -> lora.Lora | None:
    """Sets the model's weights to where training starts; returns the adapter that is trained, if there is one."""
    if method.adapter == "full":
        set_weights(backbone, theta0, start)
        return None
    set_weights(backbone, theta0, None)
    adapter = lora.attach(backbone, **method.lora.form, seed=method.config.seed)
    if start is not None:
        adapter.load(start)
    return adapter


def _open(
    files: Sequence[Path],
    method: Method,
    preprocess: dict[str, object],
    worker: Worker,
    offset: int,
    begin: int,
    size: int,
) -> Iterator[np.ndarray]:
    """Streams images without augmentation, of this worker's share, in the order of the run's seed."""
    return reference_images(
        files,
        preprocess,
        seed=method.config.seed + offset,
        steps=method.config.training.steps,
        batch_size=size * worker.world,
        rank=worker.rank,
        world=worker.world,
        begin=begin,
    )
