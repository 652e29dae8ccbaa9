"""Learn a task, measure it: what `condu_ray.fine_tune` and its neighbours are; one process, no Ray, no storage.

Each of them takes a backbone at its pretrained weights theta0 and leaves it there.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from condu_ray import benchmark
from condu_ray.benchmark import Task, TaskError
from condu_ray.benchmark.ingest.bring import bring
from condu_ray.benchmark.mini_mtil.draw import MINI_MTIL_DEFAULT, MINI_MTIL_TASKS, MINI_MTIL_VERSION, mini_mtil
from condu_ray.benchmark.subset import read_labels
from condu_ray.benchmark.tasks import TEST
from condu_ray.config import Experiment
from condu_ray.face.settings import changed
from condu_ray.learn.evaluate import Accuracy, Evaluator
from condu_ray.learn.features import PRETRAINED, Weights
from condu_ray.learn.loop import Progress
from condu_ray.learn.precision import resolved_precision
from condu_ray.learn.retry import local_stream
from condu_ray.merging.delta import Delta, check_delta
from condu_ray.methods import get
from condu_ray.methods.registry import MethodError
from condu_ray.methods.training import Worker, train_expert
from condu_ray.store.location import Place, given, home
from condu_ray.vlm import model as vlm
from condu_ray.vlm.model import Backbone, set_weights
from condu_ray.vlm.texts import check_texts


def load_backbone(model: str = "tiny-clip", pretrained: str | None = None, preprocess: str | None = None) -> Backbone:
    """Loads a CLIP-like model in fp32 on the CPU; what a run would say of it first is a warning here.

    Args:
        model: `tiny-clip` (2.2 M parameters, in the package), an open_clip architecture such as `ViT-B-16`, a folder in
            open_clip's form, or `hf-hub:org/name`.
        pretrained: an open_clip tag such as `openai`, a file of weights (safetensors, or a state dict or checkpoint of
            torch), or a folder in open_clip's form.
        preprocess: for a file of weights, the tag whose mean, std and resizing its weights were trained with.

    Raises:
        BackboneError: nothing of that name, or its weights cannot be read.
    """
    backbone = vlm.load_backbone(vlm.backbone_spec(model, pretrained, preprocess))
    for note in backbone.notes:
        warnings.warn(note, stacklevel=2)
    return backbone


def load_tasks(
    folder: str | Place | None = None, names: Sequence[str] | None = None, *, cache: str | Place | None = None
) -> list[Task]:
    """Loads tasks in the order in which they are to be learned.

    Args:
        folder: folder of task folders (`train.parquet`, `test.parquet`, `meta.json`), or data in another form (class
            folders, Parquet of Hugging Face, WebDataset, CSV), which is converted once; None: mini-MTIL, drawn.
        names: which, in which order; None: all of the folder, or mini-MTIL's default six.
        cache: where mini-MTIL is drawn and data are converted, once; None: `condu_ray` in XDG_CACHE_HOME or ~/.cache.

    Raises:
        TaskError: a task is not there or not what it should be, or a folder's name is empty. Images are not looked at
            (`condu_ray.benchmark.require_valid` does).
    """
    for name, place in (("folder", folder), ("cache", cache)):
        if place is not None and not str(place).strip():
            raise TaskError(f"{name}: is empty; give the name of a folder, such as . for the one you are in")
    own = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "condu_ray"
    made = own if cache is None else Path(home(str(cache)))
    if folder is not None:
        return bring(given(folder), made, names)
    names = names or MINI_MTIL_DEFAULT
    drawn = made / f"mini_mtil-{MINI_MTIL_VERSION}"
    mini_mtil(drawn, tasks=[name for name in MINI_MTIL_TASKS if name in names])
    return benchmark.load_tasks(drawn, names)


def fine_tune(
    backbone: Backbone,
    task: Task,
    *,
    steps: int | None = None,
    lr: float | None = None,
    seed: int | None = None,
    lora: int | None = None,
    method: str | None = None,
    start: Delta | None = None,
    config: Experiment | None = None,
    report: Callable[[Progress], None] = lambda progress: None,
) -> Delta:
    """Fine-tunes an expert for one task, as a training worker does: the same settings give the same expert.

    Args:
        backbone: the model, at theta0.
        task: what is learned.
        steps: optimizer steps.
        lr: peak learning rate of AdamW, of LoRA factors too.
        seed: of data order and augmentation.
        lora: rank of LoRA factors, which are trained in place of the whole model.
        method: whose objective trains (`lwf`, `zscl`, ...), by its `--method` name; None: plain fine-tuning.
        start: an expert's delta that training goes on from, which sequential methods do; None: theta0.
        config: all other settings, and those that are None here; default: the recipe `mini_mtil`.
        report: called after every step.

    Returns:
        The weight delta to theta0, {parameter name: float32 tensor on the CPU}.

    Raises:
        MethodError: there is no such method, or it cannot be trained so.
        TaskError: prompts are too long (`config.long_prompts`), or classes are the same text to the backbone; or a
            label is null or no class.
        DivergedError: the loss lost its numbers; a lower `lr` may do.
        LoraError: the rank does not fit the backbone.
        ValidationError: a setting is out of range.
        ValueError: `start` is another model's, or holds NaN or infinity.
    """
    rates = {} if lr is None else {"lr": lr, "lr_by_task": {task.name: lr}}  # wins over the task's own
    settings = changed(
        Experiment,
        config,
        {
            "seed": seed,
            "training": {"steps": steps, **rates},
            "lora": {"rank": lora, **rates},
            "pam": {"rank": lora, "lr": lr},
        },
    )
    chosen = get(method or ("condu-lora" if lora else "individual"), settings)
    who = f"method {chosen.name}"
    if lora and chosen.adapter != "lora":
        raise MethodError(f"{who} trains the whole model: leave out lora, or name a method that trains LoRA factors")
    if start is not None and chosen.adapter == "lora":
        raise MethodError(f"{who} trains LoRA factors, which begin at theta0 here: leave out start")
    if chosen.starts_from == "nothing":
        raise MethodError(f"{who} trains nothing")
    if start is not None and "exemplars" in chosen.needs:
        raise MethodError(f"{who} rehearses exemplars of earlier tasks, which only a run keeps: run it")
    training, preprocess = chosen.config.training, backbone.spec.preprocess
    precision, device = resolved_precision(training.precision, torch.cuda.is_available()), _device()
    check_texts(backbone.tokenizer, task, backbone.spec.name, cut=settings.long_prompts == "cut")
    read_labels(task)
    stream = local_stream(chosen.config, task, preprocess)
    with _at_theta0(backbone, start) as theta0:
        trained = train_expert(
            chosen,
            task,
            stream,
            backbone=backbone,
            theta0=theta0,
            precision=precision,
            position=0 if start is None else 1,
            start=start,
            worker=Worker(prepare=lambda classifier: classifier.to(device)),
            report=report,
        )
    assert trained is not None, "the first worker returns its expert"
    return trained.delta


def evaluate(
    backbone: Backbone,
    task: Task,
    delta: Delta | None = None,
    *,
    among: Sequence[Task] = (),
    max_images: int = 0,
    batch_size: int = 250,
    precision: str = "auto",
    long_prompts: Literal["refuse", "cut"] = "refuse",
) -> Accuracy:
    """Measures accuracy on a task's test images, on the GPU if there is one.

    Args:
        backbone: the model, at theta0.
        task: whose test images.
        delta: what is added to theta0; None: nothing (zero-shot).
        among: tasks whose classes predictions choose from, `task` among them; empty: the task's own.
        max_images: test images to use, in proportion to the classes; 0: all.
        batch_size: images a forward pass.
        precision: `fp32`, `bf16`, or `auto` as in a run.
        long_prompts: whether prompts of more tokens than the backbone reads are refused, or cut.

    Raises:
        TaskError: prompts are too long, or classes are the same text to the backbone; or a label is null or no class.
        ValueError: the delta is another model's, or holds NaN or infinity; `among` lacks the task; or there is no such
            precision or number of images.
    """
    if among and task.name not in [other.name for other in among]:
        raise ValueError(f"among: has no task {task.name}, whose images are measured; add it")
    if max_images < 0:
        raise ValueError(f"max_images {max_images}: give a number of images, or 0 for all")
    for one in among or (task,):
        check_texts(backbone.tokenizer, one, backbone.spec.name, cut=long_prompts == "cut")
    read_labels(task, TEST)
    with _at_theta0(backbone, delta):
        evaluator = Evaluator(
            backbone,
            batch_size=batch_size,
            max_images=max_images,
            precision=resolved_precision(precision, torch.cuda.is_available()),
            device=_device(),
        )
        return evaluator.known(task, PRETRAINED if delta is None else Weights("delta", lambda: delta), among)


def _device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


@contextmanager
def _at_theta0(backbone: Backbone, delta: Delta | None) -> Iterator[dict[str, Tensor]]:
    """Yields theta0, which the weights are again at the end; refuses another model's delta, and what is no number."""
    trainable = backbone.trainable
    if strange := [name for name in delta or () if name not in trainable]:
        raise ValueError(f"delta: {strange[0]!r} is no parameter of backbone {backbone.spec.model}")
    if delta:
        check_delta(delta)
    for name, tensor in (delta or {}).items():
        mine, given = tuple(trainable[name].shape), tuple(tensor.shape)
        if given != mine:  # which torch would stretch where it can
            raise ValueError(f"delta: {name!r} has shape {given}, in backbone {backbone.spec.model} {mine}")
    theta0 = backbone.snapshot()
    try:
        yield theta0
    finally:
        set_weights(backbone, theta0, None)
