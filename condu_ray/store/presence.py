"""Which of many artifacts are in storage, by few requests: a store's answer may take a fiftieth of a second."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from condu_ray.store.artifacts import exists, names
from condu_ray.store.location import Place

AT_ONCE = 16
"""Artifacts, or shelves, that are looked at side by side."""

T = TypeVar("T")


def present(folders: Iterable[Place]) -> set[Place]:
    """Returns those folders in which an artifact is in place: a listing a shelf, and a look at what it lists.

    Args:
        folders: any number, of few shelves: what is not there costs no request of its own.
    """
    shelves: dict[Place, list[Place]] = {}
    for folder in folders:
        shelves.setdefault(folder.parent, []).append(folder)
    many = [shelf for shelf, wanted in shelves.items() if len(wanted) > 1]
    there = dict(zip(many, map(set, _at_once(names, many)), strict=True))
    listed = [
        folder
        for shelf, wanted in shelves.items()
        for folder in wanted
        if shelf not in there or folder.name in there[shelf]
    ]
    return existing(listed)


def existing(folders: Sequence[Place]) -> set[Place]:
    """Returns those folders in which an artifact is in place, looking at some of them at once."""
    return {folder for folder, found in zip(folders, _at_once(exists, folders), strict=True) if found}


def _at_once(look: Callable[[Place], T], places: Sequence[Place]) -> list[T]:
    if len(places) <= 1:
        return [look(place) for place in places]
    with ThreadPoolExecutor(AT_ONCE, thread_name_prefix="present") as pool:
        return list(pool.map(look, places))
