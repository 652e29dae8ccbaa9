"""Trees of class folders, as torchvision's ImageFolder reads them: `train/<class>/*.jpg`, `test/...`, or no splits."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

from condu_ray.benchmark.ingest.source import (
    SPLITS,
    Label,
    Sample,
    Source,
    chosen,
    is_picture,
    number_of,
    numbered,
    templates_of,
    unread,
    visible,
)
from condu_ray.benchmark.meta import TaskError


def tree_source(folder: Path) -> Source | None:
    """Returns the tree that a folder is, None if it is none.

    Raises:
        TaskError: pictures lie where no class is, or at unequal depths.
    """
    inside = [path for path in visible(folder) if path.is_dir()]
    named = [path for path in inside if path.name.lower() in SPLITS]
    others = [path for path in inside if path not in named]
    splits = [path for path in named if any(map(_holds, _folders(path)))]
    notes: list[str] = []
    if splits:
        flat = [path for path in named if path not in splits and _pictures(path)]
        classes = [path for path in others if _pictures(path)]
        if flat or classes:
            raise TaskError(
                f"{folder}: {splits[0].name}/ holds class folders, and {(flat or classes)[0].name}/ beside it pictures "
                f"without; lay all of them as {splits[0].name}/<class>/*, or move what is no part of the data away"
            )
        parts: dict[str, list[Path]] = {}
        for path in splits:
            _refuse_loose(path)
            parts.setdefault(SPLITS[path.name.lower()], []).append(path)
        _tell_of_others([path for path in others if _holds(path)], splits, parts, notes)
        trees = chosen(parts, folder, notes)
    else:
        direct, deep = [path for path in inside if _pictures(path)], [path for path in inside if not _pictures(path)]
        if not direct:
            return None
        if not others:
            raise TaskError(f"{folder}: {direct[0].name}/ holds pictures without class folders; lay them as "
                            f"{direct[0].name}/<class>/*")  # fmt: skip
        if unsorted := [path for path in direct if SPLITS.get(path.name.lower(), "train") != "train"]:
            raise TaskError(  # `train` is a class beside `bus`, but nothing is called `val`
                f"{folder}: {unsorted[0].name}/ holds pictures without class folders, beside class folders such as "
                f"{others[0].name}/; lay them as {unsorted[0].name}/<class>/* and the others as train/<class>/*, move "
                "them away, or call the folder otherwise if it is a class"
            )
        if deeper := [path for path in deep if _holds(path)]:
            raise TaskError(
                f"{folder}: pictures lie in {direct[0].name}/ itself and deeper in {deeper[0].name}/, so that nobody "
                "knows which of the two is a class; lay all as <task>/<class>/* or <task>/train/<class>/*"
            )
        _refuse_loose(folder)
        trees = {"all": [folder]}
    files: list[Path] = []
    listed = {split: _listed(paths, files, notes) for split, paths in trees.items()}
    names = numbered(folder, {name for found in listed.values() for name, _ in found}, notes)
    return Source(
        folder.name,
        folder,
        "tree of class folders",
        {split: partial(_samples, folder, found, names is not None) for split, found in listed.items()},
        tuple(files),
        names=names,
        templates=templates_of(folder),
        notes=tuple(notes),
    )


def _samples(folder: Path, listed: list[tuple[str, Path]], numbers: bool) -> Iterator[Sample]:
    for name, path in listed:
        yield read_picture(path, str(path.relative_to(folder)), number_of(name) if numbers else name)


def read_picture(path: Path, origin: str, label: Label | None) -> Sample:
    """Reads one picture's file."""
    if why := unread(path.name):
        return Sample(origin, label, None, why)
    try:
        return Sample(origin, label, path.read_bytes())
    except OSError as error:
        return Sample(origin, label, None, error.strerror or str(error))


def _listed(trees: list[Path], files: list[Path], notes: list[str]) -> list[tuple[str, Path]]:
    """Returns the class and path of every picture of a split, and adds all paths to `files`."""
    found, other = [], []
    inner: dict[Path, Path] = {}
    for tree in trees:
        for place in _folders(tree):
            name = unicodedata.normalize("NFC", place.name)  # a Mac's folders are decomposed, and another's are not
            pictures = []
            for parent, names in _walk(place):
                paths = [Path(parent, one) for one in names]
                pictures += [path for path in paths if is_picture(path.name)]
                if place != Path(parent) and any(is_picture(one) for one in names):
                    inner.setdefault(place, Path(parent))
                other += [path for path in paths if not is_picture(path.name)]
            if not pictures:
                raise TaskError(f"{place}: a class without a picture; add some, or remove the folder")
            found += [(name, path) for path in pictures]
    other = [path for path in other if path.name not in ("Thumbs.db", "desktop.ini")]
    if other:
        notes.append(f"{len(other)} files in class folders are no pictures by their names ({other[0]}), and left out")
    if inner:
        place, folder = next(iter(inner.items()))
        notes.append(
            f"{place.parent.name}/: pictures in folders within a class folder are of its class, as those of "
            f"{folder.relative_to(place.parent)}/ of {place.name!r} ({len(inner)} class folders have such folders)"
        )
    files += [path for _, path in found]
    return found


def _tell_of_others(others: list[Path], splits: list[Path], parts: Mapping[str, list[Path]], notes: list[str]) -> None:
    """Tells of folders with class folders beside those of splits, which are left out.

    Raises:
        TaskError: there is no train or no test by the names, and one of these may be it.
    """
    if not others:
        return
    shown = f"{splits[0].name}/ holds class folders, as {others[0].name}/ beside it does, whose name says no split"
    if {"train", "test"} - set(parts):
        raise TaskError(f"{others[0].parent}: {shown}; call it train or test if it is one of them, or move it away")
    notes.append(f"{others[0].parent}: {shown}, and which is left out")


def _folders(folder: Path) -> list[Path]:
    return [path for path in visible(folder) if path.is_dir()]


def _pictures(folder: Path) -> bool:
    """Whether a folder itself has pictures."""
    return any(is_picture(path.name) and path.is_file() for path in visible(folder))


def _holds(folder: Path) -> bool:
    """Whether there is a picture in a folder or below."""
    return any(is_picture(name) for _, names in _walk(folder) for name in names)


def _walk(folder: Path) -> Iterator[tuple[str, list[str]]]:
    """Yields a folder and those below it, linked ones too, each with its files' names, sorted; hidden ones left out.

    A link to a folder that it lies in is not followed: all that is there is there once already.
    """
    real = Path(os.path.realpath(folder))
    within: dict[str, frozenset[Path]] = {str(folder): frozenset((real, *real.parents))}
    for parent, inner, names in os.walk(folder, followlinks=True):
        above = within.pop(parent)
        kept = []
        for name in sorted(one for one in inner if not one.startswith((".", "__MACOSX"))):
            path, around = os.path.join(parent, name), above
            if os.path.islink(path):
                real = Path(os.path.realpath(path))
                if real in above:
                    continue
                around = above.union((real, *real.parents))
            else:
                around = above | {Path(os.path.realpath(path))}
            within[path] = around
            kept.append(name)
        inner[:] = kept
        yield parent, sorted(one for one in names if not one.startswith("."))


def _refuse_loose(folder: Path) -> None:
    if loose := [path for path in visible(folder) if path.is_file() and is_picture(path.name)]:
        raise TaskError(
            f"{loose[0]}: a picture beside the class folders; move it into the folder of its class, or away"
        )
