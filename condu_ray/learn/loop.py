"""Fine-tuning one expert: AdamW, linear warm-up and cosine, cross entropy against the class prompts."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.parallel import DistributedDataParallel

from condu_ray.learn import checkpoint
from condu_ray.learn.agreement import CHECK_STEPS, Agreement, named
from condu_ray.learn.draws import Draws
from condu_ray.learn.losses import READ_STEPS, DivergedError, Losses
from condu_ray.learn.objective import Batch, ClipClassifier, Objective
from condu_ray.learn.optimiser import adamw
from condu_ray.learn.strictness import Around, strictly
from condu_ray.vlm.inputs import on_device
from condu_ray.vlm.towers import train_mode


class WorkersDifferError(DivergedError):
    """Workers of one expert hold different parameters, which no learning rate cures."""


@dataclass(frozen=True)
class Progress:
    """Where a fine-tuning is: step (1-based), loss, images a step and a second, share of time waiting for data.

    On a GPU the loss is the last one that was read, up to `READ_STEPS` steps ago.
    """

    step: int
    steps: int
    loss: float
    batch: int
    images_per_second: float
    data_wait: float


def learning_rate(step: int, steps: int, warmup: float, peak: float) -> float:
    """Returns the rate of 0-based `step`: linear from 0 to `peak` over `warmup * steps`, then cosine to 0."""
    rise = round(warmup * steps)
    if step < rise:
        return peak * (step + 1) / rise
    return peak * 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, steps - rise)))


def compute_context(device: torch.device, precision: str) -> AbstractContextManager[object]:
    """Autocast for bf16; when training on CPU also the plain attention, whose backward is the faster one there."""
    stack = ExitStack()
    if precision == "bf16":
        stack.enter_context(torch.autocast(device.type, torch.bfloat16))
    stack.enter_context(_attention(device))
    return stack


def _attention(device: torch.device) -> AbstractContextManager[object]:
    return sdpa_kernel([SDPBackend.MATH]) if device.type == "cpu" and torch.is_grad_enabled() else nullcontext()


def fine_tune(
    classifier: nn.Module,
    batches: Iterator[Mapping[str, np.ndarray]],
    objective: Objective,
    report: Callable[[Progress], None] = lambda progress: None,
    *,
    earlier: checkpoint.Checkpoint | None = None,
    saving: checkpoint.Saving | None = None,
) -> float:
    """Trains a lesson's parameters in place.

    Args:
        classifier: `ClipClassifier` of the lesson's model, or it under DistributedDataParallel.
        batches: a batch for each step that is left, of this worker: `image` uint8 [b, H, W, 3], `label` int64 [b].
        objective: the loss, and with `objective.lesson` everything else.
        report: called after every step.
        earlier: what the first `lesson.begin` steps left, where they were taken before.
        saving: where rank 0 writes checkpoints now and then; None: nowhere.

    Returns:
        The mean loss over the last tenth of the steps.

    Raises:
        DivergedError: the loss became NaN or infinite, on any worker: it is raised on all of them at the same step, on
            a GPU up to `READ_STEPS` steps later; the step that is named is where it happened.
        WorkersDifferError: the workers' parameters are not equal to the bit, on all of them at the same step; they are
            compared every `CHECK_STEPS` steps and at the end.
        RuntimeError: the stream ended early.
    """
    lesson = objective.lesson
    settings, task, device = lesson.settings, lesson.task.name, lesson.device
    peak = settings.rate(task)
    optimizer = adamw(lesson.parameters.values(), settings, peak)
    agreement, agreed = Agreement(lesson.parameters, lesson.rank, lesson.world), lesson.begin
    train_mode(classifier)
    losses = Losses(agreement, task, peak, 1 if device.type == "cpu" else READ_STEPS)
    begin, waited, images = 0.0, 0.0, 0
    strict: Around = nullcontext
    for step in range(lesson.begin, settings.steps):
        before = time.perf_counter()
        rows = next(batches, None)
        begin = begin or time.perf_counter()  # the wait for a stream's first batch is its start-up, not its speed
        waited += time.perf_counter() - before if step > lesson.begin else 0.0
        if rows is None:
            raise RuntimeError(f"task {task}: the data stream ended at step {step} of {settings.steps}")
        label_B = on_device(rows["label"], device)
        batch = Batch(step, lesson.images(rows["image"]), label_B)
        if step == lesson.begin:
            part = batch.parts(settings.accumulate)[0].images
            computing = partial(compute_context, device, lesson.precision)
            strict = strictly(_alone(classifier), part, objective.tokens_CL, computing)
        if step == lesson.begin and earlier is not None:
            checkpoint.settle(classifier, objective, batch)
            checkpoint.restore(earlier, optimizer, objective, losses)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, settings.steps, settings.warmup, peak)
        optimizer.zero_grad(set_to_none=True)
        backward(classifier, objective, batch, losses.add, strict)
        optimizer.step()
        objective.after_step(step, optimizer)
        if (step + 1) % CHECK_STEPS == 0 and step + 1 < settings.steps:
            losses.read()
            check_workers(agreement, task, step + 1, agreed)
            agreed = step + 1
        if saving is not None and step + 1 < settings.steps:
            saving.offer(step + 1, optimizer, objective, losses)
        images += len(label_B)
        elapsed = time.perf_counter() - begin
        report(Progress(step + 1, settings.steps, losses.latest, len(label_B), images / elapsed, waited / elapsed))
    losses.read()
    classifier.eval()
    objective.finish()
    check_workers(agreement, task, settings.steps, agreed)
    if agreement.several and (broken := agreement.broken()):  # alone, it is found in what is to be published
        raise DivergedError(
            f"task {task}: step {settings.steps}, the last, left NaN or infinity in {broken} on all {lesson.world} "
            f"ranks; lower the learning rate ({peak:g})"
        )
    tail = losses.values[-max(1, settings.steps // 10) :]
    return sum(tail) / len(tail)


def backward(
    classifier: nn.Module,
    objective: Objective,
    batch: Batch,
    seen: Callable[[Tensor], None],
    strict: Around = nullcontext,
) -> None:
    """Adds a step's gradients to the parameters', by `training.accumulate` parts of the batch.

    The parts' images go through the model one after the other, against the prompts' features without their graph; what
    the parts owe to these goes back through the text tower with the last one, which drops out what the first pass did.

    Args:
        classifier: as in `fine_tune`.
        objective: the loss.
        batch: the step's.
        seen: given the loss before the last part's backward pass, in which workers wait for each other.
        strict: what backward passes run in.
    """
    lesson = objective.lesson
    device, count = lesson.device, lesson.settings.accumulate
    *first, last = batch.parts(count)
    found: list[Tensor] = []
    leaf_CD = None
    if first:
        alone = _alone(classifier)
        assert isinstance(alone, ClipClassifier)
        alone.draws = Draws(device)
        with torch.no_grad(), compute_context(device, lesson.precision):
            leaf_CD = alone.texts(objective.inputs(last)[1])
        leaf_CD.requires_grad_()
        for part in first:
            with compute_context(device, lesson.precision):
                loss = objective.loss(part, alone.images(objective.inputs(part)[0]), leaf_CD) / count
            found.append(loss.detach())
            with strict(), _attention(device):
                loss.backward()
    with compute_context(device, lesson.precision):
        image_BD, text_CD = classifier(*objective.inputs(last))
        loss = objective.loss(last, image_BD, text_CD) / count
    # Before the backward pass: a worker that stopped alone would leave the others in its all-reduce.
    seen(torch.stack([*found, loss.detach()]).sum())
    if leaf_CD is not None and leaf_CD.grad is not None:
        loss = loss + (text_CD * leaf_CD.grad).sum()
    with strict(), _attention(device):  # by which activations are computed again where they were not kept
        loss.backward()


def _alone(classifier: nn.Module) -> nn.Module:
    """Returns a worker's own model."""
    return classifier.module if isinstance(classifier, DistributedDataParallel) else classifier


def check_workers(agreement: Agreement, task: str, step: int, agreed: int) -> None:
    """Stops a training whose workers' parameters differ.

    Args:
        agreement: between the workers.
        task: what is learned.
        step: 1-based step that was the last.
        agreed: the step after which they were equal; 0: at the start.

    Raises:
        WorkersDifferError: they differ.
    """
    if found := agreement.difference():
        raise WorkersDifferError(
            f"task {task}: the workers' parameters differ at step {step}, and were equal after step {agreed}: {found}. "
            f"A worker computes wrongly or by other kernels: check memory and GPU behind {named(found.suspects)}, take "
            "machines of one kind for all, and give the same command again"
        )
