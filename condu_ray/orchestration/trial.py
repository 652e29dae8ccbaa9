"""One trial of a sweep: the same loop as a run's, in a small process that Ray Tune uses for one trial after the other.

Training and measuring are done by the lanes and evaluators that all trials share, so a trial costs what its merges
cost.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import ray

from condu_ray.config import Experiment, Tracking
from condu_ray.methods.tallies import drop_counted
from condu_ray.orchestration.cluster.failure import full_disk_ends
from condu_ray.orchestration.lanes.crew import BOARD
from condu_ray.orchestration.measure.measuring import MEASURING
from condu_ray.orchestration.merger import Merger
from condu_ray.orchestration.run import LOOK_SECONDS, report, write_config
from condu_ray.orchestration.shards import start_shards
from condu_ray.orchestration.state import ModelKeeper
from condu_ray.orchestration.watch import telemetry
from condu_ray.orchestration.watch.recorder import Recorder
from condu_ray.orchestration.watch.sweep_tracking import MLFLOW_COMPLETE
from condu_ray.plan.preflight import Checked
from condu_ray.plan.results import Results
from condu_ray.plan.run_plan import plan_run
from condu_ray.plan.trials import Trial, labels, made_of
from condu_ray.report.protocols import accuracies, matrices
from condu_ray.store import artifacts
from condu_ray.store.layout import expert_folder, record_path
from condu_ray.store.location import Place

MLFLOW_SECONDS = 10.0
"""How long a trial's end waits for MLflow: the sweep sends in the end what has not come through."""


@dataclass(frozen=True)
class Shared:
    """What all trials of a sweep share.

    Attributes:
        checked: the settings that they share, tasks and backbone; `run` is the sweep's name.
        folder: the sweep's folder, absolute.
        trials: every trial by its identity.
        precision: resolved training precision.
        namespace: of the board and the measuring service.
        parent: MLflow run of the sweep; None where it could not be opened: then the sweep sends its trials in the end.
        tracking: variables of the driver's environment that say where MLflow is: a worker does not have it, and Ray
            puts trials wherever there is room. They may hold a password, and go by memory alone.
    """

    checked: Checked
    folder: Place
    trials: dict[str, Trial]
    precision: str
    namespace: str
    parent: str | None
    tracking: dict[str, str] = field(repr=False)


def run_trial(shared: Shared, trial: Trial) -> dict[str, Any]:
    """Runs a trial to its end; what is in storage is taken from there.

    Args:
        shared: what all trials share.
        trial: this one.

    Returns:
        The trial's record, which is in `<sweep>/trials` then.
    """
    begin, sweep = time.perf_counter(), shared.checked.config.run_name
    config = trial.config(shared.checked.config, sweep)
    write_config(config)
    board = ray.get_actor(BOARD, namespace=shared.namespace)
    measuring = ray.get_actor(MEASURING, namespace=shared.namespace)
    # Without their parent its runs would be nobody's, and be there a second time when the sweep sends them as its own.
    unheard = config.tracking.enabled and shared.parent is None
    told = config.model_copy(update={"tracking": Tracking(enabled=False)}) if unheard else config
    results = Results(plan_run(shared.checked.under(told), shared.precision))
    heard = Recorder(results, shared.parent, labels(trial), MLFLOW_SECONDS)
    with merging(config.absolute()) as keeper, heard as recorder:
        merger = Merger(results, lambda name, session: ray.put(keeper.merge(name, session)), board, measuring)
        while not results.complete:
            news: Any = ray.get(board.read.remote())
            for session in merger.advance(news):
                recorder.session(session)
            time.sleep(LOOK_SECONDS)
        for plan in results.plan.methods:  # a trial goes on no more
            drop_counted(config.run_folder, plan.method)
        seconds = time.perf_counter() - begin
        telemetry.observe("condu_trial_seconds", seconds, run=sweep, method=trial.method)
        keys = [expert.key for expert in results.plan.experts]
        makers = [artifacts.read_meta(expert_folder(config.storage, key))["run"] for key in keys]
        trained = makers.count(config.run_name)  # whichever trial's post came first
        reused = merger.measured - len(merger.own)
        found = report(recorder, begin, reused=reused, trained=trained, pictures=False)["methods"][trial.method]
    shown = next(iter(matrices(found).values()))  # Ray Tune's metrics are of one protocol
    record = trial.record() | {
        "run": config.run_name,
        "measured_on": config.measure_on,
        "precision": results.plan.precision,
        **accuracies(found),
        "seconds": seconds,
        "experts": keys,
        "made": made_of(results.plan),
        "experts_trained": trained,
        "experts_reused": len(keys) - trained,
        "measurements": len(merger.own),
        "measurements_reused": reused,
        "metrics": {k: v for k, v in shown.items() if k in ("transfer", "average", "last", "backward_transfer")},
        "mlflow": recorder.tracker.run_id(trial.method),
        MLFLOW_COMPLETE: recorder.tracker.complete and not unheard,  # a trial's own warnings are read by nobody
    }
    artifacts.write_sealed(record_path(shared.folder, trial.id), record)
    telemetry.forget(run=config.run_name)
    return record


@contextmanager
def merging(config: Experiment) -> Iterator[ModelKeeper]:
    """Yields who merges a trial, with shards where settings ask for them; they end with the trial, not its process."""
    shards = start_shards(config)
    try:
        yield ModelKeeper(config, shards=None if shards is None else lambda _: shards)
    finally:
        if shards is not None:
            shards.end()


def tune_function(config: dict[str, Any], shared: Shared) -> None:
    """What Ray Tune calls: runs the trial that `config` names, and always ends with its result.

    Args:
        config: `trial`, a trial's identity.
        shared: what all trials share.
    """
    from ray import tune

    os.environ.update(shared.tracking)
    with full_disk_ends(ray.get_actor(BOARD, namespace=shared.namespace)):
        record = run_trial(shared, shared.trials[config["trial"]])
    metrics = {name: value for name, value in record["metrics"].items() if value is not None}
    tune.report(metrics | {"trial_name": record["trial"]})
