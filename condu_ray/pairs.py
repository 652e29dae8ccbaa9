"""Keys and values as flags have them: `a=1,b=2`, or JSON."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from contextlib import suppress
from typing import Any

_COMMA = re.compile(r',(?=(?:[^"]*"[^"]*")*[^"]*$)')
"""A comma that is not between quotes."""


class _TwiceError(Exception):
    """A key that an object of JSON has twice."""


def key_twice(flags: Mapping[str, Any], mappings: Collection[str]) -> tuple[str, str] | None:
    """Returns the first flag that gives a key twice, and the key: pydantic-settings would take the last, as JSON does.

    Args:
        flags: What the command line has, by the flags' names: texts, or lists of them.
        mappings: Flags that take keys and values.
    """
    for flag, value in flags.items():
        keys: list[str] = []
        try:
            for text in value if isinstance(value, list) else [value]:
                keys += _keys(text.strip(), flag in mappings) if isinstance(text, str) else []
            _object([(key, None) for key in keys])
        except _TwiceError as error:
            return flag, str(error)
    return None


def _keys(text: str, is_mapping: bool) -> list[str]:
    if text.startswith("{"):
        with suppress(json.JSONDecodeError):  # which is told of where it is read
            return list(json.loads(text, object_pairs_hook=_object))
    elif is_mapping:
        parts = (part.partition("=") for part in _COMMA.split(text))
        return [key.strip().strip('"') for key, sign, _ in parts if sign]
    return []


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise _TwiceError(key)
        found[key] = value
    return found
