"""Measurements: one sealed JSON file a measurement, `<storage>/evaluations/<key>.json`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from condu_ray.store.artifacts import ArtifactError, read_sealed, write_sealed
from condu_ray.store.backend import backend
from condu_ray.store.layout import measurement_path
from condu_ray.store.location import Place


@dataclass(frozen=True)
class Accuracy:
    """How well some weights do on a task's test images, and what else was found of them meanwhile.

    Attributes:
        correct: images that were classified rightly.
        images: images that were looked at, at least one.
        seconds: wall time.
        relative_l2: of a learned task of a method that merges: how far what is served is from the expert, as
            `merging.reconstruction` has it.
        relative_l2_error: standard error of `relative_l2` where it was estimated; None where it is the whole figure.
        sign_agreement: likewise, the share of equal signs.
        rescaler: the task's rescaler, where the method has one.
        temperature: of a learned task's own expert: fitted on the task's validation images, where there are some.
        calibration_before: expected calibration error of that expert over the task's own classes, in points, at
            temperature 1.
        calibration_after: the same at `temperature`.
        run: the trial of a sweep that had it measured; None where none did, or an earlier release wrote it.
    """

    correct: int
    images: int
    seconds: float
    relative_l2: float | None = None
    sign_agreement: float | None = None
    rescaler: float | None = None
    temperature: float | None = None
    calibration_before: float | None = None
    calibration_after: float | None = None
    relative_l2_error: float | None = None
    run: str | None = field(default=None, compare=False)

    @property
    def percent(self) -> float:
        """Accuracy in percent."""
        return 100 * self.correct / self.images


FIELDS = tuple(one.name for one in fields(Accuracy))


def write_measurement(storage: Place, key: str, found: Accuracy) -> None:
    """Writes what was measured, atomically.

    Args:
        storage: storage folder.
        key: the measurement's identity.
        found: what was measured.

    Raises:
        WriteError: the disk is full or fails; there is no such measurement then.
    """
    values = {name: value for name, value in asdict(found).items() if value is not None}
    write_sealed(measurement_path(storage, key), values)


def has_measurement(storage: Place, key: str) -> bool:
    """Whether a measurement is there, right or damaged."""
    path = measurement_path(storage, key)
    return backend(path).exists(path)


def read_measurement(storage: Place, key: str) -> Accuracy | None:
    """Returns a measurement, or None when there is none.

    Raises:
        ArtifactError: the file is damaged, another measurement's, or holds what cannot have been measured.
    """
    path = measurement_path(storage, key)
    try:
        found = read_sealed(path)
    except FileNotFoundError:
        return None
    if wrong := _wrong(found):
        raise ArtifactError(f"{path}: {wrong}; remove it to have it measured again")
    return Accuracy(**{"seconds": 0.0} | found)


def _wrong(found: Mapping[str, Any]) -> str | None:
    """What cannot be right with a measurement, which a file from before there were seals may hold."""
    correct, images = found.get("correct"), found.get("images")
    if type(correct) is not int or type(images) is not int or not 0 <= correct <= images or images < 1:
        return f"{correct!r} of {images!r} images is no measurement"
    for name, value in found.items():
        if name not in FIELDS:
            return f"{name!r} is no part of a measurement"
        if name == "run" and isinstance(value, str):
            continue
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if value is not None and (not number or math.isinf(value)):
            return f"{name} is {value!r}"
    return None
