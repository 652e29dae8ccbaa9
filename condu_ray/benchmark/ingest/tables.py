"""Parquet as Hugging Face's datasets write it: images as struct {bytes, path}, class names in the schema's metadata."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa

from condu_ray.benchmark.columns import is_bytes, is_text, unreadable, unreadable_rows
from condu_ray.benchmark.ingest.lists import CLASSES
from condu_ray.benchmark.ingest.source import (
    NAMES,
    Sample,
    Source,
    by_split,
    lines_of,
    number_of,
    numbered,
    templates_of,
)
from condu_ray.benchmark.meta import TaskError
from condu_ray.benchmark.rows import open_parquet

IMAGES = ("image", "img", "picture", "photo", "jpg", "png")
"""What columns of images are called, by preference, where several could be."""
_SURE = 5  # names of columns that say nothing but the class; `name` may be a file's
_BATCH = 64


def table_source(name: str, folder: Path, files: list[Path]) -> Source:
    """Returns the data set that Parquet files hold.

    Args:
        name: the task's.
        folder: it.
        files: as `data/train-00000-of-00001.parquet`.

    Raises:
        TaskError: a file cannot be read, its columns are others, or numbers have no names.
    """
    notes: list[str] = []
    splits = by_split(folder, files, notes)
    every = [path for paths in splits.values() for path in paths]
    image, label, names = _columns(every[0], lines_of(folder, NAMES), notes)
    for path in every[1:]:
        if (other := _columns(path, names, [])) != (image, label, names):
            raise TaskError(f"{path}: its columns or class names ({other[:2]}) are not those of {every[0]}")
    numbers = names is None and lines_of(folder, NAMES) is not None
    if numbers:  # texts, which may be numbers, as lists have them
        names = numbered(folder, _called(every, label), notes)
        numbers = names is not None
    return Source(
        name,
        folder,
        "Parquet of Hugging Face",
        {split: partial(_samples, folder, paths, image, label, numbers) for split, paths in splits.items()},
        tuple(every),
        names=names,
        templates=templates_of(folder),
        official=True,
        notes=tuple(notes),
    )


def _schema(path: Path) -> pa.Schema:
    try:
        with open_parquet(path) as file:
            return file.schema_arrow
    except (OSError, pa.ArrowException) as error:
        raise TaskError(f"{path}: {unreadable(path, error)}") from error


def _columns(path: Path, names: tuple[str, ...] | None, notes: list[str]) -> tuple[str, str, tuple[str, ...] | None]:
    """Returns the columns of images and classes, and the class names by number (None: the column has words).

    Args:
        path: the file.
        names: what lies beside it.
        notes: gets a line where there was a choice.
    """
    schema = _schema(path)
    images = [field.name for field in schema if _holds_images(field.type)]
    if not images:
        raise TaskError(
            f"{path}: has no column of images, struct {{bytes, path}} or bytes (columns: {', '.join(schema.names)})"
        )
    image = next((one for one in IMAGES if one in images), images[0])
    if len(images) > 1 and image not in IMAGES:
        notes.append(f"{path}: of its columns of images {', '.join(images)}, {image} is taken; call another one image")
    labels = {name: one for name, one in _class_labels(schema).items() if name in schema.names}
    words = [name for name in CLASSES if name in schema.names and is_text(schema.field(name).type)]
    plain = [name for name in CLASSES[:_SURE] if name in schema.names]
    if labels and plain and plain[0] in words and not set(labels) & set(CLASSES):
        notes.append(f"{path}: of its classes {plain[0]}, {', '.join(labels)}, {plain[0]} is taken, by its name")
    elif labels:
        label = "label" if "label" in labels else max(labels, key=lambda name: len(labels[name]))
        if len(labels) > 1 or (plain and label not in CLASSES):
            every = ", ".join({**labels, **dict.fromkeys(plain)})
            notes.append(f"{path}: of its classes {every}, {label} is taken ({len(labels[label])} names)")
        return image, label, labels[label]
    if words:
        return image, words[0], None
    numbers = [name for name in CLASSES if name in schema.names and pa.types.is_integer(schema.field(name).type)]
    if not numbers:
        raise TaskError(
            f"{path}: has no column of classes: a ClassLabel, or {', '.join(CLASSES)} (columns: "
            f"{', '.join(schema.names)})"
        )
    if names is None:
        raise TaskError(
            f"{path}: column {numbers[0]!r} holds numbers, and nothing says their names: the schema's metadata has no "
            f"ClassLabel; write a {NAMES} beside it, a name a line, the first for 0"
        )
    return image, numbers[0], names


def _holds_images(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return any(field.name == "bytes" and is_bytes(field.type) for field in kind)
    return is_bytes(kind)


def _class_labels(schema: pa.Schema) -> dict[str, tuple[str, ...]]:
    """Returns the names of each ClassLabel that the metadata of `datasets` declares."""
    try:
        features: Any = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))["info"]["features"]
        return {
            name: tuple(map(str, feature["names"]))
            for name, feature in features.items()
            if isinstance(feature, dict) and feature.get("_type") == "ClassLabel" and feature.get("names")
        }
    except (ValueError, KeyError, TypeError, AttributeError):
        return {}


def _called(files: list[Path], label: str) -> set[str]:
    """Returns what a column of texts calls the classes, without reading an image."""
    found: set[str] = set()
    for path in files:
        row = 0
        try:
            with open_parquet(path, streaming=True) as file:
                for batch in file.iter_batches(columns=[label], use_threads=False):
                    found.update(one for one in batch[label].to_pylist() if one)
                    row += len(batch)
        except (OSError, pa.ArrowException) as error:
            raise TaskError(f"{path}: {unreadable_rows(row, error)}") from error
    return found


def _samples(folder: Path, files: list[Path], image: str, label: str, numbers: bool) -> Iterator[Sample]:
    for path in files:
        shown, row = path.relative_to(folder) if path.is_relative_to(folder) else path, 0
        try:
            with open_parquet(path, streaming=True) as file:
                for batch in file.iter_batches(_BATCH, columns=[image, label], use_threads=False):
                    for cell, name in zip(batch[image].to_pylist(), batch[label].to_pylist(), strict=True):
                        called = number_of(name) if numbers and name else name
                        yield _sample(f"{shown} row {row}", cell, called)
                        row += 1
        except (OSError, pa.ArrowException) as error:
            raise TaskError(f"{path}: {unreadable_rows(row, error)}") from error


def _sample(origin: str, cell: Any, name: Any) -> Sample:
    data, wrong = (cell or {}).get("bytes") if isinstance(cell, dict) or cell is None else cell, ""
    if data is None and isinstance(cell, dict) and cell.get("path"):
        wrong = f"has no bytes, only the path {cell['path']}; embed the images in the file"
    no_class = name is None or (isinstance(name, int) and name < 0)  # -1: a test split without answers
    return Sample(origin, None if no_class else name, data, wrong)
