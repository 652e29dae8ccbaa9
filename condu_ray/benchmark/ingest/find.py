"""Which data sets lie in a folder that is none of the package's form, one task each, and in which form."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from condu_ray.benchmark.ingest.lists import list_source
from condu_ray.benchmark.ingest.shards import ENDS, shard_source
from condu_ray.benchmark.ingest.source import SPLITS, Source, split_of, visible
from condu_ray.benchmark.ingest.tables import table_source
from condu_ray.benchmark.ingest.trees import tree_source
from condu_ray.benchmark.meta import TaskError
from condu_ray.names import nearest

logger = logging.getLogger(__name__)

LAYOUTS = (
    "<task>/train/<class>/*.jpg and <task>/test/..., <task>/<class>/*.jpg, Parquet of Hugging Face "
    "(<task>/data/train-*.parquet), WebDataset (<task>/train-*.tar), or a CSV of paths and class names (<task>/*.csv)"
)
"""What is read beside the package's own form."""
LISTS, TABLES = (".csv", ".tsv"), (".parquet",)


def sources(data: Path, names: Sequence[str] | None = None) -> list[Source]:
    """Returns what can be converted, sorted by name or in the order of `names`.

    Args:
        data: a data set itself (a folder or a file), or the folder of their folders.
        names: which of them; None: all.

    Raises:
        TaskError: a layout that is mixed or wrong, or a name that is not there.
    """
    children: dict[str, Path] = {}
    if data.is_file():
        found = {one.name: one for one in [_file_source(data)]}
    elif (one := source_of(data, below=True)) is not None:
        found = {one.name: one}
    else:
        children = {path.name: path for path in visible(data) if path.is_dir()}
        found = {}
        for name in [name for name in names if name in children] if names is not None else children:
            if (child := source_of(children[name])) is not None:
                found[name] = child
    _refuse_splits(data, found)
    if names is None:
        left = [name for name, path in children.items() if name not in found and any(visible(path))] if found else []
        for name in left:
            logger.warning("%s: is left out, it holds no data set; what is read: %s", data / name, LAYOUTS)
        return list(found.values())
    if unknown := [name for name in names if name not in found]:
        near = nearest(unknown[0], list(children or found), most=3, label="there are")
        raise TaskError(f"{data}: no task {unknown[0]!r} there{near}; what is read: {LAYOUTS}")
    return [found[name] for name in names]


def _refuse_splits(data: Path, names: Iterable[str]) -> None:
    """Refuses the splits of one task that would be tasks of their own, for their names are longer than those known."""
    splits: dict[str, str] = {}
    for name in names:
        word = re.match(r"[a-z]+", name.lower())
        if word and word[0] in SPLITS:
            splits.setdefault(SPLITS[word[0]], name)
    other = splits.get("test", splits.get("validation"))
    if "train" in splits and other is not None:
        raise TaskError(
            f"{data}: {splits['train']}/ and {other}/ are splits of one task by their names, and would be two tasks; "
            "call them train and test, or otherwise if they are tasks"
        )


def source_of(folder: Path, *, below: bool = False) -> Source | None:
    """Returns the one data set that a folder is, None if it is none.

    Args:
        folder: the folder.
        below: whether its folders may be tasks of their own, each with its files.

    Raises:
        TaskError: it is several at once, or one whose layout is wrong.
    """
    tables, shards, lists = (_files(folder, ends) for ends in (TABLES, ENDS, LISTS))
    found: list[Source] = []
    if tables:
        found.append(table_source(folder.name, folder, tables))
    if shards:
        found.append(shard_source(folder.name, folder, shards))
    listed = list_source(folder.name, folder, lists) if lists and not found else None
    if listed is not None:
        return listed
    if not (below and not found and _tasks(folder)) and (tree := tree_source(folder)) is not None:
        found.append(_beside_lists(tree, lists) if lists and not found else tree)
    if len(found) > 1:
        what = " and ".join(f"a {one.form} ({_first(one)})" for one in found)
        raise TaskError(f"{folder}: holds {what}: which of them is the task? Move the other one away")
    return found[0] if found else None


def _beside_lists(tree: Source, lists: list[Path]) -> Source:
    """Returns a tree beside files that could be lists of its pictures, and are none.

    Raises:
        TaskError: its only class is a folder that holds all pictures, by every appearance.
    """
    said = f"{lists[0]}: is no list of paths and class names, for its first line names no columns path and class"
    folders = [path for path in visible(tree.place) if path.is_dir()]
    if "all" in tree.splits and len(folders) == 1:
        raise TaskError(
            f"{said}, and {folders[0].name}/ beside it would be the only class; write that line, or move the file away"
        )
    return replace(tree, notes=(*tree.notes, f"{said}; it is left out"))


def _first(source: Source) -> str:
    path = source.files[0]
    return str(path.relative_to(source.place)) if path.is_relative_to(source.place) else str(path)


def _files(folder: Path, ends: tuple[str, ...]) -> list[Path]:
    """Returns files of a kind in a folder, in its `data/`, or in folders of splits.

    Raises:
        TaskError: they lie in the folder itself and in one of those.
    """
    inside = visible(folder)
    found = [path for path in inside if path.is_file() and path.name.lower().endswith(ends)]
    if ends == LISTS:
        return found
    places = [path for path in inside if path.is_dir() and (path.name == "data" or split_of(path.name))]
    deep = [path for place in places for path in visible(place)]
    deep = [path for path in deep if path.is_file() and path.name.lower().endswith(ends)]
    if found and deep:
        raise TaskError(
            f"{folder}: {found[0].name} lies in it, and {deep[0].relative_to(folder)} deeper; lay all files of a task "
            "in one place, with names that begin with train or test, or move what is no part of it away"
        )
    return found or deep


def _tasks(folder: Path) -> bool:
    """Whether folders in it are tasks by their files, so that pictures beside these are no class."""
    return any(
        _files(path, ends)
        for path in visible(folder)
        if path.is_dir() and split_of(path.name) is None
        for ends in (TABLES, ENDS, LISTS)
    )


def _file_source(path: Path) -> Source:
    name = path.name.partition(".")[0]
    if path.name.lower().endswith(TABLES):
        return table_source(name, path.parent, [path])
    if path.name.lower().endswith(ENDS):
        return shard_source(name, path.parent, [path])
    found = list_source(name, path.parent, [path]) if path.name.lower().endswith(LISTS) else None
    if found is None:
        raise TaskError(f"{path}: no data set; what is read: {LAYOUTS}")
    return found
