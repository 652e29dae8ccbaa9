"""WebDataset: tar shards whose samples are neighbouring files of one key (`0001.jpg`, `0001.cls`).

The grouping is WebDataset's own: the key is a member's path up to the first dot of its name, the rest says what it is.
"""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from condu_ray.benchmark.ingest.source import (
    NAMES,
    Label,
    Sample,
    Source,
    by_split,
    is_picture,
    lines_of,
    templates_of,
)
from condu_ray.benchmark.meta import TaskError

ENDS = (".tar", ".tar.gz", ".tgz")
KEYS = ("class_name", "classname", "class", "label_name", "label", "cls", "category")
"""What a sample's JSON may call its class, by preference; words before numbers."""
_BYTES = 1 << 30
"""Largest member that is read."""


def shard_source(name: str, folder: Path, files: list[Path]) -> Source:
    """Returns the data set that shards hold.

    Raises:
        TaskError: some shards say their split and others do not.
    """
    notes: list[str] = []
    splits = by_split(folder, files, notes)
    return Source(
        name,
        folder,
        "WebDataset",
        {split: partial(_samples, folder, paths) for split, paths in splits.items()},
        tuple(path for paths in splits.values() for path in paths),
        names=lines_of(folder, NAMES),
        templates=templates_of(folder),
        official=True,
        notes=tuple(notes),
    )


def _samples(folder: Path, shards: list[Path]) -> Iterator[Sample]:
    for path in shards:
        shown = path.relative_to(folder) if path.is_relative_to(folder) else path
        try:
            for key, parts in _groups(path):
                yield _sample(f"{shown} key {key}", parts)
        except (OSError, tarfile.TarError, EOFError) as error:
            raise TaskError(f"{path}: cannot be read as tar ({error}); cut short? copy it anew") from error


def _groups(path: Path) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Yields each key with its parts by what they are (`jpg`, `cls`)."""
    key, parts = "", dict[str, bytes]()
    with tarfile.open(path, "r|*") as shard:
        for member in shard:
            folder, _, name = member.name.rpartition("/")
            if not member.isfile() or name.startswith((".", "__")):
                continue
            stem, _, end = name.partition(".")
            own = f"{folder}/{stem}".removeprefix("./").lstrip("/")
            if own != key and parts:
                yield key, parts
                parts = {}
            key = own
            file = shard.extractfile(member) if member.size <= _BYTES else None
            parts[end.lower()] = file.read() if file is not None else b""
    if parts:
        yield key, parts


def _sample(origin: str, parts: dict[str, bytes]) -> Sample:
    images = [end for end in parts if is_picture(f"x.{end}")]
    if len(images) != 1:
        there = f"has {len(images)} pictures among {', '.join(parts)}"
        return Sample(origin, None, None, f"{there}; a sample has one, and its files stand one after the other")
    label, wrong = _label(parts)
    return Sample(origin, label, parts[images[0]], wrong)


def _label(parts: dict[str, bytes]) -> tuple[Label | None, str]:
    """Returns the class of a sample, or why it has none."""
    try:
        for end in ("cls", "label"):
            if end in parts:
                return _number_or_name(parts[end].decode()), ""
        if "json" in parts:
            said = json.loads(parts["json"])
            found = [said[key] for key in KEYS if key in said] if isinstance(said, dict) else [said]
            good = [value for value in found if type(value) in (int, str)]
            words = [value for value in good if isinstance(value, str) and not value.strip().isdigit()]
            if good:
                return (words[0] if words else _number_or_name(str(good[0]))), ""
        if "txt" in parts:
            return _number_or_name(parts["txt"].decode()), ""
    except (ValueError, RecursionError) as error:
        return None, f"its class cannot be read ({error})"
    there = f"it has {', '.join(parts)}; a sample's files stand one after the other"
    return None, f"has no class: no .cls, no .json with {' or '.join(KEYS[:3])}, no .txt ({there})"


def _number_or_name(text: str) -> Label:
    text = text.strip()
    return int(text) if text.isascii() and text.isdigit() else text
