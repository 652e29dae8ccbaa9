"""`--repair`: which artifacts of a storage folder are damaged, put aside so that the run that asked makes them again.

Nothing is deleted: what is put aside lies under `<storage>/damaged/`, by the path that it had.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import PurePath

from condu_ray.console import output
from condu_ray.store.artifacts import (
    MANIFEST,
    ArtifactError,
    is_file,
    names,
    read_meta,
    read_sealed,
    read_text,
    verified,
    writing,
)  # fmt: skip
from condu_ray.store.backend import backend
from condu_ray.store.layout import (
    backbones_folder,
    checked_folder,
    codes_folder,
    damaged_folder,
    datasets_folder,
    evaluations_folder,
    experts_folder,
    features_folder,
    ledger_path,
    prototypes_folder,
    results_folder,
    run_folder,
    runs_folder,
    session_folder,
    sessions_folder,
    sweep_folder,
    sweeps_folder,
    tallies_folder,
    trials_folder,
)  # fmt: skip
from condu_ray.store.ledger import Entry, Ledger, LedgerError, read_entries
from condu_ray.store.location import P, Place
from condu_ray.store.measurements import read_measurement
from condu_ray.store.results import read_file


def mend(storage: Place) -> int:
    """Verifies everything in storage, puts aside what is damaged, and says so, a line each.

    Args:
        storage: storage folder; one that does not exist yet holds nothing.

    Returns:
        How many artifacts were put aside.

    Raises:
        WriteError: one cannot be moved.
    """
    shown = output()
    found = damaged(storage)
    for path, why in found:
        shown.print(f"put aside: {path}: {why}")
        set_aside(storage, path)
    shown.print(f"storage verified: {len(found)} damaged")
    return len(found)


def damaged(storage: P) -> list[tuple[P, str]]:
    """Verifies everything that runs would take from a storage folder; changes nothing.

    Backbones, experts, prototypes, data sets drawn from others, sessions, tallies, ledgers, measurements, verdicts on
    data, result rows and records of trials. Files that writers were at when they were killed are hidden, count for
    nothing, and are left out.

    Args:
        storage: storage folder; it must not be written to meanwhile, or what is just being made may be listed.

    Returns:
        Each damaged artifact's path and what is wrong with it, by path. A session that its ledger has and that is gone
        is there too: its path is where it should be.
    """
    found = list(_artifacts(storage))
    found.extend(_files(storage))
    for run, method in _methods(storage):
        found.extend(_ledger(run, method))
    return sorted(found, key=lambda one: str(one[0]))


def set_aside(storage: P, path: P) -> P:
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
    parts = PurePath(os.path.relpath(str(path), str(storage))).parts
    place = storage / "/".join(parts)
    if len(parts) < 2 or parts[0] == os.pardir:
        raise ValueError(f"{path}: is no artifact below {storage}; give a path that damaged() names")
    aside = damaged_folder(storage)
    if parts[0] == aside.name:
        raise ValueError(f"{path}: was put aside before")
    store, number, target = backend(storage), 1, aside / "/".join(parts)
    while store.exists(target):
        number += 1
        target = target.parent / f"{path.name}.{number}"
    with writing(path):
        if len(parts) == 5 and place.parent == sessions_folder(run := run_folder(storage, parts[1]), parts[2]):
            _forget(run, parts[2], place.name)
        if store.exists(place):
            store.move(place, target)
    return target


def _forget(run: Place, method: str, session: str) -> None:
    """Takes a session out of its ledger; a ledger that is itself damaged is put aside on its own."""
    ledger = ledger_path(run, method)
    if backend(ledger).exists(ledger):
        try:
            for entry in read_entries(ledger)[0]:
                if _session(run, method, entry).name == session:
                    Ledger(ledger).drop(entry.state)
        except LedgerError:
            return


def _session(run: P, method: str, entry: Entry) -> P:
    return session_folder(run, method, entry.position, entry.task, entry.state)


def _methods(storage: P) -> Iterator[tuple[P, str]]:
    """Yields runs with the names of their methods."""
    for run in (run_folder(storage, name) for name in names(runs_folder(storage))):
        for method in names(run):
            if backend(run).exists(ledger_path(run, method)):
                yield run, method


def _artifacts(storage: P) -> Iterator[tuple[P, str]]:
    """Folders with a manifest."""
    of_all = (backbones_folder, experts_folder, codes_folder, prototypes_folder, features_folder)
    shelves = [shelf(storage) for shelf in of_all]
    for run in (run_folder(storage, name) for name in names(runs_folder(storage))):
        shelves += [of(run, method) for of in (sessions_folder, tallies_folder) for method in names(run)]
    for folder in (shelf / name for shelf in shelves for name in names(shelf)):
        if why := _why(folder):
            yield folder, why
    for data in (datasets_folder(storage) / name for name in names(datasets_folder(storage))):
        for folder in (data / name for name in names(data)):
            # What mini-MTIL draws has no checksums; its content is checked by every run, and its hash is in all keys.
            if not is_file(folder) and _has_checksums(folder) and (why := _why(folder)):
                yield folder, why


def _has_checksums(folder: Place) -> bool:
    try:
        found = json.loads(read_text(folder / MANIFEST))
    except (OSError, ValueError, RecursionError):
        return True  # neither kind can do without a manifest
    return not isinstance(found, dict) or "files" in found


def _why(folder: Place) -> str | None:
    """What is wrong with an artifact, or None."""
    try:
        for name in read_meta(folder)["files"]:
            verified(folder, name)
    except ArtifactError as error:
        return _damage(error)
    return None


def _damage(error: Exception) -> str:
    """What is wrong with what cannot be read; raises the error again where this user may only not read it."""
    if isinstance(error, PermissionError) or isinstance(error.__cause__, PermissionError):
        raise error
    return str(error)


def _files(storage: P) -> Iterator[tuple[P, str]]:
    """Single files."""
    evaluations = evaluations_folder(storage)
    for name in _named(evaluations, ".json"):
        try:
            read_measurement(storage, name.removesuffix(".json"))
        except ArtifactError as error:
            yield evaluations / name, _damage(error)
    sealed = [checked_folder(storage)]
    sealed += [trials_folder(sweep_folder(storage, name)) for name in names(sweeps_folder(storage))]
    for path in (shelf / name for shelf in sealed for name in _named(shelf, ".json")):
        try:
            read_sealed(path)
        except (ArtifactError, OSError) as error:
            yield path, _damage(error)
    results = [results_folder(run_folder(storage, name)) for name in names(runs_folder(storage))]
    for path in (shelf / name for shelf in results for name in _named(shelf, ".parquet")):
        try:
            read_file(path)
        except ArtifactError as error:
            yield path, _damage(error)


def _named(folder: Place, ending: str) -> list[str]:
    return [name for name in names(folder) if name.endswith(ending)]


def _ledger(run: P, method: str) -> Iterator[tuple[P, str]]:
    """A ledger, and the sessions that it has and that are gone."""
    ledger = ledger_path(run, method)
    try:
        entries, _ = read_entries(ledger)
    except LedgerError as error:
        yield ledger, _damage(error)
        return
    for entry in entries:
        session = _session(run, method, entry)
        if not backend(session).exists(session):
            yield session, f"{session}: is in {ledger.name} and gone; put aside, its session is committed again"
