"""Which of many artifacts are in storage, by few requests: a store's answer may take a fiftieth of a second."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor

from condu_ray.store.artifacts import exists, names
from condu_ray.store.location import Place

AT_ONCE = 16
"""Artifacts that are looked at side by side."""


def present(folders: Iterable[Place]) -> set[Place]:
    """Returns those folders in which an artifact is in place: a listing a shelf, and a look at what it lists.

    Args:
        folders: any number, of few shelves: what is not there costs no request of its own.
    """
    shelves: dict[Place, list[Place]] = {}
    for folder in folders:
        shelves.setdefault(folder.parent, []).append(folder)
    listed: list[Place] = []
    for shelf, wanted in shelves.items():
        there = set(names(shelf)) if len(wanted) > 1 else {wanted[0].name}
        listed += [folder for folder in wanted if folder.name in there]
    return existing(listed)


def existing(folders: Sequence[Place]) -> set[Place]:
    """Returns those folders in which an artifact is in place, looking at some of them at once."""
    if len(folders) <= 1:
        return {folder for folder in folders if exists(folder)}
    with ThreadPoolExecutor(AT_ONCE, thread_name_prefix="existing") as pool:
        return {folder for folder, found in zip(folders, pool.map(exists, folders), strict=True) if found}
