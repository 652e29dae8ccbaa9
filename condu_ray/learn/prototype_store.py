"""What class prototypes are made of, in storage: it depends on theta0 and a task's training images and names alone."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from torch import Tensor
from torch.nn import functional

from condu_ray.benchmark import Task
from condu_ray.benchmark.few_shot import source_fingerprint
from condu_ray.config import content_hash
from condu_ray.store import artifacts
from condu_ray.store.layout import prototype_folder
from condu_ray.store.location import Place
from condu_ray.vlm.moments import Moments
from condu_ray.vlm.prototypes import class_prototypes

FILE = "features.safetensors"
VERSION = "3"
"""Raised whenever what prototypes are made of changes; 3 has the routers' moments beside them."""


def prototype_key(backbone: str, task: Task, images: str = "training") -> str:
    """Returns the key (24 hex digits) of a task's prototypes: theta0, the training images, class names, templates.

    Args:
        backbone: theta0's fingerprint.
        task: the task.
        images: `training`, or `all` of those that a few-shot task's were drawn from.
    """
    data = source_fingerprint(task) if images == "all" else task.train_fingerprint
    return content_hash([VERSION, backbone, data])[:24]


def has_prototypes(storage: Place, backbone: str, task: Task, images: str = "training") -> bool:
    """Whether a task's prototypes are there; arguments as of `prototype_key`."""
    return artifacts.exists(prototype_folder(storage, prototype_key(backbone, task, images)))


def save_prototypes(storage: Place, backbone: str, task: Task, sums: Tensor, text: Tensor, moments: Moments) -> None:
    """Publishes what a task's prototypes and routers are made of; what is there already wins.

    Args:
        storage: storage folder.
        backbone: theta0's fingerprint.
        task: the task.
        sums: [C, D] float64, sums of the training images' features by class.
        text: [C, D] float32, sums over the templates of the prompts' features.
        moments: counts, sums and second moments of the same images.
    """
    meta = {"task": task.name, "backbone": backbone, "images": moments.images}
    exact = {f"moments.{name}": tensor for name, tensor in moments.tensors().items()}
    write = partial(_save, {"sums": sums, "counts": moments.counts.clone(), "text": text} | exact)
    artifacts.publish(prototype_folder(storage, prototype_key(backbone, task)), meta, write, seal=True)


def _save(tensors: dict[str, Tensor], folder: Path) -> None:
    artifacts.save_tensors(folder / FILE, tensors)


def _load(storage: Place, backbone: str, task: Task, images: str) -> dict[str, Tensor]:
    folder = prototype_folder(storage, prototype_key(backbone, task, images))
    if not artifacts.exists(folder):
        raise artifacts.ArtifactError(
            f"{folder}: the prototypes of task {task.name} are not there: they were removed, or an earlier condu_ray "
            "made others; give the run's (or its sweep's) own command again, which makes them, or name the task"
        )
    return artifacts.load_tensors(folder, FILE)


def load_prototypes(
    storage: Place, backbone: str, task: Task, kind: str, *, images: str = "training", text: str = "unit"
) -> Tensor:
    """Returns a task's class prototypes: [C, D] float32, L2-normalised.

    Args:
        storage: storage folder.
        backbone: theta0's fingerprint.
        task: the task.
        kind: `both`, `image` or `text`: what they are made of.
        images: `training`, or `all` of those that a few-shot task's were drawn from.
        text: `unit`: the mean over templates is brought to length 1; `mean`: it is not.

    Raises:
        ArtifactError: the features are missing or damaged.
    """
    found = _load(storage, backbone, task, images)
    sums = found["text"]
    text_CD = functional.normalize(sums, dim=-1) if text == "unit" else sums / len(task.templates)
    return class_prototypes(found["sums"], found["counts"], text_CD, kind, task.classes)


def load_moments(storage: Place, backbone: str, task: Task, *, images: str = "training") -> tuple[Moments, Tensor]:
    """Returns what routers are made of: a task's moments, and its prompts' features [C, D] float32, L2-normalised.

    Args:
        storage: storage folder.
        backbone: theta0's fingerprint.
        task: the task.
        images: `training`, or `all` of those that a few-shot task's were drawn from.

    Raises:
        ArtifactError: the features are missing or damaged.
    """
    found = _load(storage, backbone, task, images)
    exact = {name.removeprefix("moments."): tensor for name, tensor in found.items() if name.startswith("moments.")}
    return Moments.from_tensors(exact), functional.normalize(found["text"], dim=-1)
