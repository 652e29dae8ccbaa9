"""Sends finished runs and sweeps to MLflow afterwards: what it has is left alone, what it lacks comes from storage."""

from __future__ import annotations

from condu_ray.orchestration.watch.sweep_tracking import finish_parent, open_parent
from condu_ray.orchestration.watch.tracking import Tracker
from condu_ray.plan.preflight import check
from condu_ray.plan.rebuild import log_again, reordered
from condu_ray.plan.stored import Stored, aggregates, written_report
from condu_ray.plan.trials import labels
from condu_ray.store.layout import report_folder
from condu_ray.store.location import Place


def sync(storage: Place, stored: Stored, uri: str | None = None) -> str:
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
            one = reordered(checked, trial.config(config, stored.name))
            tracker = Tracker(one.config, list(trial.order), parent=parent, labels=labels(trial))
            sent += log_again(one, tracker, done[trial.id]["seconds"])
    finish_parent(config, parent, aggregates(written_report(storage, stored)), report_folder(stored.folder))
    return f"{sent} trials are in MLflow, {len(done) - sent} could not be read, {lacking} are not finished"
