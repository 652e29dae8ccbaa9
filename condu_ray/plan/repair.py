"""`--repair`: which artifacts of a storage folder are damaged, put aside so that the run that asked makes them again.

Nothing is deleted: what is put aside lies under `<storage>/damaged/`, by the path that it had.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

from condu_ray.console import output
from condu_ray.methods.session import session_folder
from condu_ray.store.artifacts import MANIFEST, ArtifactError, read_meta, read_sealed, verified, writing
from condu_ray.store.ledger import Entry, Ledger, LedgerError, read_entries
from condu_ray.store.measurements import read_measurement
from condu_ray.store.results import read_file

ASIDE = "damaged"
"""Folder of what was put aside, in the storage folder."""


def mend(storage: Path) -> int:
    """Verifies everything in storage, puts aside what is damaged, and says so, a line each.

    Args:
        storage: storage folder; one that does not exist yet holds nothing.

    Returns:
        How many artifacts were put aside.

    Raises:
        WriteError: one cannot be moved.
    """
    shown = output()
    found = damaged(storage) if storage.is_dir() else []
    for path, why in found:
        shown.print(f"put aside: {path}: {why}", markup=False)
        set_aside(storage, path)
    shown.print(f"storage verified: {len(found)} damaged")
    return len(found)


def damaged(storage: Path) -> list[tuple[Path, str]]:
    """Verifies everything that runs would take from a storage folder; changes nothing.

    Experts, prototypes, data sets drawn from others, sessions, ledgers, measurements, verdicts on data, result rows and
    records of trials. Files that writers were at when they were killed are hidden, count for nothing, and are left out.

    Args:
        storage: storage folder; it must not be written to meanwhile, or what is just being made may be listed.

    Returns:
        Each damaged artifact's path and what is wrong with it, by path. A session that its ledger has and that is gone
        is there too: its path is where it should be.
    """
    found = [*_artifacts(storage), *_files(storage)]
    for ledger in _below(storage, "runs", "*", "*", "ledger.jsonl"):
        found += _ledger(ledger)
    return sorted(found)


def set_aside(storage: Path, path: Path) -> Path:
    """Moves a damaged artifact to where no run looks for it; the command that needs it makes it again.

    A session is also taken out of its ledger, for what a ledger has is not made again.

    Args:
        storage: storage folder.
        path: from `damaged`.

    Returns:
        Where it is now: `<storage>/damaged/<path below storage>`, with a number where there is one already.

    Raises:
        ValueError: the path is not below the storage folder, or is none of what `damaged` names.
        WriteError: it cannot be moved; it is where it was.
    """
    storage, path = Path(os.path.abspath(storage)), Path(os.path.abspath(path))
    if not path.is_relative_to(storage) or len(path.relative_to(storage).parts) < 2:
        raise ValueError(f"{path}: is no artifact below {storage}; give a path that damaged() names")
    if path.relative_to(storage).parts[0] == ASIDE:
        raise ValueError(f"{path}: was put aside before")
    target = storage / ASIDE / path.relative_to(storage)
    number = 1
    while os.path.lexists(target):
        number += 1
        target = target.with_name(f"{path.name}.{number}")
    with writing(path):
        if path.parent.name == "sessions":
            _forget(path.parents[1] / "ledger.jsonl", path)
        if os.path.lexists(path):
            target.parent.mkdir(parents=True, exist_ok=True)
            path.rename(target)
    return target


def _forget(ledger: Path, session: Path) -> None:
    """Takes a session out of its ledger; a ledger that is itself damaged is put aside on its own."""
    if ledger.is_file():
        try:
            for entry in read_entries(ledger)[0]:
                if _session(ledger, entry) == session:
                    Ledger(ledger).drop(entry.state)
        except LedgerError:
            return


def _session(ledger: Path, entry: Entry) -> Path:
    run_folder, method = ledger.parents[1], ledger.parent.name
    return session_folder(run_folder, method, entry.position, entry.task, entry.state)


def _below(storage: Path, *pattern: str) -> Iterator[Path]:
    """Yields what fits a pattern, by name, without anything hidden: that is what writers leave."""
    for path in sorted(storage.glob("/".join(pattern))):
        if not any(part.startswith(".") for part in path.relative_to(storage).parts):
            yield path


def _artifacts(storage: Path) -> Iterator[tuple[Path, str]]:
    """Folders with a manifest."""
    places = [("experts", "*"), ("prototypes", "*"), ("features", "*"), ("runs", "*", "*", "sessions", "*")]
    for folder in (path for place in places for path in _below(storage, *place)):
        if why := _why(folder):
            yield folder, why
    for folder in _below(storage, "datasets", "*", "*"):
        # What mini-MTIL draws has no checksums; its content is checked by every run, and its hash is in all keys.
        if folder.is_dir() and _has_checksums(folder) and (why := _why(folder)):
            yield folder, why


def _has_checksums(folder: Path) -> bool:
    try:
        found = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return True  # neither kind can do without a manifest
    return not isinstance(found, dict) or "files" in found


def _why(folder: Path) -> str | None:
    """What is wrong with an artifact, or None."""
    try:
        for name in read_meta(folder)["files"]:
            verified(folder, name)
    except ArtifactError as error:
        return str(error)
    return None


def _files(storage: Path) -> Iterator[tuple[Path, str]]:
    """Single files."""
    for path in _below(storage, "evaluations", "*.json"):
        try:
            read_measurement(storage, path.stem)
        except ArtifactError as error:
            yield path, str(error)
    for path in [*_below(storage, "checked", "*.json"), *_below(storage, "sweeps", "*", "trials", "*.json")]:
        try:
            read_sealed(path)
        except (ArtifactError, OSError) as error:
            yield path, str(error)
    for path in _below(storage, "runs", "*", "results", "*.parquet"):
        try:
            read_file(path)
        except ArtifactError as error:
            yield path, str(error)


def _ledger(ledger: Path) -> Iterator[tuple[Path, str]]:
    """A ledger, and the sessions that it has and that are gone."""
    try:
        entries, _ = read_entries(ledger)
    except LedgerError as error:
        yield ledger, str(error)
        return
    for entry in entries:
        session = _session(ledger, entry)
        if not os.path.lexists(session):
            yield session, f"{session}: is in {ledger.name} and gone; put aside, its session is committed again"
