"""Features in storage: theta0's, which routing and zero-shot of all runs read, and those of experts for an ablation."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from condu_ray.benchmark import Task
from condu_ray.benchmark.label_space import Labels
from condu_ray.config import content_hash
from condu_ray.store import artifacts
from condu_ray.store.layout import feature_folder
from condu_ray.store.ledger import ROOT
from condu_ray.store.location import Place

FILE = "features.safetensors"
VERSION = 1
"""Raised whenever features change."""
CUT = "cut after the longest"
"""How prompts are encoded (`vlm/context.py`)."""


class FeatureStore:
    """Features of one model, by what they depend on: `<storage>/features/<key>`.

    Args:
        storage: storage folder.
        backbone: theta0's fingerprint.
        preprocess: open_clip's PreprocessCfg as a dict.
        device: kind of device that computes (`cpu`, `cuda`): others give other bits.
        weights: name of the model's weights, equal for equal ones; theta0's unless said.
    """

    def __init__(
        self, storage: Place, backbone: str, preprocess: Mapping[str, Any], device: str, weights: str = ROOT
    ) -> None:
        self._storage = storage
        self._identity = [VERSION, backbone, dict(preprocess), device, *([] if weights == ROOT else [weights])]

    def _path(self, kind: Literal["image", "text"], task: Task | Labels, precision: str, count: int) -> Place:
        what = [task.classes, task.templates, CUT] if kind == "text" else [_images(task), count]
        return feature_folder(self._storage, content_hash([*self._identity, kind, precision, what])[:24])

    def has(self, kind: Literal["image", "text"], task: Task | Labels, precision: str, count: int = 0) -> bool:
        """Whether features are there; arguments as of `load`."""
        return artifacts.exists(self._path(kind, task, precision, count))

    def load(
        self, kind: Literal["image", "text"], task: Task | Labels, precision: str, count: int = 0
    ) -> Tensor | None:
        """Returns features [N, D] or [C, D] float32, or None where they were not computed yet.

        Args:
            kind: of the task's test images, or of its classes.
            task: the task.
            precision: that they were computed in.
            count: test images that are used.

        Raises:
            ArtifactError: they are damaged.
        """
        path = self._path(kind, task, precision, count)
        return artifacts.load_tensors(path, FILE)["features"] if artifacts.exists(path) else None

    def save(
        self, features: Tensor, kind: Literal["image", "text"], task: Task | Labels, precision: str, count: int = 0
    ) -> None:
        """Publishes features; those that are there already win.

        Args:
            features: [N, D] or [C, D] float32.
            kind: of the task's test images, or of its classes.
            task: the task.
            precision: that they were computed in.
            count: test images that are used.
        """
        meta = {"task": task.name, "kind": kind, "precision": precision}
        write = partial(_save, features)
        artifacts.publish(self._path(kind, task, precision, count), meta, write, seal=True)


def _images(task: Task | Labels) -> str:
    assert isinstance(task, Task), "words have no images"
    return task.test_fingerprint


def _save(features: Tensor, folder: Path) -> None:
    artifacts.save_tensors(folder / FILE, {"features": features.contiguous()})
