"""One real pass before anything is spent: every task's first image and two of its prompts, and one training step.

What does not fit (preprocessing, tokenizer, model, adapter) shows here in a sentence, on this machine's CPU, and not in
a worker's traceback. Good verdicts are kept in storage, so that a backbone with a task, and its training, are tried
once.
"""

from __future__ import annotations

import logging
import random
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from importlib.metadata import version
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from torch import Tensor, nn

from condu_ray.benchmark import Task
from condu_ray.config import Experiment, content_hash
from condu_ray.learn.loop import compute_context
from condu_ray.learn.objective import ClipClassifier, classification_loss
from condu_ray.learn.precision import resolved_precision
from condu_ray.methods import Method
from condu_ray.store.artifacts import ArtifactError, WriteError, read_sealed, write_sealed
from condu_ray.store.layout import checked_folder, verdict_path
from condu_ray.vlm import lora
from condu_ray.vlm.context import cut, encode_text
from condu_ray.vlm.inputs import normalise
from condu_ray.vlm.model import Backbone, BackboneError
from condu_ray.vlm.preprocess import Preprocessor
from condu_ray.vlm.texts import Texts, check_texts
from condu_ray.vlm.towers import train_mode
from condu_ray.vlm.zeroshot import logits

log = logging.getLogger(__name__)

VERSION = 2
"""Part of a kept verdict: raise it when a check is added or changes, and everything is tried again."""
CPU = torch.device("cpu")
POSSIBLE = "interpolation bicubic or bilinear, resize_mode shortest, longest or squash, mode RGB"
SHORTEST = 0.9
"""Length of a normalised feature, at least: bf16 gives 1 to within a percent, what overflows gives 0."""


def first_pass(backbone: Backbone, tasks: Sequence[Task], config: Experiment, methods: Sequence[Method]) -> list[Texts]:
    """Tries tasks and training on a backbone, and finds how the backbone reads the tasks' prompts.

    Args:
        backbone: on the CPU at theta0, without gradients; it is as before afterwards, as are the random states.
        tasks: what is learned; their data are checked.
        config: the run's settings; good verdicts are kept in its storage.
        methods: the run's.

    Returns:
        A task's texts each, in their order.

    Raises:
        BackboneError: transforms, encoders or a training step fail, or give what is not finite.
        TaskError: the backbone does not read prompts to their ends, or cannot tell classes apart.
        LoraError: adapters do not fit the backbone.
    """
    precision = resolved_precision(config.training.precision, torch.cuda.is_available())
    known = [VERSION, backbone.fingerprint, precision, version("torch"), version("open_clip_torch")]
    found = []
    with _as_before(backbone.model, config.training.threads):
        for task in tasks:
            key = content_hash([*known, task.fingerprint, config.long_prompts])
            if (verdict := _kept(config, key)) is None:
                (texts,) = read_prompts(backbone, [task], config)
                _encode(backbone, task, precision)
                verdict = asdict(texts)
                _keep(config, key, verdict)
            found.append(Texts(**verdict))
        several = config.training.workers > 1
        for method in methods:
            if method.starts_from == "nothing":
                continue
            options = {"rank", "targets", "init", "scale", "std"} if method.adapter == "lora" else set()
            key = content_hash([*known, method.adapter, method.lora.identity(include=options), several])
            if _kept(config, key) is None:
                _try_training(backbone, tasks[0], config, method, precision)
                _keep(config, key, {"trained": method.adapter})
    return found


def read_prompts(backbone: Backbone, tasks: Sequence[Task], config: Experiment) -> list[Texts]:
    """Finds how the backbone reads the tasks' prompts; of their images nothing is read.

    Raises:
        TaskError: the backbone does not read prompts to their ends, or cannot tell classes apart.
    """
    cuts = config.long_prompts == "cut"
    return [check_texts(backbone.tokenizer, task, backbone.spec.name, cut=cuts) for task in tasks]


def try_adapters(backbone: Backbone, config: Experiment, methods: Sequence[Method]) -> None:
    """Puts the methods' adapters on the backbone and takes them off again.

    Raises:
        LoraError: they do not fit it.
    """
    for method in methods:
        if method.adapter == "lora" and method.starts_from != "nothing":
            with lora.attach(backbone, **method.lora.form, seed=config.seed):
                pass


def described(tasks: Sequence[Task], texts: Sequence[Texts]) -> str:
    """Returns what is worth knowing of the prompts, in a line for people."""
    most, where = max(zip((one.longest for one in texts), (task.name for task in tasks), strict=True))
    cut = sum(one.cut for one in texts)
    lost = f"; {cut} prompts are cut, as --long_prompts says" if cut else ""
    return f"longest prompt {most} of {texts[0].context} tokens ({where}){lost}"


def _encode(backbone: Backbone, task: Task, precision: str) -> tuple[Tensor, Tensor]:
    """Encodes a task's first image and two prompts, as an evaluation does.

    Returns:
        The image as it is evaluated and as it is trained on [2, 3, H, W], and the prompts' tokens [2, L].
    """
    model, spec, (height, width) = backbone.model, backbone.spec, backbone.spec.image_size
    named, said = partial(_named, backbone, task), spec.preprocess
    with pq.ParquetFile(task.train) as file:
        encoded = next(file.iter_batches(1, columns=["image"]))["image"][0].as_py()
    cure = f"correct its preprocess_cfg ({said}): {POSSIBLE}"
    with named("its transforms cannot prepare an image", cure):
        pixels = np.stack([Preprocessor(said, augment).pixels(encoded) for augment in (False, True)])
        if pixels.shape[1:] != (height, width, 3):
            raise ValueError(f"the image becomes {pixels.shape[1:]}")
    mean, std = said["mean"], said["std"]
    cure = "its preprocess_cfg has to say three numbers as mean, 0 to 1, and three as std, above 0 and up to 1"
    with named(f"images cannot be normalised with mean {mean} and std {std}", cure):
        images = normalise(torch.from_numpy(pixels), said)
        if (
            not images.isfinite().all()
            or not all(0 <= one <= 1 for one in mean)
            or not all(0 < one <= 1 for one in std)
        ):
            raise ValueError("out of range")
    prompts = task.prompts()
    with torch.no_grad(), compute_context(CPU, precision):
        cure = "set its preprocess_cfg's size to the images that the model takes"
        with named(f"encode_image does not take {height} x {width} pixels", cure):
            image_BD = model.encode_image(images[:1], normalize=True).float()
        cure = "its text_cfg has to have the context_length and vocab_size of its weights"
        with named("encode_text does not take a prompt's tokens", cure):
            tokens = backbone.tokenizer([max(prompts, key=len), prompts[-1]])
            text_CD = encode_text(model, cut(model, tokens)).float()
        with named("features of images and texts do not fit one another", "both towers need one embed_dim"):
            scores = logits(model, image_BD, text_CD)
    lengths = torch.cat([image_BD, text_CD]).norm(dim=-1)
    if not scores.isfinite().all() or not (lengths > SHORTEST).all():
        raise BackboneError(
            f"backbone {spec.name}, task {task.name}: features are NaN, infinite or all 0 in {precision}; copy its "
            "weights anew, look at its logit_scale, or give --training.precision fp32"
        )
    return images, tokens


def _try_training(backbone: Backbone, task: Task, config: Experiment, method: Method, precision: str) -> None:
    """Takes one training step, without its update, on the whole model or on adapters."""
    batch = _encode(backbone, task, precision)
    if method.adapter == "full":
        _step(backbone, backbone.trainable, batch, config, precision)
        return
    with lora.attach(backbone, **method.lora.form, seed=config.seed) as attached:
        _step(backbone, attached.parameters(), batch, config, precision)


def _step(
    backbone: Backbone,
    parameters: Mapping[str, nn.Parameter],
    batch: tuple[Tensor, Tensor],
    config: Experiment,
    precision: str,
) -> None:
    finite: dict[str, bool] = {}

    def take(name: str, parameter: nn.Parameter) -> None:
        assert parameter.grad is not None, "it was just accumulated"
        finite[name], parameter.grad = bool(parameter.grad.isfinite().all()), None  # never all of them in memory

    hooks = [one.register_post_accumulate_grad_hook(partial(take, name)) for name, one in parameters.items()]
    try:
        with _named(backbone, None, f"a training step in {precision} fails", "give another backbone or precision"):
            classifier = ClipClassifier(backbone.model)
            train_mode(classifier)
            with torch.enable_grad(), compute_context(CPU, precision):
                scores = logits(backbone.model, *classifier(*batch))
                labels = torch.zeros(len(scores), dtype=torch.long)
                loss = classification_loss(scores, labels, config.training.label_smoothing)
            loss.backward()
    finally:
        for hook in hooks:
            hook.remove()
    about = f"backbone {backbone.spec.name}:"
    lost = next((name for name, good in finite.items() if not good), None)
    if lost is not None or not loss.isfinite():
        raise BackboneError(
            f"{about} its first training step in {precision} gives NaN or infinity ({lost or 'the loss'}); look at its "
            "weights and logit_scale, at lora.std and lora.scale where adapters are trained, or give "
            "--training.precision fp32"
        )
    missing = [name for name in parameters if name not in finite]
    if missing and config.training.workers > 1:
        raise BackboneError(
            f"{about} {len(missing)} of {len(parameters)} parameters get no gradient, such as {missing[0]}, so that "
            "several workers cannot train it together; give --training.workers 1"
        )


@contextmanager
def _named(backbone: Backbone, task: Task | None, what: str, cure: str) -> Iterator[None]:
    """Says of any error inside which backbone and task it is about, what failed and what to do."""
    try:
        yield
    except Exception as error:
        who = f"backbone {backbone.spec.name}" + (f", task {task.name}" if task else "")
        why = textwrap.shorten(f"{type(error).__name__} {error}".strip(), 200, placeholder=" ...")
        raise BackboneError(f"{who}: {what} ({why}); {cure}") from error


@contextmanager
def _as_before(model: nn.Module, threads: int) -> Iterator[None]:
    """Leaves a model's buffers and mode, the random states and torch's threads as they were."""
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    modes = [(module, module.training) for module in model.modules()]
    state, before = random.getstate(), torch.get_num_threads()
    torch.set_num_threads(threads)  # a pod's share of a large machine is less than torch sees
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        torch.set_num_threads(before)
        random.setstate(state)
        for module, mode in modes:
            module.training = mode
        with torch.no_grad():
            for name, buffer in model.named_buffers():
                buffer.copy_(buffers[name])


def _kept(config: Experiment, key: str) -> dict[str, Any] | None:
    try:
        verdict: dict[str, Any] = read_sealed(verdict_path(checked_folder(config.storage), key), required=True)
        return verdict
    except (OSError, ArtifactError):
        return None  # none yet, or damaged: try again


def _keep(config: Experiment, key: str, verdict: Mapping[str, Any]) -> None:
    path = verdict_path(checked_folder(config.storage), key)
    try:
        write_sealed(path, verdict)
    except WriteError as error:
        log.warning("%s: a verdict on the backbone is not kept (%s)", path, error)
