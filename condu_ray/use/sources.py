"""Pictures that a command line names: files, folders, patterns with `*`, and Parquet files; one at a time."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from condu_ray.benchmark.ingest.source import PHOTOS, visible
from condu_ray.benchmark.rows import open_parquet
from condu_ray.benchmark.tasks import TaskError
from condu_ray.store.location import home
from condu_ray.use.served import UseError

SUFFIXES = frozenset({
    ".avif", ".bmp", ".dib", ".gif", ".ico", ".j2k", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".mpo", ".pgm", ".png",
    ".pnm", ".ppm", ".tga", ".tif", ".tiff", ".webp",
}).union(PHOTOS)  # fmt: skip
"""Files that count as pictures in a folder, be it only to say that they cannot be read; a file that is named itself may
be called anything."""
BATCH = 64


def pictures(given: Sequence[str]) -> Iterator[tuple[str, str | bytes]]:
    """Yields what each picture is called and its path or bytes, in the order in which they are given.

    Args:
        given: files, folders (with all below them), patterns such as `photos/*.jpg`, Parquet files with a column
            `image` (bytes, or a struct with `bytes` as Hugging Face writes it), whose rows are called `FILE#ROW`.

    Raises:
        UseError: one of them is not there, holds no picture, or is a Parquet file without images, or there is not one
            row in all of them; before the first picture is given out.
    """
    files = [path for text in given for path in _files(text)]
    if not sum([_row_count(path) if path.suffix == ".parquet" else 1 for path in files]):
        raise _nothing(given)
    for path in files:
        if path.suffix == ".parquet":
            yield from _rows(path)
        else:
            yield called(path), str(path)


def called(path: str | Path) -> str:
    r"""Returns what a file is called where names have to be text; bytes that are no UTF-8 are written as `\xe9`."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


@dataclass(frozen=True)
class Piece:
    """A picture's file, or rows `start` to `stop` of a Parquet file (`stop` 0: it is a picture)."""

    path: str
    start: int = 0
    stop: int = 0


def pieces(given: Sequence[str], size: int) -> Iterator[list[Piece]]:
    """Yields where the pictures are, so many at a time, in the order of `pictures`; none is read.

    Args:
        given: as for `pictures`.
        size: pictures at a time.

    Raises:
        UseError: as `pictures`.
    """
    found, count, full = list[Piece](), 0, False
    for path in [path for text in given for path in _files(text)]:
        rows, start = _row_count(path) if path.suffix == ".parquet" else 1, 0
        while start < rows:
            stop = min(rows, start + size - count)
            found.append(Piece(str(path), start, stop) if path.suffix == ".parquet" else Piece(str(path)))
            count, start = count + stop - start, stop
            if count == size:
                yield found
                found, count, full = [], 0, True
    if found:
        yield found
    elif not full:
        raise _nothing(given)


def _nothing(given: Sequence[str]) -> UseError:
    return UseError(f"{', '.join(given)}: no rows, and so no picture")


def read(places: Sequence[Piece]) -> Iterator[tuple[str, str | bytes]]:
    """Yields the pictures of pieces as `pictures` does; row groups before the first row are not read."""
    for piece in places:
        if piece.stop:
            yield from _rows(Path(piece.path), piece.start, piece.stop)
        else:
            yield called(piece.path), piece.path


def _row_count(path: Path) -> int:
    _check(path)
    with open_parquet(path) as file:
        return int(file.metadata.num_rows)


def _files(text: str) -> list[Path]:
    if not text.strip():
        raise UseError("a picture's name is empty; give pictures, folders, patterns or Parquet files")
    path = Path(home(text))
    if path.is_dir():
        found = sorted(one for one in _below(path) if one.suffix.lower() in SUFFIXES and one.is_file())
        if not found:
            raise UseError(f"{text}: no picture in this folder (looked for {', '.join(sorted(SUFFIXES))})")
        return found
    if path.exists():
        return [path]
    matched = sorted(Path(one) for one in glob.glob(str(path), recursive=True))
    if not matched:
        raise UseError(f"{text}: no such file, folder or match; give pictures, folders, patterns or Parquet files")
    return [file for one in matched for file in (_files(str(one)) if one.is_dir() else [one])]


def _below(folder: Path, above: frozenset[str] = frozenset()) -> Iterator[Path]:
    """Yields all files below a folder that are not hidden, those of linked folders too, but of none that it lies in."""
    real = os.path.realpath(folder)
    if real in above:
        return
    try:
        inside = visible(folder)
    except TaskError as error:
        raise UseError(str(error)) from error
    for one in inside:
        if one.is_dir():
            yield from _below(one, above | {real})
        else:
            yield one


def _check(path: Path) -> None:
    try:
        with open_parquet(path) as file:
            schema = file.schema_arrow
    except (OSError, pa.ArrowException) as error:
        raise UseError(f"{path}: cannot be read as Parquet ({error})") from error
    kind = schema.field("image").type if "image" in schema.names else None
    struct = kind is not None and pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0
    if kind is None or not (struct or pa.types.is_binary(kind) or pa.types.is_large_binary(kind)):
        raise UseError(
            f"{path}: has no column 'image' of bytes (or of a struct with bytes); its columns are "
            f"{', '.join(f'{name}: {schema.field(name).type}' for name in schema.names)}"
        )


def _rows(path: Path, start: int = 0, stop: int | None = None) -> Iterator[tuple[str, bytes]]:
    with open_parquet(path, streaming=True) as file:
        end, groups, row = 0, list[int](), 0
        for number in range(file.metadata.num_row_groups):
            begin, end = end, end + file.metadata.row_group(number).num_rows
            if end > start and (stop is None or begin < stop):
                row = begin if not groups else row
                groups.append(number)
        for batch in file.iter_batches(BATCH, row_groups=groups, columns=["image"]):
            if stop is not None and row >= stop:
                return
            for image in batch.column("image").to_pylist():
                if row >= start and (stop is None or row < stop):
                    content = image.get("bytes") if isinstance(image, dict) else image
                    yield f"{called(path)}#{row}", content or b""
                row += 1
