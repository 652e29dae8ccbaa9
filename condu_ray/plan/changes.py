"""What becomes of a finished run's settings: more tasks, one taught again or forgotten, an earlier session; no Ray."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from condu_ray.command_line import ConfigError
from condu_ray.config import Experiment, Protocol
from condu_ray.names import nearest
from condu_ray.plan.data import has, place_of, probe_folder, with_data
from condu_ray.plan.opened import open_run
from condu_ray.plan.results import Results
from condu_ray.plan.stored import names
from condu_ray.plan.stored_run import StoredRun
from condu_ray.store.artifacts import exists
from condu_ray.store.backend import real
from condu_ray.store.layout import expert_folder
from condu_ray.store.location import Place


def open_to_change(storage: Place, name: str) -> StoredRun:
    """Opens a run that shall be changed.

    Raises:
        ConfigError: there is none of that name, or it is a sweep's.
        ValueError: its tasks or its backbone are not where its settings say.
    """
    found = open_run(storage, name)
    require_own(storage, name)
    return found


def require_own(storage: Place, name: str) -> None:
    """Refuses a run that is a trial of a sweep.

    Raises:
        ConfigError: it is.
    """
    if name not in names(storage):
        raise ConfigError(f"{name}: is a trial of a sweep, which its report counts on; make a run of its own of it")


def require_finished(found: StoredRun) -> None:
    """Refuses a run that has something left to do.

    Raises:
        ConfigError: says how to finish it.
    """
    if not found.complete:
        raise ConfigError(
            f"{found.config.run_name}: has sessions or measurements left to do; give its own command again first"
        )


def with_new_tasks(found: StoredRun, tasks: Sequence[str], data: Place | None) -> Experiment:
    """Returns a run's settings with more tasks, learned last.

    Args:
        found: the run.
        tasks: their names, in the order of learning.
        data: folder that has them; None: the run's own data, or its probes'.

    Returns:
        Its settings as they are, where these are the tasks that it learned last, from the same data.

    Raises:
        ConfigError: a task is named twice; the run has learned it already, has another as a probe, or distilled from
            it.
        TaskError: the folder has no such task.
    """
    before, known = named(found), [task.name for task in found.tasks]
    if twice := [task for place, task in enumerate(tasks) if task in tasks[:place]]:
        raise ConfigError(f"--tasks {twice[0]}: is named twice; a task is learned once")
    config = before
    for task in tasks:
        probed = probe_folder(config, task)
        if data is not None and probed is not None and task not in known and real(data) != real(probed):
            raise ConfigError(
                f"--tasks {task}: {config.run_name} has another {task} as a probe, in {probed}; rename the folder in "
                f"{data}, or leave --data out to learn the probe"
            )
        place = data if data is not None or has(config, task) else probed
        if place is not None:
            config = with_data(config, task, place)
        _refuse_reference(found, config, task, "--tasks")
    if known[-len(tasks) :] == list(tasks) and config == before:
        return before
    if old := [task for task in tasks if task in known]:
        require_finished(found)  # or it may not have come to it yet
        raise ConfigError(
            f"--tasks {old[0]}: {config.run_name} has learned it; --again {old[0]} teaches it anew in its place"
        )
    return config.model_copy(update={"tasks": (*known, *tasks)})


def taught_again(found: StoredRun, task: str, data: Place) -> Experiment:
    """Returns a run's settings with other data of a task, in its place in the order.

    Raises:
        ConfigError: the run has no such task, it is read from that folder, which has changed, or the run distilled from
            what is there.
        TaskError: the folder has none.
    """
    before = named(_with(found, task, "--again"))
    config = with_data(before, task, data)
    if config == before and not found.complete:
        raise ConfigError(
            f"--again {task}: {config.run_name} reads it from {data}, which has changed, so that nothing can be "
            "compared with it; put the grown data into another folder and the old ones back, or give the run's own "
            "command, which teaches the task anew without a look at what the others lose"
        )
    _refuse_reference(found, config, task, "--again")
    return config.model_copy(update={"imported": {k: v for k, v in config.imported.items() if k != task}})


def _refuse_reference(found: StoredRun, config: Experiment, task: str, flag: str) -> None:
    """Refuses a task from whose images a method of the run distils, as from images of no task.

    Raises:
        ConfigError: it is one.
    """
    who = [name for name, one in found.methods.items() if "reference" in one.method.needs]
    if not who or not has(config, task):  # one that is nowhere is refused where the settings are checked
        return
    folder = real(place_of(config, task) / task)
    for path in config.distillation.reference:
        if folder in (real(path), real(path).parent):
            raise ConfigError(
                f"{flag} {task}: {', '.join(who)} of {config.run_name} distilled from its images, as from those of no "
                f"task (--distillation.reference {path}), so that it cannot be one; make another run, with other "
                f"references or without {', '.join(who)}, which finds the other methods' experts in storage"
            )


def rolled_back(found: StoredRun, sessions: int) -> Experiment:
    """Returns a run's settings with its first tasks alone.

    Args:
        found: the run.
        sessions: how many tasks.

    Raises:
        ConfigError: a method has not committed so many sessions.
    """
    name, least = min(found.methods.items(), key=lambda one: len(one[1].entries))
    there = len(least.entries)
    if not there:
        raise ConfigError(f"{found.config.run_name}: {name} {least.why_none}")
    if not 1 <= sessions <= there:
        raise ConfigError(f"--session {sessions}: {found.config.run_name} has sessions 1 to {there}")
    return _only(named(found), [task.name for task in found.tasks[:sessions]])


def without(found: StoredRun, task: str) -> Experiment:
    """Returns a run's settings without a task.

    Raises:
        ConfigError: it is no task of the run or its only one, a method cannot do without it, or an expert that the rest
            is rebuilt from is gone.
    """
    config, name = named(_with(found, task, "--task")), found.config.run_name
    if len(found.tasks) == 1:
        raise ConfigError(f"--task {task}: is the only task of {name}; remove the run's folder instead")
    place = [one.name for one in found.tasks].index(task)
    for method in (one.method for one in found.methods.values()):
        if method.starts_from in ("previous", "state") and place + 1 < len(found.tasks):
            after = ", ".join(one.name for one in found.tasks[place + 1 :])
            back = f"roll back to session {place} and teach them again, or " if place else ""
            raise ConfigError(
                f"{name}: {method.name} trained {after} from weights that had learned {task}, so that all of them hold "
                f"it; {back}make a run without {method.name}, or without {task}"
            )
    gone = [
        expert.task
        for one in found.methods.values()
        for expert in one.plan.experts
        if one.method.keeps_model and expert.position > place and not exists(expert_folder(config.storage, expert.key))
    ]
    if gone:
        raise ConfigError(
            f"{name}: what is merged holds {task}'s signs and sizes, and cannot be rebuilt without it, for the experts "
            f"of {', '.join(dict.fromkeys(gone))} are gone from storage; give the run's own command, which trains them "
            "again, and then this one"
        )
    return _only(config, [one.name for one in found.tasks if one.name != task])


def opened(found: StoredRun) -> Experiment:
    """Returns a run's settings as its `config.json` had them when it was opened."""
    return found.plan.checked.given or found.config


def named(found: StoredRun) -> Experiment:
    """Returns a run's settings with its tasks by name, where they were all those of its data."""
    return found.config.model_copy(update={"tasks": tuple(task.name for task in found.tasks)})


def _only(config: Experiment, tasks: Sequence[str]) -> Experiment:
    """The settings with these tasks alone, and nothing that is said of others."""
    update = {
        field: {task: value for task, value in getattr(config, field).items() if task in tasks}
        for field in ("imported", "task_data")
    }
    return config.model_copy(update={"tasks": tuple(tasks), **update})


def _with(found: StoredRun, task: str, flag: str) -> StoredRun:
    known = [one.name for one in found.tasks]
    if task not in known:
        raise ConfigError(f"{flag} {task}: is no task of {found.config.run_name}{nearest(task, known)}")
    return found


@dataclass(frozen=True)
class Moved:
    """A learned task's accuracy in percent, before a change of the run and after it."""

    method: str
    protocol: Protocol
    task: str
    before: float | None
    after: float

    @property
    def change(self) -> float:
        """Points that are won, below 0 where some are lost; inf for a task without an accuracy before."""
        return math.inf if self.before is None else self.after - self.before


def moved(found: StoredRun, results: Results, sessions: int | None = None) -> list[Moved]:
    """Compares the last sessions of a run before and after a change, by method, protocol and task.

    Args:
        found: the run as it was.
        results: of the run as it would be, complete.
        sessions: how many of its tasks it goes on from; None: all.

    Returns:
        A row a task that is learned now; `before` is None for one that was not, or whose test images are others.
    """
    tested = {task.name: task.test_fingerprint for task in found.tasks[:sessions]}
    same = [task.name for task in results.plan.tasks if tested.get(task.name) == task.test_fingerprint]
    rows = []
    for plan in results.plan.methods:
        name, last = plan.method.name, len(plan.sessions) - 1
        for protocol in results.protocols(name):
            old = found.matrix(name, protocol).iloc[-1 if sessions is None else sessions - 1]
            session = results.session(name, protocol, last)
            assert session is not None, "the results are complete"
            for task, accuracy in session.found.items():
                before = float(old[task]) if task in same else None
                rows.append(Moved(name, protocol, task, before, accuracy.percent))
    return rows
