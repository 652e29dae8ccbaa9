"""Results made again from storage alone: ledgers say what was committed, evaluations what was measured; no Ray."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from condu_ray.config import Experiment
from condu_ray.learn.loop import resolved_precision
from condu_ray.orchestration.watch.tracking import Tracker
from condu_ray.plan.measurement import Unit
from condu_ray.plan.preflight import Checked, make_plans
from condu_ray.plan.results import Results
from condu_ray.plan.sessions import MethodPlan
from condu_ray.store.layout import ledger_path
from condu_ray.store.ledger import Ledger
from condu_ray.store.measurements import read_measurement


@dataclass(frozen=True)
class Rebuilt:
    """A run whose sessions and measurements are all in storage.

    Attributes:
        plans: its methods' plans.
        results: a collector that has nothing yet.
        rows: what was measured, in the order of the sessions.
    """

    plans: Sequence[MethodPlan]
    results: Results
    rows: Sequence[tuple[Unit, dict[str, Any]]]


def rebuild(checked: Checked, tracker: Tracker) -> Rebuilt | None:
    """Finds every session and measurement of a run; None when anything is missing.

    What `training.precision=auto` means is known here only of this machine, so a run of a cluster whose GPUs this
    machine has not is not found.

    Args:
        checked: the run's configuration, tasks and backbone.
        tracker: MLflow, for what is added to the results.
    """
    config = checked.config
    precision = resolved_precision(config.training.precision, torch.cuda.is_available())
    plans = make_plans(checked, precision)
    results, rows = Results(config, checked.tasks, plans, tracker), []
    for plan in plans:
        ledger = Ledger(ledger_path(config.run_folder, plan.method.name))
        for step in plan.steps:
            entry = ledger.get(step.state)
            if entry is None:
                return None
            for unit in results.units(plan, entry, checked.backbone, precision):
                found = read_measurement(config.storage, unit.key)
                if found is None:
                    return None
                rows.append((unit, found))
    return Rebuilt(plans, results, rows)


def reordered(checked: Checked, config: Experiment) -> Checked:
    """Returns what was checked, for a trial's configuration: the same tasks in its order."""
    tasks = {task.name: task for task in checked.tasks}
    return replace(checked, config=config, tasks=tuple(tasks[name] for name in config.tasks or tasks))


def log_again(checked: Checked, tracker: Tracker, seconds: float) -> bool:
    """Sends a finished run to MLflow, which takes nothing that it has already.

    Args:
        checked: the run's configuration, tasks and backbone.
        tracker: MLflow; closed when this returns.
        seconds: the run's wall time, for its report.

    Returns:
        Whether everything was in storage; nothing is sent otherwise.
    """
    found = rebuild(checked, tracker)
    if found is None:
        return False
    for plan in found.plans:
        tracker.start(plan.method.name, plan.steps[-1].state)
    for unit, measured in found.rows:
        found.results.add(unit, measured)
    found.results.report(seconds, reused=len(found.rows), trained=0, pictures=False)
    tracker.close()
    return True
