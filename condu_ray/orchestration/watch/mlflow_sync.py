"""Sends finished runs and sweeps to MLflow afterwards: what it has is left alone, what it lacks comes from storage."""

from __future__ import annotations

from pathlib import Path

from condu_ray.orchestration.watch.sweep_tracking import finish_parent, open_parent
from condu_ray.orchestration.watch.tracking import Tracker
from condu_ray.plan.preflight import Checked, check
from condu_ray.plan.results import Results
from condu_ray.plan.stored import Stored, aggregates, written_report
from condu_ray.plan.stored_run import finished_run
from condu_ray.plan.trials import labels


def sync(storage: Path, stored: Stored, uri: str | None = None) -> str:
    """Sends a run or a sweep with its trials.

    Args:
        storage: storage folder.
        stored: what to send.
        uri: MLflow's address; None: MLFLOW_TRACKING_URI, or storage's own file.

    Returns:
        What was done, for people.

    Raises:
        ValueError: the tasks or the backbone are not where the settings say.
    """
    base = stored.experiment(storage)
    tracking = base.tracking.model_copy(update={"enabled": True, "uri": uri})
    checked = check(base.model_copy(update={"tracking": tracking}))
    config = checked.config
    if stored.kind == "run":
        wall = sum(record["seconds"] for record in stored.records)
        there = log_again(checked, Tracker(config, [task.name for task in checked.tasks]), wall)
        return "is in MLflow" if there else "is not finished, or not on this machine: nothing was sent"
    done = {record["trial"]: record for record in stored.records}
    methods = ",".join(dict.fromkeys(trial.method for trial in stored.trials))
    orders = len({trial.order for trial in stored.trials})
    parent = open_parent(config, stored.name, {"orders": str(orders), "methods": methods})
    sent, lacking = 0, len(stored.trials) - len(done)
    for trial in stored.trials:
        if trial.id in done:
            one = checked.reordered(trial.config(config, stored.name))
            tracker = Tracker(one.config, list(trial.order), parent=parent, labels=labels(trial))
            sent += log_again(one, tracker, done[trial.id]["seconds"])
    finish_parent(config, parent, aggregates(written_report(storage, stored)), stored.folder / "report")
    return f"{sent} trials are in MLflow, {len(done) - sent} could not be read, {lacking} are not finished"


def log_again(checked: Checked, tracker: Tracker, seconds: float) -> bool:
    """Sends a finished run to MLflow, which takes nothing that it has already.

    Args:
        checked: the run's configuration, tasks and backbone.
        tracker: MLflow; closed when this returns.
        seconds: the run's wall time, for its report.

    Returns:
        Whether everything was in storage; nothing is sent otherwise.
    """
    found = finished_run(checked)
    if found is None:
        return False
    plans = [one.plan for one in found.methods.values()]
    results = Results(checked.config, checked.tasks, plans, tracker)
    for plan in plans:
        tracker.start(plan.method.name, plan.steps[-1].state)
    for unit, measured in found.measured:
        results.add(unit, measured)
    results.report(seconds, reused=len(found.measured), trained=0, pictures=False)
    tracker.close()
    return True
