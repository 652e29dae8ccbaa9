"""Sessions on trial: merged and measured beside a method's ledger, then committed together or not at all; no Ray.

A run is what its settings say, as far as its ledgers have it. So a change of a finished run is committed by one file
that is replaced, `config.json`: before that the ledgers get lines that the old settings do not ask for, after it the
sessions that the new ones do not ask for are marked as counting no more. A kill leaves the old run or the new one, and
the same command does what is left.
"""

from __future__ import annotations

from datetime import UTC, datetime

from condu_ray.plan.measurement import protocols
from condu_ray.plan.run_plan import RunPlan
from condu_ray.plan.sessions import MethodPlan
from condu_ray.store import artifacts
from condu_ray.store.backend import backend
from condu_ray.store.layout import (
    inspect_path,
    ledger_path,
    results_folder,
    rows_path,
    session_folder,
    sessions_folder,
    staged_path,
    tallies_folder,
    trial_path,
)
from condu_ray.store.ledger import Entry, Ledger, Mark
from condu_ray.store.location import Place


def commit_staged(plan: RunPlan) -> None:
    """Puts the sessions on trial that a plan asks for into the ledgers; those of the old settings stay as they are.

    Raises:
        WriteError: the disk is full or fails; the old settings hold.
        LedgerError: a ledger is damaged.
    """
    for one in plan.methods:
        staged, ledger = _staged(plan, one), Ledger(ledger_path(plan.config.run_folder, one.method.name))
        for session in one.sessions:
            entry = staged.get(session.state)
            if entry is not None and ledger.get(session.state) is None:
                ledger.append(entry)


def drop_staged(plan: RunPlan) -> None:
    """Removes what was on trial and is in no ledger: settings, lines, and the sessions' files, also those of a kill.

    Who merges writes a session's files before its line, so that files without any line are nobody's; the caller holds
    the run's lease.
    """
    for one in plan.methods:
        run, name, path = plan.config.run_folder, one.method.name, _staged(plan, one).path
        known = [line for line in Ledger(ledger_path(run, name)).history if isinstance(line, Entry)]
        kept = {session_folder(run, name, line.position, line.task, line.state).name for line in known}
        for folder in (sessions_folder(run, name) / each for each in artifacts.names(sessions_folder(run, name))):
            if folder.name not in kept:
                backend(folder).remove(folder)
        for folder in (tallies_folder(run, name) / each for each in artifacts.names(tallies_folder(run, name))):
            if folder.name not in {line.state for line in known}:
                backend(folder).remove(folder)
        if backend(path).exists(path):
            backend(path).remove(path)
    backend(run_folder := plan.config.run_folder).remove(trial_path(run_folder))


def settle(plan: RunPlan, what: str, task: str | None = None) -> int:
    """Has the ledgers say that all sessions that a run's settings do not ask for count no more.

    Args:
        plan: of the run as it is from now on; its settings are in `config.json`.
        what: was done, as a `Mark` says it.
        task: with which task.

    Returns:
        How many sessions that were.

    Raises:
        WriteError: the disk is full or fails; the same call does the rest.
    """
    count, storage = 0, plan.config.storage
    for one in plan.methods:
        ledger = Ledger(ledger_path(plan.config.run_folder, one.method.name))
        planned = {session.state for session in one.sessions}
        undone = tuple(entry.state for entry in ledger.entries if entry.state not in planned)
        if undone:
            artifacts.allow_marks(storage)
            ledger.mark(Mark(what, task, undone, datetime.now(UTC).isoformat(timespec="seconds")))
            count += len(undone)
    _remove_stale(plan)
    return count


def _staged(plan: RunPlan, one: MethodPlan) -> Ledger:
    return Ledger(staged_path(plan.config.run_folder, one.method.name))


def _remove_stale(plan: RunPlan) -> None:
    """Removes rows of sessions that the run has no more, and the page that shows it as it was."""
    run = plan.config.run_folder
    wanted = {
        rows_path(run, one.method.name, session.position, protocol).name
        for one in plan.methods
        for session in one.sessions
        for protocol in protocols(plan.config, one.method)
    }
    stale: list[Place] = [
        results_folder(run) / name for name in artifacts.names(results_folder(run)) if name not in wanted
    ]
    for path in [*stale, inspect_path(run)]:
        backend(path).remove(path)
