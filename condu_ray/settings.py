"""The base of all settings: frozen pydantic models whose content can be hashed, and what keys take of them."""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections.abc import Mapping, Set
from typing import Any, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

from condu_ray.store.location import Location

SAFE_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"
"""Names of runs and tasks become folder names: no separator, no leading dot."""
SMALLEST, LARGEST = 2.0**-126, (2 - 2.0**-23) * 2.0**127
"""Magnitudes of float32's normal numbers: of others torch makes 0 or infinity, or says that they overflow."""


def content_hash(value: Any) -> str:
    """Returns the sha256 (hex) of a JSON-serialisable value in canonical form."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def split_names(value: Any) -> Any:
    """Takes `a,b,c`, as it comes from YAML, for a list; empty parts do not count.

    Raises:
        ValueError: a set, whose order is another one in every process.
    """
    if isinstance(value, Set):
        raise ValueError("is a set, which has no order; give a list")
    parts = value.split(",") if isinstance(value, str) else value
    if isinstance(parts, list | tuple):
        return tuple(part.strip() if isinstance(part, str) else part for part in parts if part != "")
    return value


def once_each(value: tuple[str, ...] | None) -> tuple[str, ...] | None:
    """Checks names of which there has to be one, and none twice; None may stay.

    Raises:
        ValueError: there is none, or one is repeated.
    """
    if value is not None and not value:
        raise ValueError("is empty: name at least one")
    repeated = sorted({name for name in value or () if (value or ()).count(name) > 1})
    if repeated:
        raise ValueError(f"names {', '.join(repeated)} more than once")
    return value


def flatten(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns nested settings by dotted names."""
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        inner = isinstance(value, Mapping) and value
        flat |= flatten(value, f"{prefix}{key}.") if inner else {prefix + key: value}
    return flat


_OLD_PROTOCOL = {"task": ("task",), "union": ("task", "union")}
"""What `label_space`, the old name of `protocol`, stands for."""


def without_old_names(given: Mapping[str, Any]) -> dict[str, Any]:
    """Returns settings that somebody gave, `label_space` replaced by the `protocol` that it stands for.

    Raises:
        ValueError: both are given, and contradict one another.
    """
    values = dict(given)
    old = values.pop("label_space", None)
    meant = _OLD_PROTOCOL.get(str(old))
    if meant is None:
        return dict(given)  # none, or one that its field refuses
    named = split_names(values.get("protocol"))
    if isinstance(named, tuple) and sorted(map(str, named)) != sorted(meant):
        raise ValueError(
            f"label_space {old} is the old name of protocol {','.join(meant)}, and protocol is "
            f"{','.join(map(str, named))}: give protocol alone"
        )
    return values | {"protocol": meant if named is None else named}


def _of_numbers(annotation: Any) -> bool:
    """Whether a field takes a number, also one that may be left out (`int | None`) or numbers by key."""
    return annotation in (int, float) or any(_of_numbers(part) for part in get_args(annotation))


class Settings(BaseModel):
    """Base of all parts of the configuration: frozen, no unknown field, docstrings as help."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth_for_a_number(cls, value: Any, info: ValidationInfo) -> Any:
        if not _of_numbers(cls.model_fields[str(info.field_name)].annotation):
            return value
        if isinstance(value, bool):
            raise ValueError("is a truth value; give a number")
        for key, number in value.items() if isinstance(value, Mapping) else ():
            if isinstance(number, bool):
                raise ValueError(f"has a truth value for {key}; give a number")
        return value

    @field_validator("*")
    @classmethod
    def _no_number_beyond_float32(cls, value: Any) -> Any:
        for number in value.values() if isinstance(value, Mapping) else (value,):
            if isinstance(number, float) and number and not SMALLEST <= abs(number) <= LARGEST:
                raise ValueError(f"is {number:g}: a model's numbers are from {SMALLEST:.2g} to {LARGEST:.2g}")
        return value

    @field_validator("*")
    @classmethod
    def _no_control_characters(cls, value: Any) -> Any:
        texts = value if isinstance(value, tuple) else (value,)
        for text in texts:
            if isinstance(text, str | Location) and any(
                unicodedata.category(sign) in ("Cc", "Cs") for sign in str(text)
            ):
                raise ValueError("holds a control character; write it without")
        return value

    def identity(self, **which: Any) -> dict[str, Any]:
        """Returns what keys hash of these settings, as JSON values.

        A setting that was added later (`late`) counts only where it differs from its default, so that keys that were
        made before there was such a setting stay what they were.

        Args:
            **which: `include` and `exclude`, as pydantic's `model_dump` takes them.
        """
        return _without_defaults(self, self.model_dump(mode="json", **which))


def whole_above_one(value: float | None) -> float | None:
    """Checks a number of GPUs as Ray gives them out: a part of one, or whole ones.

    Raises:
        ValueError: it is neither.
    """
    if value is not None and value > 1 and value != int(value):
        raise ValueError(
            f"is {value:g}: Ray gives out a part of a GPU, or whole ones; give {int(value)} or {int(value) + 1}"
        )
    return value


def late(default: Any, *, before: Any = None, **constraints: Any) -> Any:
    """Declares a setting that an earlier release had not; every new one is to be declared by this.

    Args:
        default: where nobody gives it.
        before: what the earlier release did, where the default is another: keys leave the setting out at this value.
        **constraints: as pydantic's `Field` takes them.
    """
    return Field(
        default, json_schema_extra={"late": True, "before": default if before is None else before}, **constraints
    )


def _without_defaults(settings: Settings, kept: dict[str, Any]) -> dict[str, Any]:
    for name, field in type(settings).model_fields.items():
        value, added = getattr(settings, name), field.json_schema_extra
        if name in kept and isinstance(added, dict) and value == added["before"]:
            del kept[name]
        elif name in kept and isinstance(value, Settings):
            kept[name] = _without_defaults(value, kept[name])
    return kept
