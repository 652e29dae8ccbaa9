"""Experts on disk: one artifact an expert, its key the hash of all that it depends on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from condu_ray.config import Training, content_hash
from condu_ray.store import artifacts

FILE = "delta.safetensors"
VERSION = 1
"""Raised whenever fine-tuning changes in a way that changes experts."""


def expert_key(
    *, backbone: str, data: str, task: str, training: Training, precision: str, seed: int, start: str | None
) -> str:
    """Returns an expert's key (24 hex digits).

    Args:
        backbone: theta0's fingerprint.
        data: fingerprint of the task's training data, class names and templates.
        task: name, for the task's own learning rate.
        training: hyperparameters; those that only say where and how fast it runs do not count.
        precision: `fp32` or `bf16`, resolved.
        seed: the run's seed.
        start: key of the expert whose weights training starts from; None for theta0.
    """
    settings = training.recipe_for(task) | {"precision": precision}
    return content_hash([VERSION, backbone, data, settings, seed, start])[:24]


def expert_folder(storage: Path, key: str) -> Path:
    """Returns `<storage>/experts/<key>`."""
    return storage / "experts" / key


def save_expert(storage: Path, key: str, delta: dict[str, Tensor], meta: dict[str, Any]) -> None:
    """Publishes an expert's delta with what it was made from."""
    artifacts.publish(expert_folder(storage, key), meta, lambda folder: artifacts.save_tensors(folder / FILE, delta))


def load_expert(storage: Path, key: str) -> dict[str, Tensor]:
    """Loads an expert's delta.

    Raises:
        ArtifactError: it is missing or damaged.
    """
    return artifacts.load_tensors(expert_folder(storage, key), FILE)
