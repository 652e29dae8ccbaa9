"""Reference images and texts, for methods that distil on data of no task (ZSCL)."""

from __future__ import annotations

import hashlib
import io
import logging
import random
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from condu_ray.benchmark.check import CHECK_VERSION, known_verdict
from condu_ray.benchmark.columns import column_problems, is_text, unreadable, unreadable_rows
from condu_ray.benchmark.content import ChangedError
from condu_ray.benchmark.images import DECODING, inspect_image
from condu_ray.benchmark.rows import open_parquet
from condu_ray.benchmark.stretch import Tally
from condu_ray.benchmark.tasks import META, TRAIN, Task, TaskError, hash_file, load_task
from condu_ray.options import Distillation
from condu_ray.store.artifacts import ArtifactError, local, read_sealed, read_text, write_sealed
from condu_ray.store.backend import backend
from condu_ray.store.layout import verdict_path
from condu_ray.store.location import Place

logger = logging.getLogger(__name__)

_BATCH_ROWS = 64
_TELL_SECONDS = 10.0


@dataclass(frozen=True)
class References:
    """Reference images and texts.

    Attributes:
        files: Parquet files with a column `image`.
        captions: texts, of any images.
        fingerprint: hash of the content of both.
        tasks: the tasks whose training images are among the files.
    """

    files: tuple[Path, ...]
    captions: tuple[str, ...]
    fingerprint: str
    tasks: tuple[Task, ...] = ()

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
    tasks: list[Task] = []
    for path in options.reference:
        if backend(path).exists(path / META):
            task = load_task(path)
            tasks.append(task)
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
    return References(tuple(files), tuple(captions), digest.hexdigest(), tuple(tasks))


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
    references: References,
    cache_folder: Place | None = None,
    *,
    workers: int = 1,
    refuse_transparent: bool = False,
    say: Callable[[str], None] = logger.info,
) -> None:
    """Decodes every reference image once, for a bad one would stop training in its middle.

    Those of a task that has a good verdict, as `prepare` leaves one beside its data, are not decoded again.

    Args:
        references: from `load_references`.
        cache_folder: where a good verdict is kept, so that the same files are looked at once; None: look each time.
        workers: threads that decode.
        refuse_transparent: whether transparent images cannot be used; else white is put behind them.
        say: takes a line for people before images are decoded, and every ten seconds meanwhile.

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
    good = {task.train for task in references.tasks if _known_good(task, cache_folder, refuse_transparent)}
    for path in references.files:
        if path not in good:
            _decode(path, workers, refuse_transparent, say)
    if verdict is not None:
        write_sealed(verdict, {"references": references.fingerprint})


def _known_good(task: Task, cache_folder: Place | None, refuse_transparent: bool) -> bool:
    """Whether a verdict says that a task's training images can be used."""
    problems = known_verdict(task, cache_folder)
    return problems is not None and not (refuse_transparent and any(problem.transparent for problem in problems))


def _decode(path: Path, workers: int, refuse_transparent: bool, say: Callable[[str], None]) -> None:
    """Raises TaskError for the images of a file that do not decode, or are transparent where that is refused."""
    wrong, row, told = Tally(), 0, time.monotonic()
    try:
        with open_parquet(path, streaming=True) as file, ThreadPoolExecutor(max_workers=max(1, workers)) as pool:
            rows = file.metadata.num_rows
            say(f"--distillation.reference {path}: {rows:,} images are checked, once")
            for batch in file.iter_batches(_BATCH_ROWS, columns=["image"], use_threads=False):
                for seen in pool.map(inspect_image, batch.column("image").to_pylist()):
                    why = "is transparent in places" if refuse_transparent and seen.transparent else seen.wrong
                    if why is not None:
                        wrong.add(row, f"row {row}: {why}")
                    row += 1
                if time.monotonic() - told > _TELL_SECONDS:
                    told = time.monotonic()
                    say(f"--distillation.reference {path}: {row:,} of {rows:,} images checked")
    except (OSError, pa.ArrowException) as error:
        raise TaskError(f"--distillation.reference {path}: {unreadable_rows(row, error)}") from error
    if wrong.count:
        raise TaskError(
            f"--distillation.reference {path}: {wrong.count} of {row} images cannot be used: {wrong.text()}; "
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
