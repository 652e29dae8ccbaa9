"""Lists: a CSV (or TSV) of paths and class names, one file with or without a column of splits, or one a split."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from condu_ray.benchmark.ingest.source import (
    SPLITS,
    Sample,
    Source,
    chosen,
    is_picture,
    number_of,
    numbered,
    splits_of,
    templates_of,
)
from condu_ray.benchmark.ingest.trees import read_picture
from condu_ray.benchmark.meta import TaskError

PATHS = ("path", "file_name", "filename", "file", "filepath", "file_path", "image", "image_path", "img", "img_path")
CLASSES = ("class_name", "classname", "class", "label_name", "label", "category", "name", "species")
PARTS = ("split", "set", "partition", "subset")
"""What columns are called, by preference."""
_FLAG = re.compile(r"(is|in|for)[_ -]?(train|test|val|valid)[a-z]*([_ -](image|img|set|split|data))?")


@dataclass(frozen=True)
class Row:
    """A line of a list."""

    file: Path
    line: int  #: from 1, as editors count
    path: str
    name: str
    split: str | None


def list_source(name: str, folder: Path, files: list[Path]) -> Source | None:
    """Returns the data set that lists name, None where no file has columns of paths and class names.

    Args:
        name: the task's.
        folder: it.
        files: CSV or TSV files.

    Raises:
        TaskError: several lists without a split in their names, or a split that is none.
    """
    lists = {path: rows for path in files if (rows := _rows(path)) is not None}
    if not lists:
        return None
    notes = [f"{path}: is no list of paths and class names, and left out" for path in files if path not in lists]
    splits: dict[str, list[Row]] = {}
    said = splits_of(folder, list(lists))
    for path, rows in lists.items():
        for row in rows:
            split = row.split or said[path] or "all"
            splits.setdefault(split, []).append(row)
    unsaid = [path for path, rows in lists.items() if said[path] is None and rows[0].split is None]
    if unsaid and (len(lists) > 1):
        raise TaskError(
            f"{folder}: {len(lists)} lists, of which {unsaid[0].name} does not say its split; begin their names with "
            "train or test, or give each task a folder"
        )
    places = {split: [Path(split)] for split in splits}
    kept = chosen(places, folder, notes)  # by name alone: a row knows its own file
    rows_of = {split: [row for part in parts for row in splits[part.name]] for split, parts in kept.items()}
    pictures = [_picture(row) for rows in rows_of.values() for row in rows]
    names = numbered(folder, {row.name for rows in rows_of.values() for row in rows if row.name}, notes)
    return Source(
        name,
        folder,
        "list of paths and class names",
        {split: partial(_samples, rows, names is not None) for split, rows in rows_of.items()},
        (*lists, *pictures),
        names=names,
        templates=templates_of(folder),
        notes=tuple(notes),
    )


def _picture(row: Row) -> Path:
    found = row.file.parent / Path(row.path)
    # A list that was written on Windows has its separators.
    return row.file.parent / Path(row.path.replace("\\", "/")) if "\\" in row.path and not found.exists() else found


def _samples(rows: list[Row], numbers: bool) -> Iterator[Sample]:
    for row in rows:
        origin = f"{row.file.name} line {row.line} ({row.path})"
        if not row.name:
            yield Sample(origin, None, None, "has no class name")
        elif "://" in row.path:
            yield Sample(origin, row.name, None, "is an address; download it, and give its path")
        else:
            yield read_picture(_picture(row), origin, number_of(row.name) if numbers else row.name)


def _rows(path: Path) -> list[Row] | None:
    """Returns the lines of a list; None where it is none."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise TaskError(f"{path}: is not UTF-8 ({error}); save it as UTF-8") from error
    except OSError as error:
        raise TaskError(f"{path}: cannot be read ({error.strerror or error})") from error
    first = text.partition("\n")[0]
    delimiter = max("\t;,", key=first.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    try:
        lines = [(reader.line_num, [cell.strip() for cell in cells]) for cells in reader if any(map(str.strip, cells))]
    except csv.Error as error:
        raise TaskError(f"{path}: line {reader.line_num} cannot be read as CSV ({error})") from error
    if not lines:
        return None
    head = [cell.casefold() for cell in lines[0][1]]
    path_at, name_at, split_at = (_first(head, names) for names in (PATHS, CLASSES, PARTS))
    rest = lines[1:]
    if split_at is None and path_at is not None and name_at is not None:
        whole = [cells for _, cells in rest if len(cells) == len(head)]
        split_at = _split_column(path, head, {path_at, name_at}, whole)
    if path_at is None or name_at is None:
        if len(head) != 2 or not is_picture(lines[0][1][0]):
            return None
        path_at, name_at, split_at, rest = 0, 1, None, lines  # no head: a path and a class
    if not rest:
        return None
    for at in (path_at, name_at, split_at):
        if at is not None and rest is not lines and head.count(head[at]) > 1:
            raise TaskError(f"{path}: column {head[at]!r} is there {head.count(head[at])} times; keep one of them")
    found = []
    for number, cells in rest:
        if len(cells) != len(head):
            raise TaskError(
                f"{path}: line {number} has {len(cells)} columns, and the first line {len(head)}; a text with "
                f"{delimiter!r} in it has to stand in quotes"
            )
        split = None
        if split_at is not None:
            word = cells[split_at]
            if (split := SPLITS.get(word.casefold())) is None:
                raise TaskError(f"{path}: line {number}: split {word!r}; write train or test")
        found.append(Row(path, number, cells[path_at], cells[name_at], split))
    return found


def _split_column(path: Path, head: list[str], taken: set[int], rows: list[list[str]]) -> int | None:
    """Returns a column that says the split under another name, for all that is in it are splits, training among them.

    Raises:
        TaskError: its name says so, but what is in it are no splits.
    """
    for at, name in [one for one in enumerate(head) if one[0] not in taken]:
        words = {row[at].casefold() for row in rows}
        splits = {SPLITS.get(word) for word in words}
        if None not in splits and len(splits) > 1 and "train" in splits:
            return at
        if _FLAG.fullmatch(name) and len(words) > 1:
            shown = ", ".join(repr(word) for word in sorted(words)[:3])
            raise TaskError(f"{path}: column {name!r} holds {shown}; call it split, and write train or test")
    return None


def _first(head: list[str], names: tuple[str, ...]) -> int | None:
    return next((head.index(name) for name in names if name in head), None)
