"""Predictions as rows of a Parquet, CSV or JSON file, which appears when all of them are in it."""

from __future__ import annotations

import csv
import json
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, TextIO

import pyarrow as pa
import pyarrow.parquet as pq

from condu_ray.store.artifacts import writing
from condu_ray.store.posix import sync
from condu_ray.store.writable import require_writable
from condu_ray.use.prediction import Prediction
from condu_ray.use.served import UseError

SCHEMA = pa.schema({
    "image": pa.string(), "class": pa.string(), "probability": pa.float32(), "task": pa.string(),
    "classes": pa.list_(pa.string()), "probabilities": pa.list_(pa.float32()),
    "experts": pa.list_(pa.string()), "weights": pa.list_(pa.float32()), "similarity": pa.float32(),
    "tasks": pa.list_(pa.string()), "task_probabilities": pa.list_(pa.float32()), "new": pa.float32(),
    "error": pa.string(),
})  # fmt: skip
"""Columns of a file of predictions: the likeliest class, then the `top_k` likeliest, who answered, P(task)."""
GROUP = 4096
KINDS = (".parquet", ".csv", ".json", ".jsonl")


def row(prediction: Prediction) -> dict[str, Any]:
    """Returns a prediction as a row; without a class where there is an error."""
    return {
        "image": prediction.image,
        "class": prediction.label,
        "probability": prediction.probability,
        "task": prediction.task,
        "classes": list(prediction.classes),
        "probabilities": list(prediction.probabilities),
        "experts": list(prediction.experts),
        "weights": list(prediction.experts.values()),
        "similarity": prediction.similarity,
        "tasks": list(prediction.tasks),
        "task_probabilities": list(prediction.tasks.values()),
        "new": prediction.new,
        "error": prediction.error,
    }


class _Format(Protocol):
    def put(self, prediction: Prediction) -> None: ...

    def close(self) -> None: ...


class Sink:
    """Takes one prediction after the other.

    Args:
        path: the file that it will be, for messages.
        inner: writes it in its format.
    """

    def __init__(self, path: Path, inner: _Format) -> None:
        self._path, self._inner = path, inner

    def put(self, prediction: Prediction) -> None:
        """Writes one.

        Raises:
            WriteError: the disk is full or fails.
        """
        with writing(self._path):
            self._inner.put(prediction)


def check_output(path: Path) -> None:
    """Refuses a file that no predictions can be written to, before any are made.

    Raises:
        UseError: its suffix is none of `KINDS`, or its folder is not there.
        WriteError: it cannot be written there.
    """
    if path.suffix not in KINDS:
        raise UseError(f"--output {path}: give a name that ends with one of {', '.join(KINDS)}")
    if not path.parent.is_dir():
        raise UseError(f"--output {path}: there is no folder {path.parent}; make it first")
    require_writable(path)


@contextmanager
def output(path: Path) -> Iterator[Sink]:
    """Opens a file of predictions; it appears, or replaces an older one, when all are in it.

    Raises:
        WriteError: the disk is full or fails; what was there before is untouched.
    """
    draft = path.with_name(f".{path.name}.{uuid.uuid4().hex}")  # of several that make it, on several machines, one wins
    try:
        with writing(path):
            inner: _Format = _Parquet(draft) if path.suffix == ".parquet" else _Text(draft, path.suffix)
        yield Sink(path, inner)
        with writing(path):
            inner.close()
            sync(draft)  # else a power cut may leave the name without the rows, which would count as made
            os.replace(draft, path)
            sync(path.parent)
    finally:
        draft.unlink(missing_ok=True)


class _Parquet:
    def __init__(self, path: Path) -> None:
        self._writer, self._rows = pq.ParquetWriter(path, SCHEMA), list[dict[str, Any]]()

    def put(self, prediction: Prediction) -> None:
        self._rows.append(row(prediction))
        if len(self._rows) == GROUP:
            self._flush()

    def _flush(self) -> None:
        self._writer.write_table(pa.Table.from_pylist(self._rows, SCHEMA))
        self._rows.clear()

    def close(self) -> None:
        self._flush()
        self._writer.close()


class _Text:
    """CSV (lists as JSON), a JSON list, or a JSON object a line."""

    def __init__(self, path: Path, suffix: str) -> None:
        self._file: TextIO = path.open("w", encoding="utf-8", newline="")
        self._suffix, self._count = suffix, 0
        self._csv = csv.writer(self._file, lineterminator="\n")
        if suffix == ".csv":
            self._csv.writerow(SCHEMA.names)

    def put(self, prediction: Prediction) -> None:
        found = row(prediction)
        if self._suffix == ".csv":
            lists = {key: json.dumps(value, ensure_ascii=False) for key, value in found.items() if type(value) is list}
            self._csv.writerow((found | lists).values())
        else:
            before = "" if self._suffix == ".jsonl" else ",\n" if self._count else "[\n"
            after = "\n" if self._suffix == ".jsonl" else ""
            self._file.write(before + json.dumps(found, ensure_ascii=False) + after)
        self._count += 1

    def close(self) -> None:
        if self._suffix == ".json":
            self._file.write("\n]\n" if self._count else "[]\n")
        self._file.close()
