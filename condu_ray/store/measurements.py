"""Measurements: one sealed JSON file a measurement, `<storage>/evaluations/<key>.json`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from condu_ray.store.artifacts import ArtifactError, read_sealed, write_sealed
from condu_ray.store.layout import measurement_path
from condu_ray.store.location import Place

FIELDS = ("correct", "images", "seconds", "relative_l2", "sign_agreement", "rescaler")
"""What a measurement may hold; `correct` and `images` it always does."""


def write_measurement(storage: Place, key: str, found: Mapping[str, Any]) -> None:
    """Writes what was measured, atomically.

    Args:
        storage: storage folder.
        key: the measurement's identity.
        found: numbers among `FIELDS`.

    Raises:
        WriteError: the disk is full or fails; there is no such measurement then.
    """
    write_sealed(measurement_path(storage, key), found)


def read_measurement(storage: Place, key: str) -> dict[str, Any] | None:
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
    return found


def _wrong(found: Mapping[str, Any]) -> str | None:
    """What cannot be right with a measurement, which a file from before there were seals may hold."""
    correct, images = found.get("correct"), found.get("images")
    if type(correct) is not int or type(images) is not int or not 0 <= correct <= images or images < 1:
        return f"{correct!r} of {images!r} images is no measurement"
    for name, value in found.items():
        if name not in FIELDS:
            return f"{name!r} is no part of a measurement"
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if value is not None and (not number or math.isinf(value)):
            return f"{name} is {value!r}"
    return None
