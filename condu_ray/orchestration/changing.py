"""Changing a finished run: what would be is trained, merged and measured first, and committed whole or not at all."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from rich.markup import escape
from rich.table import Table

from condu_ray.command_line import ConfigError
from condu_ray.config import Experiment
from condu_ray.console import whole
from condu_ray.orchestration.cluster import env
from condu_ray.orchestration.cluster.failure import RunError, at_work
from condu_ray.orchestration.engine import Engine
from condu_ray.orchestration.run import run, work, write_config, write_settings
from condu_ray.orchestration.watch.lines import Lines
from condu_ray.orchestration.watch.mlflow_address import check_tracking
from condu_ray.orchestration.watch.progress import Display
from condu_ray.plan.changes import Moved, moved, named, opened
from condu_ray.plan.preflight import Checked, check
from condu_ray.plan.results import Results
from condu_ray.plan.retention import let_old_go
from condu_ray.plan.run_plan import RunPlan
from condu_ray.plan.staging import commit_staged, drop_staged, settle
from condu_ray.plan.stored import find
from condu_ray.plan.stored_run import StoredRun, finished_run, stored_run
from condu_ray.report.text import rounded
from condu_ray.store.drafts import remove_drafts
from condu_ray.store.layout import trial_path
from condu_ray.store.lease import lease


@contextmanager
def leased(before: Experiment) -> Iterator[Callable[[], None]]:
    """Holds the lease of a run that is changed, which nobody may have changed since it was opened.

    Args:
        before: its settings as they were then.

    Yields:
        As `lease`.

    Raises:
        ConfigError: they are others by now.
        LeaseError: another driver is at this run.
    """
    with lease(before.run_folder) as held:
        now, named_so = find(before.storage, before.run_name).experiment(before.storage), {"run": before.run}
        if now.model_copy(update=named_so) != before:
            raise ConfigError(
                f"{before.run_name}: was changed since this command looked at it; see what it has now (condu-ray "
                "report), and give the command again"
            )
        yield held


def change(
    found: StoredRun,
    config: Experiment,
    what: str,
    task: str | None,
    max_drop: float | None,
    last: Callable[[], None] = lambda: None,
) -> None:
    """Makes another run of a finished one, and its report.

    Args:
        found: the run as it is, finished.
        config: its settings as they shall be.
        what: is done, as the ledger says it: `add`, `again` or `forget`.
        task: with which task; None: with several.
        max_drop: points that a learned task may lose, at most; None: any.
        last: is done in the end, before another driver may begin.

    Raises:
        RunError: one would lose more, and the run is as it was; or training failed.
        ConfigError: it was changed since it was found.
        LeaseError: another driver is at this run.
        ValueError, RuntimeError: bad input, before anything was spent.
    """
    lines = Lines()
    check_tracking(config)
    with leased(opened(found)) as held:
        if config == named(found):  # by a command that was killed after it had committed
            _settle(found.plan, what, task)
            run(config, held=held)
            lines.say(f"{config.run_name}: that was done already")
        else:
            _change(found, config, what, task, max_drop, lines, held)
        last()


def bring(begun: Experiment, config: Experiment, task: str, max_drop: float | None, sessions: int | None) -> None:
    """Has a run take an expert from elsewhere, on trial first where it is finished.

    Args:
        begun: its settings as they are.
        config: its settings as they shall be.
        task: whose expert it is.
        max_drop: as of `change`.
        sessions: how many of its tasks it goes on from; None: all.

    Raises:
        RunError, ConfigError, LeaseError, ValueError, RuntimeError: as `change`.
    """
    lines = Lines()
    check_tracking(config)
    with leased(begun) as held:
        if config == begun:  # by a command that was killed, perhaps with the run that was not finished yet
            roll_back(config, held, "import", task)
            lines.say(f"{config.run_name}: had this expert of {task} already")
            return
        # Without the methods that do not take it, which it goes on without.
        found = stored_run(check(begun.model_copy(update={"method": config.method}), writes=False))
        if found.complete:
            _change(found, config, "import", task, max_drop, lines, held, sessions)
            return
        changed = [f" ({name}: {one.why_fewer})" for name, one in found.methods.items() if one.why_fewer]
        lines.say(
            f"{config.run_name} is not finished{''.join(changed[:1])}, so that nobody can say what its tasks lose by "
            f"{task}: it is merged all the same"
        )
        run(config, held=held)
        if sessions is not None:
            roll_back(config, held, "import", task)


def _change(
    found: StoredRun, config: Experiment, what: str, task: str | None, max_drop: float | None, lines: Lines,
    held: Callable[[], None], sessions: int | None = None,
) -> None:  # fmt: skip
    with lines.waiting("tasks and backbone are checked"):
        checked = check(config, lambda words: lines.say(escape(words)))
    config, tasks = checked.config, [one.name for one in checked.tasks]
    remove_drafts(config.storage)
    write_settings(trial_path(config.run_folder), config)  # who forgets a task for another run sees that it is wanted
    with Display(tasks, config.training.steps, lines) as display:
        results = on_trial(checked, display, lines, held)
    rows = moved(found, results, sessions)
    for table in tables(rows):
        lines.console.print(whole(table, lines.console))
    worst = min(rows, key=lambda row: row.change)
    if max_drop is not None and -worst.change > max_drop:
        drop_staged(results.plan)
        raise RunError(
            f"{worst.task} would lose {-worst.change:.2f} points by {worst.method} under the protocol "
            f"{worst.protocol}, more than --max_drop {max_drop:g}: {config.run_name} is as it was"
        )
    held()
    commit_staged(results.plan)
    write_config(config)
    _settle(results.plan, what, task)
    run(config, held=held)


def roll_back(config: Experiment, held: Callable[[], None], what: str = "rollback", task: str | None = None) -> int:
    """Has a run be what its settings are now; then makes what it lacks, and its report.

    Args:
        config: its settings, with fewer tasks.
        held: of its lease (`leased`).
        what: is done, as the ledger says it.
        task: with which task.

    Returns:
        How many sessions count no more; 0: none did.

    Raises:
        LeaseError, ValueError, RuntimeError: as `change`.
    """
    lines = Lines()
    checked = check(config, lambda words: lines.say(escape(words)))
    held()
    write_config(checked.config)
    plan = stored_run(checked).plan
    count = _settle(plan, what, task)
    run(config, held=held)
    return count


def _settle(plan: RunPlan, what: str, task: str | None) -> int:
    """Has ledgers, what was on trial and old sessions be as a run's settings are now; returns `settle`'s count."""
    count = settle(plan, what, task)
    drop_staged(plan)
    let_old_go(StoredRun(plan))
    return count


def on_trial(checked: Checked, display: Display, lines: Lines, held: Callable[[], None]) -> Results:
    """Trains, merges and measures what a run would be, beside its ledgers.

    Args:
        checked: the settings that it would have.
        display: shows where it is.
        lines: says the lines.
        held: raises LeaseError once another driver has taken the run over.

    Returns:
        The results, complete.

    Raises:
        RunError: training failed for good.
    """
    stored = finished_run(checked)
    if stored is not None:
        results = Results(stored.plan, trial=True)
        for measurement, accuracy in stored.measured:
            results.add(measurement, accuracy)
        return results
    config = checked.config
    with env.ray_cluster(config.cluster.address, config.run_name, lines):
        engine = Engine(checked, config.run_folder)
        results = Results(engine.plans[0], trial=True)
        with at_work():
            work(engine, results, display, lambda session: None, held, staged=True)
        return results


def tables(rows: Sequence[Moved]) -> list[Table]:
    """Returns a table a method and protocol: each learned task before and after."""
    found = []
    for method, protocol in dict.fromkeys((row.method, row.protocol) for row in rows):
        table = Table(title=f"{method}, protocol {protocol}: accuracy in percent", title_justify="left")
        for head in ("Task", "before", "after", "change"):
            table.add_column(head, justify="left" if head == "Task" else "right")
        own = [row for row in rows if (row.method, row.protocol) == (method, protocol)]
        for row in own:
            cells = ["–", "–"] if row.before is None else [f"{row.before:.2f}", f"{rounded(row.change, 2):+.2f}"]
            table.add_row(row.task, cells[0], f"{row.after:.2f}", cells[1])
        kept = [row.change for row in own if row.before is not None]
        if kept:
            mean, worst = (f"{rounded(one, 2):+.2f}" for one in (sum(kept) / len(kept), min(kept)))
            table.caption = f"mean change of {len(kept)} tasks {mean}, worst {worst}"
        found.append(table)
    return found
