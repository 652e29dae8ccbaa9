"""One trial of a sweep: it posts the experts that it needs, merges them in task order, and has its states measured.

It runs in a small process that Ray Tune uses for one trial after the other. Training and measuring are done by the
lanes and evaluators that all trials share, so a trial costs what its merges cost.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from condu_ray.benchmark import load_task
from condu_ray.config import Experiment
from condu_ray.methods import get
from condu_ray.orchestration.lanes.lane import work_of
from condu_ray.orchestration.measure.measuring import NAME
from condu_ray.orchestration.state import ModelKeeper
from condu_ray.orchestration.watch import telemetry
from condu_ray.orchestration.watch.tracking import Tracker
from condu_ray.plan.measurement import Unit
from condu_ray.plan.results import Results
from condu_ray.plan.sessions import plan_method
from condu_ray.plan.trials import Trial, labels
from condu_ray.store import artifacts
from condu_ray.store.layout import config_path, expert_folder, record_path
from condu_ray.store.ledger import Entry

LOOK_SECONDS = 0.3
POST_SECONDS = 30.0
"""How often missing experts are posted again: a board that died comes back without them."""


class TrialError(RuntimeError):
    """A trial that cannot go on; the message says why."""


@dataclass(frozen=True)
class Setting:
    """What all trials of a sweep share, in plain values.

    Attributes:
        sweep: the sweep's name.
        folder: its folder, absolute.
        base: the base configuration, JSON values.
        tasks: folder of each task.
        backbone: theta0's fingerprint.
        precision: resolved training precision.
        namespace: of the board and the measuring service.
        parent: MLflow run of the sweep, or None.
    """

    sweep: str
    folder: str
    base: dict[str, Any]
    tasks: dict[str, str]
    backbone: str
    precision: str
    namespace: str
    parent: str | None


def run_trial(setting: Setting, trial: Trial) -> dict[str, Any]:
    """Runs a trial to its end; what is in storage is taken from there.

    Args:
        setting: what all trials share.
        trial: this one.

    Returns:
        The trial's record, which is in `<sweep>/trials` then.

    Raises:
        TrialError: an expert that it needs cannot be trained.
    """
    import ray

    begin = time.perf_counter()
    config = trial.config(Experiment.model_validate(setting.base), setting.sweep)
    tasks = [load_task(Path(setting.tasks[name])) for name in trial.order]
    plan = plan_method(get(trial.method, config), config, tasks, setting.backbone, setting.precision)
    artifacts.write_text(
        config_path(config.run_folder), config.model_dump_json(indent=1, exclude={"tracking": {"uri"}})
    )
    board = ray.get_actor("board", namespace=setting.namespace)
    measuring = ray.get_actor(NAME, namespace=setting.namespace)
    tracker = Tracker(config, list(trial.order), parent=setting.parent, labels=labels(trial))
    tracker.start(trial.method, plan.steps[-1].state)
    results, keeper = Results(config, tasks, [plan], tracker), ModelKeeper(config.portable())
    work = {entry.key: entry for entry in work_of(config, plan.items)}
    text, posted = json.dumps(config.portable()), float("-inf")
    waiting: list[tuple[list[Unit], Any]] = []
    for step in plan.steps:
        while step.item is not None and not work[step.item.key].finished:
            if time.monotonic() - posted > POST_SECONDS:
                posted = time.monotonic()
                ray.get(board.post.remote(list(work.values())))
            news: Any = ray.get(board.read.remote())
            if news["failure"]:
                raise TrialError(news["failure"])
            time.sleep(LOOK_SECONDS)
        key = step.item.key if step.item else None
        entry = Entry(**keeper.merge(trial.method, step.position, step.task, key, step.parent, step.state))
        units = results.units(plan, entry, setting.backbone, setting.precision)
        waiting.append((units, measuring.measure.remote(text, units)))
    measured = reused = 0
    for units, reference in waiting:
        answers: Any = ray.get(reference)
        for unit, (found, before) in zip(units, answers, strict=True):
            results.add(unit, found)
            measured, reused = measured + (not before), reused + before
    seconds = time.perf_counter() - begin
    telemetry.observe("condu_trial_seconds", seconds, run=setting.sweep, method=trial.method)
    report = results.report(seconds, reused=reused, trained=0, pictures=False)
    tracker.close()
    makers = [artifacts.read_meta(expert_folder(config.storage, key))["run"] for key in work]
    trained = makers.count(config.run_name)  # whichever trial's post came first
    entry_of = report["methods"][trial.method]
    union = entry_of.get("union")
    record = trial.record() | {
        "run": config.run_name,
        "accuracy": entry_of["accuracy"],
        "union": {"accuracy": union["accuracy"]} if union else None,
        "seconds": seconds,
        "experts": [item.key for item in plan.items],
        "experts_trained": trained,
        "experts_reused": len(plan.items) - trained,
        "measurements": measured,
        "measurements_reused": reused,
        "metrics": {k: v for k, v in entry_of.items() if k in ("transfer", "average", "last", "backward_transfer")},
        "mlflow": tracker.run_id(trial.method),
    }
    artifacts.write_sealed(record_path(Path(setting.folder), trial.id), record)
    telemetry.forget(run=config.run_name)
    return record


def tune_function(config: dict[str, Any]) -> None:
    """What Ray Tune calls: runs the trial that `config` names, and always ends with its result.

    Args:
        config: `trial` and `setting`, both as plain dicts.
    """
    from ray import tune

    named = config["trial"]
    trial = Trial(**named | {"order": tuple(named["order"])})
    record = run_trial(Setting(**config["setting"]), trial)
    metrics = {name: value for name, value in record["metrics"].items() if value is not None}
    tune.report(metrics | {"trial_name": trial.id})


def plain(trial: Trial) -> dict[str, Any]:
    """Returns a trial as Tune's `param_space` holds it."""
    return asdict(trial) | {"order": list(trial.order)}
