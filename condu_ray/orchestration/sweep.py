"""A sweep: many orders, methods, seeds and settings at the price of what differs between them.

Ray Tune runs the trials, which only merge. Lanes train what all trials together need, each expert once; evaluators
measure each (state, task) once. Everything finished is in storage, so the same command goes on where it was stopped.
That is also why Tune's own restoring is not used: it would load pickled state, and knows less than storage does.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Sequence
from concurrent.futures import Future, wait
from dataclasses import asdict
from functools import partial
from typing import Any

from rich.console import Console

from condu_ray.benchmark.orders import resolve_orders
from condu_ray.config import Sweep, content_hash
from condu_ray.learn.loop import resolved_precision
from condu_ray.methods import get
from condu_ray.orchestration.cluster import env
from condu_ray.orchestration.cluster.background import background
from condu_ray.orchestration.lanes.lane import fit_lane, lane_job, work_of
from condu_ray.orchestration.run import LANE_END_SECONDS, RunError
from condu_ray.orchestration.trial import Setting, plain, tune_function
from condu_ray.orchestration.watch.pulse import Pulse
from condu_ray.orchestration.watch.sweep_tracking import finish_parent, open_parent
from condu_ray.plan.preflight import Checked, check
from condu_ray.plan.repair import mend
from condu_ray.plan.sessions import plan_method
from condu_ray.plan.stored import aggregates, find, write_sweep_report
from condu_ray.plan.trials import Trial, make_trials, read_records, sweep_name
from condu_ray.store import artifacts
from condu_ray.store.backend import backend
from condu_ray.store.drafts import remove_drafts
from condu_ray.store.layout import report_folder, sweep_config_path, sweep_folder, train_folder, tune_folder
from condu_ray.store.lease import lease
from condu_ray.store.location import Place

SHOW_SECONDS = 10.0
MOST_TRIALS = 8
"""Trials side by side, unless `--trials` says otherwise: each is a process of some hundred megabytes."""


def run_sweep(sweep: Sweep) -> list[Place]:
    """Runs what is left of a sweep and writes its report.

    Args:
        sweep: its settings.

    Returns:
        The report's files.

    Raises:
        RunError: training failed for good, or a trial did; what is finished stays.
        LeaseError: another driver is at this sweep.
        ValueError, RuntimeError: bad input, before anything was spent.
    """
    begin = time.perf_counter()
    if sweep.repair:
        mend(sweep.storage)
    checked = check(sweep.experiment())
    names = [task.name for task in checked.tasks]
    orders = resolve_orders(sweep.orders, names, sweep.seed)
    base = sweep.model_copy(update={"distillation": checked.config.distillation})
    trials = make_trials(base, orders)
    name = sweep_name(base, trials, content_hash([checked.backbone, [task.fingerprint for task in checked.tasks]]))
    folder = sweep_folder(sweep.storage, name).absolute()
    with lease(folder):
        remove_drafts(sweep.storage)
        return _run(base, checked, name, folder, trials, begin)


def _run(
    sweep: Sweep, checked: Checked, name: str, folder: Place, trials: Sequence[Trial], begin: float
) -> list[Place]:
    """Runs what is left and writes the report; nobody else is at this sweep meanwhile."""
    console, base = Console(highlight=False, soft_wrap=True), sweep
    _remember(folder, base, trials)
    if sweep.tracking.uri is not None:  # by the environment: a setting would be in the files that Tune writes
        os.environ["MLFLOW_TRACKING_URI"] = sweep.tracking.uri
        base = base.model_copy(update={"tracking": sweep.tracking.model_copy(update={"uri": None})})
    done = read_records(folder, trials)
    left = [trial for trial in trials if trial.id not in done]
    console.print(f"sweep {name}: {len(trials)} trials, {len(done)} finished before, {len(left)} to run")
    if left:
        with env.ray_cluster(sweep.cluster.address, namespace=f"condu_ray/{name}"):
            running = _Running(base, checked, name, folder, trials, console)
            if sweep.cache_report:
                console.print(running.cache_report(left))
                return []
            running.run(left)
    return _report(base, name, time.perf_counter() - begin, console)


def _remember(folder: Place, sweep: Sweep, trials: Sequence[Trial]) -> None:
    """Writes what the sweep is, and refuses another one under the same name."""
    path = sweep_config_path(folder)
    kept = sweep.experiment().model_dump(mode="json", exclude={"storage", "tracking", "cluster"})
    records = [trial.record() for trial in trials]
    identity = content_hash([kept, records])
    if backend(path).exists(path):
        before = json.loads(artifacts.read_text(path))
        if before["identity"] != identity:
            raise ValueError(f"--run: {folder} holds a sweep with other settings or trials; give another name")
    known = {"identity": identity, "config": kept, "trials": records, "versions": artifacts.provenance()}
    artifacts.write_text(path, json.dumps(known, indent=1))


class _Running:
    """A sweep on a cluster that is up."""

    def __init__(
        self, sweep: Sweep, checked: Checked, name: str, folder: Place, trials: Sequence[Trial], console: Console
    ) -> None:
        import ray

        self.sweep, self.checked, self.name, self.folder, self.console = sweep, checked, name, folder, console
        self.config = sweep.experiment().model_copy(update={"run": name})
        self.room = env.room_for(self.config)
        self.cpus = ray.cluster_resources().get("CPU", 1.0)
        self.precision = resolved_precision(sweep.training.precision, self.room.gpus_per_worker > 0)
        self.work = {entry.key: entry for trial in trials for entry in self._work(trial)}
        self.missing = [entry for entry in self.work.values() if not entry.finished]
        self.pulse = Pulse(name, self.config.storage, len(self.work) - len(self.missing), self.missing)

    def _work(self, trial: Trial) -> list[Any]:
        config = trial.config(self.config, self.name)
        tasks = {task.name: task for task in self.checked.tasks}
        order = [tasks[name] for name in trial.order]
        return work_of(
            config, plan_method(get(trial.method, config), config, order, self.checked.backbone, self.precision).items
        )

    def cache_report(self, left: Sequence[Trial]) -> str:
        """Returns what storage has of the experts that the sweep needs."""
        by_method: dict[str, tuple[int, int]] = {}
        lines = []
        for trial in left:
            keys = {entry.key: entry.finished for entry in self._work(trial)}
            here, needed = by_method.get(trial.method, (0, 0))
            by_method[trial.method] = (here + sum(keys.values()), needed + len(keys))
        for method, (here, needed) in by_method.items():
            lines.append(f"  {method}: {needed} experts over all its trials, {here} of them in storage")
        found = len(self.work) - len(self.missing)
        total = f"{len(self.work)} different experts, {found} in storage, {len(self.missing)} to train"
        return "\n".join([*lines, total])

    def run(self, left: Sequence[Trial]) -> None:
        """Runs the trials that are left, and waits for the lanes to close."""
        import ray
        import ray.train.torch
        import ray.tune

        from condu_ray.orchestration.lanes.board import Board
        from condu_ray.orchestration.measure.evaluation import start_evaluator
        from condu_ray.orchestration.measure.measuring import NAME, Measuring

        methods = self.config.method
        keeper: Any = ray.remote(Board).options(
            name="board", num_cpus=0, max_restarts=-1, max_task_retries=-1, **env.beside_driver()
        )
        # What starts from a merged state its trial posts, once it runs: a lane must not wait for one that does not.
        first = [entry for entry in self.missing if entry.item["item"]["state"] is None]
        self.board: Any = keeper.remote(first, self.room.lanes, False)
        tasks = self.checked.tasks
        self._evaluator = partial(start_evaluator, self.config, self.checked.spec, tasks, self.precision, self.room)
        evaluators = [self._evaluator() for _ in range(self.room.evaluators + (0 if self.missing else self.room.lanes))]
        measuring = ray.remote(Measuring).options(name=NAME, num_cpus=0, max_concurrency=1000, **env.beside_driver())
        self.measuring: Any = measuring.remote(str(self.config.storage.absolute()), evaluators, self.name)
        parent = open_parent(self.config, self.name, {"orders": self.sweep.orders, "methods": ",".join(methods)})
        routed = any(get(method, self.config).routes for method in methods)
        prototypes: Future[Any] | None = background(self._prototypes) if routed else None
        lanes = [background(self._fit, lane) for lane in range(self.room.lanes if self.missing else 0)]
        setting = Setting(
            self.name,
            str(self.folder),
            self.config.portable(),
            {task.name: str(task.folder) for task in tasks},
            self.checked.backbone,
            self.precision,
            f"condu_ray/{self.name}",
            parent,
        )
        tuning = background(self._tune, left, setting, prototypes)
        self._watch(tuning, lanes, left)
        tuning.result()
        ray.get(self.board.close.remote())
        wait(lanes, timeout=LANE_END_SECONDS)

    def _prototypes(self) -> None:
        from condu_ray.orchestration.measure.encoders import make_prototypes

        make_prototypes(
            self.config.storage,
            self.checked.spec,
            self.checked.backbone,
            self.checked.tasks,
            self.room,
            self.config.training.threads,
        )

    def _fit(self, lane: int) -> None:
        folders = {task.name: task.folder for task in self.checked.tasks}
        job = lane_job(self.config, self.checked.spec, folders, self.precision, lane)
        fit_lane(job | {"board": self.board}, self.config, self.room, train_folder(self.folder))

    def _tune(self, left: Sequence[Trial], setting: Setting, prototypes: Future[Any] | None) -> None:
        """Hands the trials to Ray Tune; lanes train meanwhile."""
        from ray import tune

        if prototypes is not None:  # measuring wants them, and trials ask for it as soon as they have merged
            prototypes.result()
        logging.getLogger("ray.tune").setLevel(logging.ERROR)
        side_by_side = self.sweep.trials or min(MOST_TRIALS, max(4, int(self.cpus)), len(left))
        tuner = tune.Tuner(
            tune.with_resources(tune_function, {"cpu": env.TRIAL_CPUS}),
            param_space={
                "trial": tune.grid_search([plain(trial) for trial in left]),
                "setting": asdict(setting),
            },
            tune_config=tune.TuneConfig(max_concurrent_trials=side_by_side, reuse_actors=True),
            run_config=tune.RunConfig(
                name=tune_folder(self.folder, int(time.time())).name,
                storage_path=str(self.folder),
                verbose=0,
                failure_config=tune.FailureConfig(max_failures=self.config.training.max_failures),
                callbacks=[],
            ),
        )
        errors = [str(error) for error in tuner.fit().errors]
        if errors:
            raise RunError(f"{len(errors)} trials failed, the first: {errors[0]}. What is finished stays.")

    def _watch(self, tuning: Future[None], lanes: Sequence[Future[None]], left: Sequence[Trial]) -> None:
        """Prints where the sweep is until Tune ends; stops it when a lane is lost for good."""
        import ray

        begin = shown = time.monotonic()
        grown, diverged = not self.missing, False
        while not tuning.done():
            wait([tuning], timeout=0.5)
            for lane in lanes:
                if lane.done() and lane.exception() is not None:
                    raise RunError(f"a lane failed: {lane.exception()}. What is finished stays.") from lane.exception()
            if time.monotonic() - shown >= SHOW_SECONDS:
                shown = time.monotonic()
                news: Any = ray.get(self.board.read.remote())
                if len(news["trained"]) >= len(self.missing) and not grown:
                    grown = True  # the lanes have nothing more to do: what they had is free for measuring
                    ray.get(self.measuring.add.remote([self._evaluator() for _ in lanes]))
                finished = len(read_records(self.folder, left))
                self.pulse.beat((news["words"], len(news["trained"]), finished))
                self.pulse.trials(finished, len(left) - finished)
                if news["failure"] and not diverged:
                    diverged = True  # trials that want this expert fail, the others go on
                    self.pulse.diverged()
                minutes, seconds = divmod(int(shown - begin), 60)
                words = [f"{word['task']} {word['step']}/{word['steps']}" for word in news["words"].values()]
                training = f", {'; '.join(words)}" if words and len(news["trained"]) < len(self.missing) else ""
                self.console.print(
                    f"[dim]{minutes:02d}:{seconds:02d}[/] {finished}/{len(left)} trials, "
                    f"{len(news['trained'])}/{len(self.missing)} experts trained{training}"
                )


def _report(base: Sweep, name: str, seconds: float, console: Console) -> list[Place]:
    """Writes the report from the records in storage, and gives MLflow's run of the sweep its aggregates."""
    found = find(base.storage, name)
    extra = {"seconds": seconds, "command": artifacts.command()}
    folder = report_folder(found.folder)
    numbers = write_sweep_report(base.storage, [found], folder, published=base.published, extra=extra)
    config = base.experiment()
    finish_parent(config, open_parent(config, name, {}), aggregates(numbers), folder)
    paid = numbers["extra"]["costs"]
    console.print(
        f"{paid['experts_used']} experts used, {paid['experts_different']} different, "
        f"{paid['experts_trained_by_this_sweep']} trained by this sweep; {paid['measurements']} measurements made, "
        f"{paid['measurements_reused']} reused; {seconds:.0f} s"
    )
    console.print(f"report: {folder / 'report.md'}")
    return [folder / name for name in artifacts.names(folder)]
