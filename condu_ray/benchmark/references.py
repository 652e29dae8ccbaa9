"""Reference images and texts, for methods that distil on data of no task (ZSCL)."""

from __future__ import annotations

import hashlib
import io
import random
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from condu_ray.benchmark.check import CHECK_VERSION
from condu_ray.benchmark.columns import column_problems, is_text, unreadable, unreadable_rows
from condu_ray.benchmark.content import ChangedError
from condu_ray.benchmark.images import DECODING, inspect_image
from condu_ray.benchmark.rows import open_parquet
from condu_ray.benchmark.tasks import META, TRAIN, TaskError, hash_file, load_task
from condu_ray.options import Distillation
from condu_ray.store.artifacts import ArtifactError, local, read_sealed, read_text, write_sealed
from condu_ray.store.backend import backend
from condu_ray.store.layout import verdict_path
from condu_ray.store.location import Place


@dataclass(frozen=True)
class References:
    """Parquet files with a column `image`, and texts; `fingerprint` hashes the content of both."""

    files: tuple[Path, ...]
    captions: tuple[str, ...]
    fingerprint: str

    def sample(self, count: int, seed: int) -> tuple[str, ...]:
        """Returns at most `count` different captions, drawn by a seed; all as they are for a count of 0."""
        if not count:
            return self.captions
        unique = sorted(set(self.captions))
        random.Random(seed).shuffle(unique)
        return tuple(unique[:count])


def load_references(options: Distillation) -> References:
    """Finds reference images and texts, and looks at their form.

    Args:
        options: `reference`: task folders, or Parquet files; `captions`: a text file, one caption a line.

    Raises:
        TaskError: a file is missing, has no images, or there are fewer than two captions.
    """
    files: list[Path] = []
    captions: list[str] = []
    for path in options.reference:
        if backend(path).exists(path / META):
            task = load_task(path)
            files.append(task.train)
            captions += task.prompts()
        else:
            captions += _read_file(local(path), captions=options.captions is None)
            files.append(local(path).absolute())
    if not files:
        raise TaskError("no reference images: give --distillation.reference a task folder or a Parquet file of images")
    if options.captions is not None:
        captions = _read_captions(options.captions)
    if len(set(captions)) < 2:
        raise TaskError(
            f"{options.captions or files[0]}: fewer than two different reference texts; give --distillation.captions "
            "a text file with one a line, or the Parquet file a column 'caption'"
        )
    digest = hashlib.sha256(f"decoding {DECODING}".encode())
    for file in files:
        digest.update(hash_file(file).encode())
    digest.update("\n".join(captions).encode())
    return References(tuple(files), tuple(captions), digest.hexdigest())


def require_same(options: Distillation, fingerprint: str) -> None:
    """Makes sure that reference images and texts are those that a command found; without a fingerprint all are.

    Raises:
        ChangedError: they are others.
        TaskError: as `load_references`.
    """
    if fingerprint and load_references(options).fingerprint != fingerprint:
        names = ", ".join(map(str, (*options.reference, *filter(None, [options.captions]))))
        raise ChangedError(
            f"--distillation.reference, captions: {names} are not what they were when the command began: they were "
            "written meanwhile, or this node has another copy of them. Nothing that was made of them counts; let them "
            "be, or put them back, and give the command again"
        )


def require_decodable(
    references: References, cache_folder: Place | None = None, *, refuse_transparent: bool = False
) -> None:
    """Decodes every reference image once, for a bad one would stop training in its middle.

    Args:
        references: from `load_references`.
        cache_folder: where a good verdict is kept, so that the same files are looked at once; None: look each time.
        refuse_transparent: whether transparent images cannot be used; else white is put behind them.

    Raises:
        TaskError: names the file and the first rows that cannot be used.
    """
    asked = f"references {CHECK_VERSION} {references.fingerprint}{' opaque' if refuse_transparent else ''}"
    name = hashlib.sha256(asked.encode()).hexdigest()
    verdict = verdict_path(cache_folder, name) if cache_folder is not None else None
    if verdict is not None:
        try:
            if read_sealed(verdict, required=True) == {"references": references.fingerprint}:
                return
        except (OSError, ArtifactError):
            pass  # none yet, or damaged: look again
    for path in references.files:
        _decode(path, refuse_transparent)
    if verdict is not None:
        write_sealed(verdict, {"references": references.fingerprint})


def _decode(path: Path, refuse_transparent: bool) -> None:
    """Raises TaskError for the images of a file that do not decode, or are transparent where that is refused."""
    wrong: list[str] = []
    row = count = 0
    try:
        with open_parquet(path, streaming=True) as file:
            for batch in file.iter_batches(32, columns=["image"], use_threads=False):
                for data in batch.column("image").to_pylist():
                    seen = inspect_image(data)
                    why = "is transparent in places" if refuse_transparent and seen.transparent else seen.wrong
                    if why is not None:
                        count += 1
                        wrong += [f"row {row}: {why}"] if count <= 5 else []
                    row += 1
    except (OSError, pa.ArrowException) as error:
        raise TaskError(f"--distillation.reference {path}: {unreadable_rows(row, error)}") from error
    if wrong:
        rest = f" and {count - len(wrong)} more" if count > len(wrong) else ""
        raise TaskError(
            f"--distillation.reference {path}: {count} of {row} images cannot be used: {'; '.join(wrong)}{rest}; "
            "write these anew, or leave them out"
        )


def _read_file(path: Path, captions: bool) -> list[str]:
    """Checks a Parquet file of images; returns its captions, if it has any and they are wanted."""
    where = f"--distillation.reference {path}"
    if path.is_dir():
        raise TaskError(f"{where}: no task folder ({META} and {TRAIN} are missing)")
    try:
        with open_parquet(path) as file:
            schema, rows = file.schema_arrow, file.metadata.num_rows
    except (OSError, pa.ArrowException) as error:
        raise TaskError(f"{where}: {unreadable(path, error)}") from error
    if problems := column_problems(schema, ("image",)):
        raise TaskError(f"{where}: {problems[0]}")
    if rows == 0:
        raise TaskError(f"{where}: no rows; write at least one image")
    if "caption" not in schema.names or not captions:
        return []
    kinds = [schema.field(index).type for index in schema.get_all_field_indices("caption")]
    if len(kinds) > 1:
        raise TaskError(f"{where}: column 'caption' is there {len(kinds)} times; keep one of them")
    kind = kinds[0]
    if not is_text(kind):
        raise TaskError(f"{where}: column 'caption' holds {kind}; write texts, or give --distillation.captions a file")
    try:
        return [text for text in pq.read_table(path, columns=["caption"])["caption"].to_pylist() if text]
    except (OSError, pa.ArrowException, UnicodeDecodeError) as error:
        raise TaskError(f"{where}: column 'caption' cannot be read ({error}); copy or write it anew") from error


def _read_captions(path: Place) -> list[str]:
    try:
        text = read_text(path)
    except (OSError, UnicodeDecodeError) as error:
        raise TaskError(f"--distillation.captions {path}: cannot be read as text ({error})") from error
    return [line.strip() for line in io.StringIO(text, newline=None) if line.strip()]
