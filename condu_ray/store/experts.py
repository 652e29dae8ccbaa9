"""Experts on disk: one artifact an expert, its key the hash of all that it depends on.

Every expert has its delta (`delta.safetensors`) and some of its values apart (`sample.safetensors`, which experts of
earlier releases lack); one that was trained as LoRA also has its factors, and one whose method replays also has its
exemplars.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from condu_ray.config import Training, content_hash
from condu_ray.store import artifacts
from condu_ray.store.layout import expert_folder
from condu_ray.store.location import Place

if TYPE_CHECKING:
    from torch import Tensor

    from condu_ray.merging.fidelity_sample import Sample

Form = Literal["delta", "factors"]
"""The form of an expert: weight deltas by parameter name, or LoRA factors."""
FILES: dict[Form, str] = {"delta": "delta.safetensors", "factors": "factors.safetensors"}
SAMPLE = "sample.safetensors"
"""Some of a delta's values, by which it is judged how near to it is what serves its task."""
VERSION = 2
"""Raised whenever fine-tuning changes in a way that changes experts."""


def expert_key(
    *,
    backbone: str,
    data: str,
    task: str,
    training: Training,
    precision: str,
    seed: int,
    start: str | None,
    added: Mapping[str, Any] | None = None,
) -> str:
    """Returns an expert's key (24 hex digits).

    Args:
        backbone: theta0's fingerprint.
        data: fingerprint of the task's training data, class names and templates.
        task: name, for the task's own learning rate.
        training: hyperparameters; those that only say where and how fast it runs do not count.
        precision: `fp32` or `bf16`, resolved.
        seed: the run's seed.
        start: key of the expert, or identity of the state, that training starts from; None for theta0.
        added: what the method adds to plain fine-tuning; empty or None for nothing, so that all plain experts agree.
    """
    settings = training.identity_for(task) | {"precision": precision}
    return content_hash([VERSION, backbone, data, settings, seed, start, *([added] if added else [])])[:24]


def save_expert(
    storage: Place,
    key: str,
    delta: dict[str, Tensor],
    meta: dict[str, Any],
    files: Mapping[str, Callable[[Path], None]] | None = None,
) -> None:
    """Publishes an expert's delta with what it was made from.

    Args:
        storage: storage folder.
        key: the expert's key.
        delta: by parameter name.
        meta: what the manifest records.
        files: further files of the artifact: name to a function that writes it.

    Raises:
        WriteError: the disk is full or fails; nothing appeared.
    """
    from condu_ray.merging.fidelity_sample import sample  # loads torch, which who counts files does without

    def write(folder: Path) -> None:
        artifacts.save_tensors(folder / FILES["delta"], delta)
        if any(tensor.numel() for tensor in delta.values()):
            artifacts.save_tensors(folder / SAMPLE, sample(delta).tensors())
        for name, save in (files or {}).items():
            save(folder / name)

    counts = {
        "parameters": sum(tensor.numel() for tensor in delta.values()),
        "changed": sum(int(tensor.count_nonzero()) for tensor in delta.values()),
    }
    artifacts.publish(expert_folder(storage, key), meta | counts, write, seal=True)


def expert_size(storage: Place, key: str) -> tuple[int, int | None]:
    """Returns how many parameters an expert's delta has, and how many are not zero; None: by an earlier release.

    Raises:
        ArtifactError: its manifest is missing or damaged.
    """
    meta = artifacts.read_meta(expert_folder(storage, key))
    if isinstance(parameters := meta.get("parameters"), int):
        return parameters, meta.get("changed")
    return sum(tensor.numel() for tensor in load_expert(storage, key).values()), None


def load_sample(storage: Place, key: str) -> Sample:
    """Loads the sample of an expert's delta; of an expert that was published without one it is made.

    Raises:
        ArtifactError: it is missing, damaged or another one's.
    """
    from condu_ray.merging.fidelity_sample import Sample, sample

    folder = expert_folder(storage, key)
    if SAMPLE not in artifacts.read_meta(folder)["files"]:
        return sample(load_expert(storage, key))
    try:
        return Sample.of(artifacts.load_tensors(folder, SAMPLE))
    except ValueError as error:
        raise artifacts.ArtifactError(
            f"{folder}: {SAMPLE} is {error}; remove {folder} to have it made again"
        ) from error


def adoptable(storage: Place, key: str, same: str | None) -> bool:
    """Whether `adopt_expert` would try: an expert is there under the other key alone. Writes nothing, verifies nothing.

    Args:
        storage: storage folder.
        key: the key that is asked for.
        same: the key that the same expert may have been published under; None where there is no other.
    """
    if same is None or artifacts.exists(expert_folder(storage, key)):
        return False
    return artifacts.exists(expert_folder(storage, same))


def adopt_expert(storage: Place, key: str, same: str) -> bool:
    """Publishes an expert under a second key, for settings that would have made the same one.

    Args:
        storage: storage folder.
        key: the second key; what is there already stays.
        same: the key that it may have been published under.

    Returns:
        Whether it was adopted; a damaged one is not.

    Raises:
        WriteError: the disk is full or fails; nothing appeared.
    """
    if not adoptable(storage, key, same):
        return False
    source, target = expert_folder(storage, same), expert_folder(storage, key)
    try:
        meta = artifacts.read_meta(source)
        paths = [artifacts.verified(source, name) for name in meta["files"]]
    except artifacts.ArtifactError:
        return False

    def write(folder: Path) -> None:
        for path in paths:
            artifacts.link(path, folder / path.name)

    artifacts.publish(
        target, meta | {"key": key, "adopted": same, "trained_by": meta.get("versions")}, write, seal=True
    )
    return True


def load_expert(storage: Place, key: str, form: Form = "delta") -> dict[str, Tensor]:
    """Loads an expert's delta or factors.

    Raises:
        ArtifactError: it is missing, damaged or another one's, or has no factors.
    """
    return artifacts.load_tensors(expert_folder(storage, key), FILES[form])
