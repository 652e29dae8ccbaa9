"""Seals: a JSON object that says what it is and carries its own checksum.

A file's checksum in a manifest finds damage to the file; the seal finds damage to the manifest itself, and to small
files that are all JSON, and it finds a file that was put in the place of another one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from condu_ray.settings import content_hash

FORMAT = 1
"""Raised whenever older releases would misread what newer ones write into storage."""
MARKS = ("format", "of", "seal")


class SealError(ValueError):
    """An object that is damaged, another one, or written by a newer release; the message says which."""


class NewerError(SealError):
    """One that a newer release wrote: nothing is wrong with it, and what it is of must not be removed."""


def told(error: Exception, damage: str, what: str) -> str:
    """Returns what a person reads of an object that cannot be opened: to remove what, unless there is nothing wrong."""
    if isinstance(error, PermissionError):
        return "may not be read by this user; change its permissions"
    return str(error) if isinstance(error, NewerError) else f"{damage}; remove {what} to have it made again"


def sealed(value: Mapping[str, Any], of: str) -> dict[str, Any]:
    """Returns an object with its seal.

    Args:
        value: JSON values; must survive a round trip through JSON.
        of: what the object is, such as the folder and the name that it is found by.
    """
    marked = {**value, "format": FORMAT, "of": of}
    return marked | {"seal": content_hash(marked)}


def opened(found: Any, of: str, *, required: bool = False) -> dict[str, Any]:
    """Returns a sealed object's content after its seal was found right.

    Args:
        found: what `json.loads` returned.
        of: what the object should be.
        required: whether to refuse an object without a seal.

    Returns:
        Its content without the marks. An object without any of them was written before there were seals; it is
        returned as it is.

    Raises:
        SealError: it is no object, damaged, or another one.
        NewerError: it is written by a newer release.
    """
    if not isinstance(found, dict):
        raise SealError(f"holds a {type(found).__name__} instead of an object")
    if not required and not any(mark in found for mark in MARKS):
        return found
    content = {name: value for name, value in found.items() if name not in MARKS}
    written = found.get("format")
    if isinstance(written, int) and written > FORMAT:
        raise NewerError(f"written by a newer condu_ray (format {written}, this one reads {FORMAT}): update condu_ray")
    if found.get("seal") != content_hash({name: value for name, value in found.items() if name != "seal"}):
        raise SealError("differs from its checksum")
    if found.get("of") != of:
        raise SealError(f"belongs to {found.get('of')!r}, not to {of!r}")
    return content
