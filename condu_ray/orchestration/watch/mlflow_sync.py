"""Sends finished runs and sweeps to MLflow afterwards: what it has is left alone, what it lacks comes from storage."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from condu_ray.config import Experiment
from condu_ray.orchestration.watch.mlflow_address import (
    TrackingError,
    check_tracking,
    shown_uri,
    tracking_uri,
    unreachable,
)
from condu_ray.orchestration.watch.recorder import Recorder
from condu_ray.orchestration.watch.sweep_tracking import Parent
from condu_ray.plan.preflight import Checked, check
from condu_ray.plan.results import Results
from condu_ray.plan.stored import Stored, aggregates, written_report
from condu_ray.plan.stored_run import finished_run
from condu_ray.plan.trials import labels
from condu_ray.report.run_report import write_report
from condu_ray.report.text import json_text
from condu_ray.store.artifacts import read_text
from condu_ray.store.backend import backend
from condu_ray.store.layout import report_folder, results_path
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
        TrackingError: no server answers at the address, or MLflow did not take all of it.
        ValueError: the tasks or the backbone are not where the settings say.
    """
    base = stored.experiment(storage)
    tracking = base.tracking.model_copy(update={"enabled": True, "uri": uri})
    base = base.model_copy(update={"tracking": tracking})
    check_tracking(base)
    if why := unreachable(tracking_uri(base)):
        raise TrackingError(f"MLflow at {shown_uri(base)}: {why}")
    checked = check(base)
    if stored.kind == "run":
        there = _send(checked, sum(record["seconds"] for record in stored.records))
        return "is in MLflow" if there else "is not finished, or not on this machine: nothing was sent"
    config = checked.config.model_copy(update={"run": stored.name})
    done = {record["trial"]: record for record in stored.records}
    methods = ",".join(dict.fromkeys(trial.method for trial in stored.trials))
    orders = len({trial.order for trial in stored.trials})
    sent, lacking = 0, len(stored.trials) - len(done)
    with Parent(config, {"orders": str(orders), "methods": methods}, stored.trials, checked.read) as parent:
        if parent.run is None:  # without it, trials would be nobody's, and there a second time by the next call
            raise _lacking(config)
        for trial in stored.trials:
            if trial.id in done:
                one = checked.under(trial.config(config, stored.name))
                sent += _send(one, done[trial.id]["seconds"], parent.run, labels(trial))
        parent.finish(aggregates(written_report(stored)), report_folder(stored.folder))
    if not parent.complete:
        raise _lacking(config)
    return f"{sent} trials are in MLflow, {len(done) - sent} could not be read, {lacking} are not finished"


def _send(checked: Checked, seconds: float, parent: str | None = None, labels: Mapping[str, str] | None = None) -> bool:
    """Sends a finished run, of which MLflow takes nothing that it has already; whether all of it was in storage."""
    found = finished_run(checked)
    if found is None:
        return False
    with Recorder(Results(found.plan), parent, labels) as recorder:
        for _ in recorder.replay(found.measured):
            pass
        folder = report_folder(checked.config.run_folder)
        summary = recorder.results.summary(seconds, reused=len(found.measured), trained=0)
        if not _written(checked.config, summary):
            write_report(summary, folder, pictures=False)
        recorder.finish(folder)
    if not recorder.tracker.complete:
        raise _lacking(checked.config)
    return True


def _written(config: Experiment, summary: Mapping[str, Any]) -> bool:
    """Whether the run's own results say the same; they also say how long it took, what it trained and by what command.

    Args:
        config: the run's settings.
        summary: what storage has of it now.
    """
    path = results_path(config.run_folder)
    if not backend(path).exists(path):
        return False
    try:
        return bool(json.loads(read_text(path))["methods"] == json.loads(json_text(summary["methods"])))
    except (ValueError, KeyError, TypeError):  # damaged
        return False


def _lacking(config: Experiment) -> TrackingError:
    return TrackingError(
        f"MLflow at {shown_uri(config)}: did not take all of {config.run_name}, as is warned of above; the same "
        "command sends what is missing"
    )
