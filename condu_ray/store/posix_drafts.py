"""Drafts of the POSIX backend: what a writer was at when it was killed. They count for nothing, but they take room.

Writers fill a hidden file or folder beside the final one, `.NAME.<32 hex digits>`, and rename it into place. Claims of
processes that died after their artifact was there are as dead: a living owner touches them every few seconds.
"""

from __future__ import annotations

import os
import re
import shutil
import uuid
from collections.abc import Iterator
from contextlib import suppress
from itertools import chain
from pathlib import Path

from condu_ray.store.layout import PLACES, claims_folder, marker_path

_DRAFT = re.compile(r"\..+\.[0-9a-f]{32}")
DEEP = 5
"""Folders below storage in which drafts can be: those of `runs/<run>/<method>/sessions` are 4, and one to spare."""


def draft_of(path: Path) -> Path:
    """Returns a new hidden name beside a file or folder that is being made."""
    return path.with_name(f".{path.name}.{uuid.uuid4().hex}")


def whole_of(path: Path) -> Path:
    """Returns what a path in a draft, or of one, is called once it is whole."""
    return Path(*(part[1:].rpartition(".")[0] if _DRAFT.fullmatch(part) else part for part in path.parts))


def drafts(storage: Path) -> Iterator[Path]:
    """Yields the drafts in a storage folder, whoever writes them, living writers' among them."""
    yield from (path for path in storage.glob(".*") if _DRAFT.fullmatch(path.name))
    for folder, folders, files in chain.from_iterable(os.walk(storage / name) for name in PLACES):
        place = Path(folder)
        for name in [name for name in (*folders, *files) if _DRAFT.fullmatch(name)]:
            yield place / name
        deep = len(place.relative_to(storage).parts) >= DEEP
        folders[:] = [] if deep else [name for name in folders if not _DRAFT.fullmatch(name)]


def _drafts_of(folder: Path, name: str) -> list[Path]:
    return [path for path in folder.glob(".*") if _DRAFT.fullmatch(path.name) and path.stem == f".{name}"]


def remove_drafts(storage: Path, older: float, of: str | None = None) -> int:
    """Removes what dead writers left, claims on experts among it; returns how much it was.

    Args:
        storage: the folder.
        older: seconds without a change after which a draft is a dead writer's. They are reckoned from the newest change
            there, so that clocks of different machines are never compared.
        of: the name in it of the one file or folder whose drafts are meant; None: all.
    """
    found = {}
    everything = chain(drafts(storage), claims_folder(storage).glob("[!.]*.json"))
    for path in everything if of is None else _drafts_of(storage, of):
        with suppress(FileNotFoundError):  # its writer has just ended
            found[path] = _changed(path)
    now = _now(storage)
    dead = [path for path, changed in found.items() if now - changed >= older]
    for path in dead:
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
    return len(dead)


def _changed(path: Path) -> float:
    parts = [path, *(path.iterdir() if path.is_dir() else ())]
    return float(max(one.stat().st_mtime for one in parts))


def _now(storage: Path) -> float:
    """The time of the file system, which may be another machine's."""
    clock = draft_of(marker_path(storage))
    clock.touch()
    try:
        return clock.stat().st_mtime
    finally:
        clock.unlink()
