"""From an original layout to a task's folder: streamed, atomic, and recognised when it is there already."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from condu_ray.benchmark.images import inspect_image
from condu_ray.benchmark.mtil.catalog import DataSet
from condu_ray.benchmark.mtil.names import IngestError, Names
from condu_ray.benchmark.mtil.sources import SEED, Part, read_layout
from condu_ray.benchmark.splits import write_split
from condu_ray.benchmark.tasks import TEST, TRAIN
from condu_ray.config import content_hash
from condu_ray.store.artifacts import ArtifactError, exists, publish, read_meta, verified
from condu_ray.store.backend import backend
from condu_ray.store.location import Place
from condu_ray.store.sole_writer import BusyError, sole_writer

FORM = 1
"""Part of what identifies a converted task: raise it when the files come out otherwise, and all are written anew."""

_BATCH = 64  # images that are read and decoded side by side
_SHOWN, _MAX_BAD = 5, 20


@dataclass(frozen=True)
class Layout:
    """A data set's splits after class names were matched: parts, and each layout class's label, by split."""

    names: Names
    parts: dict[str, Part]
    labels: dict[str, list[int]]

    @property
    def counts(self) -> dict[str, int]:
        """Images a split: {"train": ..., "test": ...}."""
        return {Path(split).stem: len(part.order) for split, part in self.parts.items()}


def open_layout(entry: DataSet, root: Path) -> Layout:
    """Reads a layout and holds its class names against the shipped ones.

    Raises:
        IngestError: files are missing, torchvision cannot read them, or a class is not the data set's.
    """
    if missing := entry.missing(root):
        raise IngestError(f"{entry.name}: {missing[0]} is missing")
    names = entry.names()
    parts = dict(zip((TRAIN, TEST), read_layout(entry.name, root), strict=True))
    labels = {split: names.match(part.names, f"{entry.name} below {root}") for split, part in parts.items()}
    for split, part in parts.items():
        if not part.order:
            raise IngestError(f"{entry.name}: the layout below {root} has no image for {split}")
        numbers = range(len(labels[split]))
        for index in part.order:
            if part.labels[index] not in numbers:
                raise IngestError(
                    f"{entry.name}: {part.origin(index)} has class number {part.labels[index]}, "
                    f"outside 0 to {len(numbers) - 1}; use the original files"
                )
    return Layout(names, parts, labels)


def differing(entry: DataSet, counts: dict[str, int]) -> str:
    """Returns how counts differ from the catalog's ("" if they do not)."""
    pairs = [(entry.train, counts.get("train"), "train"), (entry.test, counts.get("test"), "test")]
    parts = [f"{name}: expected {wanted}, found {found}" for wanted, found, name in pairs if wanted != found]
    return f"counts differ: {'; '.join(parts)}" if parts else ""


def accepting(entry: DataSet, counts: dict[str, int]) -> str:
    """Returns what can be done where counts differ: fewer images are mostly an archive that was not unpacked whole."""
    if sum(counts.values()) < entry.train + entry.test:
        return (
            "images are missing, as where an archive was not unpacked to its end: bring them, and prepare again; "
            "--allow-counts accepts what is there, and no figure of it compares with the papers'"
        )
    return "--allow-counts accepts them"


def identity(entry: DataSet) -> str:
    """Returns what a converted task depends on beside the original files (hex)."""
    return content_hash([FORM, entry.name, entry.split, entry.names_sha256])


def converted(entry: DataSet, out: Place) -> tuple[dict[str, Any] | None, str]:
    """Looks for a converted task and checks the hashes of its files.

    Returns:
        Its `meta.json`, or None where there is nothing that can be used as it is; and why not ("" if nothing is there).

    Raises:
        IngestError: another kind of folder is in the way.
    """
    folder = out / entry.name
    if not backend(folder).exists(folder):
        return None, ""
    try:
        meta = read_meta(folder) if exists(folder) else {}
    except ArtifactError:
        meta = {}
    if "ingest" not in meta:
        raise IngestError(f"{folder}: there is a folder that this tool did not write; move it, or give another --out")
    try:
        for split in (TRAIN, TEST):
            verified(folder, split)
    except ArtifactError:
        return None, f"{folder / split} is damaged"
    if meta["ingest"] != identity(entry):
        return None, "written by another version"
    return meta, ""


def convert(
    entry: DataSet, root: Path, out: Place, *, allow_counts: bool = False, workers: int | None = None
) -> dict[str, Any]:
    """Writes a data set as a task's folder; what a stopped attempt left is removed.

    Args:
        entry: the data set.
        root: where its original files are.
        out: where the task's folder shall appear, under the task's name. A damaged or outdated one is replaced.
        allow_counts: accept numbers of images that are not the catalog's.
        workers: threads that read and decode images; None: one a CPU, at most 16.

    Returns:
        The task's `meta.json`: beside classes and templates `counts` (images a split), `images_in_both_splits` (test
        images whose bytes are in train too; kept, for the splits are the benchmark's), `files` (SHA-256) and more.

    Raises:
        IngestError: the layout is not the data set's, counts differ, images do not decode, or another process writes
            the same folder.
    """
    layout = open_layout(entry, root)
    if (different := differing(entry, layout.counts)) and not allow_counts:
        raise IngestError(f"{entry.name}: {different} ({accepting(entry, layout.counts)})")
    meta: dict[str, Any] = {
        "name": entry.name,
        "title": entry.title,
        "classes": list(layout.names.classes),
        "templates": list(layout.names.templates),
        "source": entry.page,
        "licence": entry.licence,
        "split": entry.split,
        "order": f"rows are in one random order (torch, seed {SEED}), not sorted by class",
        "counts": layout.counts,
        "counts_as_published": not different,
        "names_sha256": entry.names_sha256,
        "ingest": identity(entry),
    }
    with _alone(out / entry.name), ThreadPoolExecutor(workers or min(16, os.cpu_count() or 1)) as pool:

        def write(folder: Path) -> None:
            digests = {split: _write_split(folder / split, layout, meta, pool) for split in (TRAIN, TEST)}
            # publish writes the manifest after this, so what was seen while writing can still go into it
            trained_on = set(digests[TRAIN])
            meta["images_in_both_splits"] = sum(digest in trained_on for digest in digests[TEST])

        return publish(out / entry.name, meta, write, anew=True)


def _write_split(path: Path, layout: Layout, meta: dict[str, Any], pool: ThreadPoolExecutor) -> list[bytes]:
    """Streams a split into a Parquet file; returns a hash of each image."""
    part, labels = layout.parts[path.name], layout.labels[path.name]
    about = {key: meta[key] for key in ("name", "title", "source", "licence", "split", "order")}
    digests: list[bytes] = []
    bad: list[str] = []

    def load(index: int) -> tuple[bytes, bytes, str | None]:
        try:
            data = part.encoded(index)
        except OSError as error:
            return b"", b"", f"{part.origin(index)}: {error.strerror or error}"
        seen = inspect_image(data)
        return data, seen.digest, None if seen.wrong is None else f"{part.origin(index)}: {seen.wrong}"

    def rows() -> Iterator[tuple[bytes, int]]:
        for start in range(0, len(part.order), _BATCH):
            batch = part.order[start : start + _BATCH]
            for index, (data, digest, wrong) in zip(batch, pool.map(load, batch), strict=True):
                if wrong is not None:
                    bad.append(wrong)
                    continue
                digests.append(digest)
                yield data, labels[part.labels[index]]
            if len(bad) >= _MAX_BAD:
                return

    write_split(path, rows(), about)
    if bad:
        rest = (
            f" and {'at least ' if len(bad) >= _MAX_BAD else ''}{len(bad) - _SHOWN} more" if len(bad) > _SHOWN else ""
        )
        message = f"{'; '.join(bad[:_SHOWN])}{rest}; extract the original files again"
        raise IngestError(f"{meta['name']}: images cannot be used: {message}")
    return digests


@contextmanager
def _alone(folder: Place) -> Iterator[None]:
    """Keeps a second process from writing the same folder."""
    try:
        with sole_writer(folder):
            yield
    except BusyError as error:
        raise IngestError(str(error)) from error
