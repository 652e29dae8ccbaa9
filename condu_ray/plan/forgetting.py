"""Removing what a run keeps of a task that it has forgotten, and saying what of it is left; no Ray."""

from __future__ import annotations

import itertools
import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from condu_ray.benchmark.mini_mtil.draw import MINI_MTIL_VERSION
from condu_ray.store import artifacts
from condu_ray.store.artifacts import ArtifactError
from condu_ray.store.backend import backend
from condu_ray.store.layout import (
    checkpoints_folder,
    codes_folder,
    config_path,
    damaged_folder,
    datasets_folder,
    expert_folder,
    experts_folder,
    features_folder,
    ledger_path,
    mini_mtil_folder,
    prototypes_folder,
    run_folder,
    runs_folder,
    sessions_folder,
    sweep_config_path,
    sweep_folder,
    sweeps_folder,
    tallies_folder,
    trial_path,
)
from condu_ray.store.lease import driven
from condu_ray.store.ledger import Entry, read_entries, read_history
from condu_ray.store.location import Location, Place


@dataclass(frozen=True)
class Purged:
    """What was removed of a task, and what was not.

    Attributes:
        removed: paths below the storage folder.
        held: paths below it that stay, each with the runs that hold it.
        left: what else is left of the task, in words.
    """

    removed: tuple[str, ...]
    held: tuple[tuple[str, tuple[str, ...]], ...]
    left: tuple[str, ...]


def forgotten_before(storage: Place, run_name: str, task: str) -> bool:
    """Whether a run has learned a task, or trained for it, whatever became of it."""
    ever = any(entry.task == task for entry in _ever(run_folder(storage, run_name)))
    return ever or bool(_trained(_metas(experts_folder(storage)), run_name, task))


def purge(storage: Place, run_name: str, task: str) -> Purged:
    """Removes a forgotten task's sessions, experts, codes, exemplars, checkpoints, prototypes, and theta0's features.

    What another run of the storage holds stays, and what one that is at work may be about to merge or to measure by.
    The same call does what a kill left.

    Args:
        storage: storage folder.
        run_name: of the run, whose settings have the task no more.
        task: the task.

    Raises:
        LedgerError: a ledger of any run is damaged, so that nobody knows what it holds.
        OSError: something cannot be removed.
    """
    run, removed, held = run_folder(storage, run_name), list[str](), list[tuple[str, tuple[str, ...]]]()

    def take(folder: Place, shelf: str, holders: Iterable[str] = ()) -> None:
        path = f"{shelf}/{folder.name}"
        if who := tuple(sorted(set(holders))):
            held.append((path, who))
            return
        backend(folder).remove(folder)
        removed.append(path)

    for method in artifacts.names(run):
        for of in (sessions_folder, tallies_folder):
            for folder in _artifacts(of(run, method)):
                if task in _meta(folder).get("tasks", ()):
                    take(folder, f"runs/{run_name}/{method}/{folder.parent.name}")
    others = [name for name in artifacts.names(runs_folder(storage)) if name != run_name]
    experts, working = dict[str, set[str]](), _at_work(storage, run_name, task)
    learners = set(working)
    for name in others:
        for entry in _counting(run_folder(storage, name)):
            experts.setdefault(str(entry.expert), set()).add(name)
            learners |= {name} if entry.task == task else set()
    keys = {entry.expert for entry in _ever(run) if entry.task == task and entry.expert is not None}
    trained, codes = _metas(experts_folder(storage)), _metas(codes_folder(storage))
    keys |= _trained(trained, run_name, task)
    # One that was imported may serve two tasks; a method that the run has no more has the task in its ledger still.
    keys -= {entry.expert for entry in _counting(run) if entry.task != task}
    for key in sorted(_with_copies(trained, keys)):
        for shelf, folder in (("experts", expert_folder(storage, key)), ("damaged/experts", _aside(storage, key))):
            if backend(folder).exists(folder):
                take(folder, shelf, experts.get(key, set()) | working)
        for name, meta in codes.items():
            if meta.get("expert") == key:
                take(codes_folder(storage) / name, "codes", experts.get(key, set()) | working)
    for shelf, place in (("prototypes", prototypes_folder(storage)), ("features", features_folder(storage))):
        for folder in _artifacts(place):
            if _meta(folder).get("task") == task:
                take(folder, shelf, learners)
    for key in artifacts.names(checkpoints_folder(storage)):  # of an expert that was never finished
        place = checkpoints_folder(storage) / key
        if any(_meta(folder).get("task") == task for folder in _artifacts(place)):
            take(place, "checkpoints", learners)
    return Purged(tuple(removed), tuple(held), (*_later(working, held), *_left(storage, task)))


def _at_work(storage: Place, run_name: str, task: str) -> set[str]:
    """Other runs and sweeps that have a driver now and the task among theirs, as far as their settings say."""
    runs = ((name, run_folder(storage, name)) for name in artifacts.names(runs_folder(storage)) if name != run_name)
    sweeps = ((name, sweep_folder(storage, name)) for name in artifacts.names(sweeps_folder(storage)))
    places = itertools.chain(
        ((name, folder, (config_path(folder), trial_path(folder))) for name, folder in runs),
        ((name, folder, (sweep_config_path(folder),)) for name, folder in sweeps),
    )
    return {
        name
        for name, folder, paths in places
        if any(task in _tasks(path, task) for path in _there(paths)) and driven(folder)
    }


def _there(paths: Sequence[Place]) -> Sequence[Place]:
    """Settings that are written; those of what has just begun may not be yet, and are the first."""
    return [path for path in paths if path == paths[0] or backend(path).exists(path)]


def _tasks(path: Place, task: str) -> Collection[str]:
    """The tasks that settings name; where they name none, and all of the data are learned, `task` as well."""
    try:
        kept = json.loads(artifacts.read_text(path))
        return kept.get("config", kept).get("tasks") or (task,)
    except (OSError, ValueError, AttributeError):  # not written yet
        return (task,)


def _later(working: Collection[str], held: Iterable[tuple[str, tuple[str, ...]]]) -> Iterator[str]:
    who = sorted(set(working) & {name for _, names in held for name in names})
    if who:
        yield f"what {', '.join(who)} may be about to read, being at work: give this command again when that has ended"


def _left(storage: Place, task: str) -> Iterator[str]:
    drawn = mini_mtil_folder(storage, MINI_MTIL_VERSION).name  # the package's own images, which many runs read
    made = (folder for folder in _artifacts(datasets_folder(storage)) if folder.name != drawn)
    for folder in made:  # converted, few shots, or held out of training
        if artifacts.names(folder / task):
            yield f"datasets/{folder.name}/{task}: images that were made from your data; remove the folder by hand"
    yield "your own data, bundles and models that were exported or registered, and backups: no run reaches them"
    yield "accuracies, in evaluations/, MLflow and reports that are elsewhere: numbers, no weights and no images"


def _trained(experts: Mapping[str, dict[str, Any]], run_name: str, task: str) -> set[str]:
    """Experts that a run put into storage for a task, committed or not: of an `add` that was refused, say."""
    return {key for key, meta in experts.items() if (meta.get("run"), meta.get("task")) == (run_name, task)}


def _with_copies(experts: Mapping[str, dict[str, Any]], keys: Iterable[str]) -> set[str]:
    """Keys, and those under which storage has the same experts (`adopt_expert`)."""
    found = set(keys)
    for key, meta in experts.items():
        adopted = meta.get("adopted")
        if adopted and (key in found or adopted in found):
            found |= {key, str(adopted)}
    return found


def _aside(storage: Place, key: str) -> Location:
    return Location(damaged_folder(storage)) / "experts" / key


def _ever(run: Place) -> Iterator[Entry]:
    """Every session that a run's ledgers ever committed."""
    return (line for path in _ledgers(run) for line in read_history(path)[0] if isinstance(line, Entry))


def _counting(run: Place) -> Iterator[Entry]:
    """Those that count still."""
    return (entry for path in _ledgers(run) for entry in read_entries(path)[0])


def _ledgers(run: Place) -> Iterator[Place]:
    paths = (ledger_path(run, method) for method in artifacts.names(run))
    return (path for path in paths if backend(path).exists(path))


def _artifacts(shelf: Place) -> Iterator[Place]:
    return (shelf / name for name in artifacts.names(shelf))


def _metas(shelf: Place) -> dict[str, dict[str, Any]]:
    """What the manifests of a shelf say, by the artifact's name."""
    return {folder.name: _meta(folder) for folder in _artifacts(shelf)}


def _meta(folder: Place) -> dict[str, Any]:
    try:
        return artifacts.read_meta(folder)
    except ArtifactError:
        return {}
