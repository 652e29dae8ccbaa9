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
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import ray
from rich.markup import escape

from condu_ray.benchmark.orders import resolve_orders
from condu_ray.config import Experiment, Sweep, Tracking, content_hash
from condu_ray.orchestration.again import remember_sweep, shown_costs
from condu_ray.orchestration.cluster import env
from condu_ray.orchestration.cluster.background import background
from condu_ray.orchestration.cluster.failure import RunError, at_work, told
from condu_ray.orchestration.cluster.ray_storage import ray_storage
from condu_ray.orchestration.cluster.room import TRIAL_CPUS
from condu_ray.orchestration.engine import Engine
from condu_ray.orchestration.run import LOOK_SECONDS
from condu_ray.orchestration.trial import Shared, tune_function
from condu_ray.orchestration.watch.lines import LINE_SECONDS, Lines
from condu_ray.orchestration.watch.mlflow_address import check_tracking, elsewhere, tracking_uri
from condu_ray.orchestration.watch.mlflow_sync import sync
from condu_ray.orchestration.watch.news import News
from condu_ray.orchestration.watch.sweep_tracking import Parent
from condu_ray.plan.idle import idle_axes
from condu_ray.plan.preflight import Checked, check, check_trials
from condu_ray.plan.repair import mend
from condu_ray.plan.stored import aggregates, find, write_sweep_report
from condu_ray.plan.sweep_name import ELSEWHERE, as_begun, sweep_name
from condu_ray.plan.trials import (
    Trial,
    base_of,
    count_records,
    make_trials,
    read_records,
    require_alike,
    unrouted,
)
from condu_ray.store import artifacts
from condu_ray.store.backend import backend
from condu_ray.store.drafts import remove_drafts
from condu_ray.store.layout import report_folder, sweep_config_path, sweep_folder, tune_folder
from condu_ray.store.lease import lease
from condu_ray.store.location import Place
from condu_ray.store.provenance import command, provenance

MOST_TRIALS = 8
"""Trials side by side, unless `--trials` says otherwise: each is a process of some hundred megabytes."""


def run_sweep(sweep: Sweep, lines: Lines | None = None) -> list[Place]:
    """Runs what is left of a sweep and writes its report.

    Args:
        sweep: its settings.
        lines: says the lines; None: new ones, whose time begins now.

    Returns:
        The report's files.

    Raises:
        RunError: training failed for good, or a trial did; what is finished stays.
        LeaseError: another driver is at this sweep.
        ValueError, RuntimeError: bad input, before anything was spent.
    """
    begin, lines = time.perf_counter(), lines or Lines()
    check_tracking(sweep)
    if sweep.shots is not None and sweep.seeds > 1:
        raise ValueError(
            "--seeds: images of --shots are drawn by the seed, one draw a sweep; sweep each --seed on its own"
        )
    if sweep.repair:
        mend(sweep.storage)
    with lines.waiting("tasks and backbone are checked"):
        checked = check(base_of(sweep), lambda words: lines.say(escape(words)), later=True)
    orders = resolve_orders(sweep.orders, [task.name for task in checked.tasks], sweep.seed)
    base = sweep.model_copy(update={"distillation": checked.config.distillation})
    trials = make_trials(base, orders)
    words: list[str] = []
    if sweep.sweep:
        check_trials(checked, [trial.config(checked.config, "check") for trial in trials])
        words = idle_axes(checked, trials)
    content = content_hash([checked.backbone, [task.fingerprint for task in checked.tasks]])
    name = sweep_name(base, trials, content)
    folder = sweep_folder(sweep.storage, name).absolute()
    with lease(folder) as held:
        remove_drafts(sweep.storage)
        config = base.experiment().model_copy(update={"run": name, "tracking": _tracking(base)}).absolute()
        done = read_records(folder, trials)
        left = [trial for trial in trials if trial.id not in done]
        lines.console.print(f"sweep {name}: {len(trials)} trials, {len(done)} finished before, {len(left)} to run")
        lines.console.print(*checked.words, *words, *elsewhere(config), sep="\n", markup=False)
        cluster = partial(env.ray_cluster, sweep.cluster.address, name, lines)
        work = partial(_Running, base, checked.under(config), folder, left, lines)
        if sweep.cache_report:
            if left:
                with cluster():
                    lines.console.print(work().cache_report())
            return []
        content = content_hash([content, [one.fingerprint for one in checked.probes]])
        begun = _remember(folder, base, trials, content, checked.read)
        methods = dict.fromkeys(trial.method for trial in trials)
        known = as_begun(config, begun.model_dump(mode="json"))
        with Parent(known, {"orders": sweep.orders, "methods": ",".join(methods)}, trials, checked.read) as parent:
            encode = unrouted(checked, trials)
            if left or encode:
                with cluster():
                    work(encode).run(parent, held, [(trial, done[trial.id]) for trial in trials if trial.id in done])
            with at_work():
                files = _report(base, name, parent, time.perf_counter() - begin, lines)
            parent.heard(read_records(folder, trials).values(), lambda: _send(base, name, lines))
        if parent.complete:
            remember_sweep(checked, sweep, folder, trials)
        return files


def _tracking(sweep: Sweep) -> Tracking:
    """Returns MLflow's settings for trials, which work in Tune's folders: with an absolute address."""
    given = sweep.tracking.enabled and (sweep.tracking.uri or os.environ.get("MLFLOW_TRACKING_URI"))
    return sweep.tracking.model_copy(update={"uri": tracking_uri(sweep)}) if given else sweep.tracking


def _remember(
    folder: Place, sweep: Sweep, trials: Sequence[Trial], content: str, read: Mapping[str, Any]
) -> Experiment:
    """Writes what the sweep is, and refuses another one under the same name, by the content of its data too.

    Returns:
        Its settings as it began with them.
    """
    path = sweep_config_path(folder)
    base, records = sweep.experiment(), [trial.record() for trial in trials]
    left_out = ELSEWHERE | {"keep_sessions": True}
    if backend(path).exists(path):
        try:
            found = json.loads(artifacts.read_text(path))
            base = as_begun(base, found["config"])
            before, held = found["identity"], found.get("content", content)  # those of before have none
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise artifacts.ArtifactError(
                f"{path}: damaged ({error!r}); remove it where this command is the sweep's own, which writes it again, "
                "or give another --run"
            ) from error
        if before != content_hash([base.identity(exclude=left_out), records]):
            raise ValueError(f"--run: {folder} holds a sweep with other settings or trials; give another name")
        if held != content:
            raise ValueError(
                f"--run: {folder} holds a sweep over other images, classes or templates, or another backbone, whose "
                "files have changed since: its finished trials count no more; give another name, or put the files back"
            )
    known: dict[str, Any] = {
        "identity": content_hash([base.identity(exclude=left_out), records]),
        "content": content,
        "read": read,
        "config": base.model_dump(mode="json", exclude=left_out)
        | {"tracking": {"experiment": base.tracking.experiment}},  # where what MLflow missed is sent later
    }
    known |= {"trials": records, "versions": provenance()}
    artifacts.write_text(path, json.dumps(known, indent=1))
    return base


class _Running:
    """A sweep on a cluster that is up.

    Args:
        sweep: its settings.
        checked: those that all trials share, tasks and backbone.
        folder: the sweep's.
        left: trials that are not finished.
        lines: for people.
        encode: trials, finished or not, whose prototypes are made too.
    """

    def __init__(
        self,
        sweep: Sweep,
        checked: Checked,
        folder: Place,
        left: Sequence[Trial],
        lines: Lines,
        encode: Sequence[Trial] = (),
    ) -> None:
        self.sweep, self.checked, self.folder, self.left, self.say = sweep, checked, folder, left, lines.say
        self.config, self.shown = checked.config, time.monotonic()
        wanted = {trial.id: trial for trial in (*left, *encode)}.values()
        self.engine = Engine(checked, folder, [one.config(self.config, self.config.run_name) for one in wanted])

    def cache_report(self) -> str:
        """Returns what storage has of the experts that the sweep needs; nothing is changed there."""
        here = {expert.key for expert in self.engine.experts if expert.finished or expert.adoptable}
        by_method: dict[str, tuple[int, int]] = {}
        for trial, plan in zip(self.left, self.engine.plans, strict=True):
            keys = {expert.key for expert in plan.experts}
            found, needed = by_method.get(trial.method, (0, 0))
            by_method[trial.method] = (found + len(keys & here), needed + len(keys))
        lines = [
            f"  {method}: {needed} experts over all its trials, {found} of them in storage"
            for method, (found, needed) in by_method.items()
        ]
        count = len(self.engine.experts)
        total = f"{count} different experts, {len(here)} in storage, {count - len(here)} to train"
        return "\n".join([*lines, total])

    def run(self, parent: Parent, held: Callable[[], None], done: Sequence[tuple[Trial, Mapping[str, Any]]]) -> None:
        """Runs the trials that are left, and waits for the lanes to close.

        Args:
            parent: MLflow's run.
            held: as of a run's `learn`.
            done: trials that were finished before, with their records.

        Raises:
            ValueError: those have other experts than they would have now.
        """
        require_alike(self.checked, self.config.run_name, done, self.engine.precision)
        import ray.tune  # noqa: F401  (here, for threads that import it at once may find half of it)

        with at_work(), self.engine.ending():
            self.engine.start(self.say)
            tuning = background(self._tune, parent.run)
            while not (tuning.done() and tuning.result() is None and self.engine.encoded):
                held()
                news = self.engine.look(self.say)
                if time.monotonic() - self.shown >= LINE_SECONDS:
                    self._show(news)
                time.sleep(LOOK_SECONDS)
            self.engine.close()

    def _tune(self, parent: str | None) -> None:
        """Hands the trials to Ray Tune; lanes train meanwhile."""
        if not self.left:
            return
        from ray import tune

        logging.getLogger("ray.tune").setLevel(logging.ERROR)
        cpus = int(ray.cluster_resources().get("CPU", 1.0))
        side_by_side = self.sweep.trials or min(MOST_TRIALS, max(4, cpus), len(self.left))
        shared = Shared(
            self.checked,
            self.folder,
            {trial.id: trial for trial in self.left},
            self.engine.precision,
            env.namespace(self.config.run_name),
            parent,
            {name: value for name, value in os.environ.items() if name.startswith("MLFLOW_")},
        )
        tuner = tune.Tuner(
            tune.with_resources(tune.with_parameters(tune_function, shared=shared), {"cpu": TRIAL_CPUS}),
            param_space={"trial": tune.grid_search([trial.id for trial in self.left])},
            tune_config=tune.TuneConfig(max_concurrent_trials=side_by_side, reuse_actors=True),
            run_config=tune.RunConfig(
                name=tune_folder(self.folder, int(time.time())).name,
                **ray_storage(self.folder),
                verbose=0,
                failure_config=tune.FailureConfig(max_failures=self.config.training.max_failures),
                callbacks=[],
            ),
        )
        errors = [told(error) for error in tuner.fit().errors]
        if errors:
            raise RunError(f"{len(errors)} trials failed, the first: {errors[0]}. What is finished stays.")

    def _show(self, news: News) -> None:
        """Prints and exports where the sweep is."""
        self.shown = time.monotonic()
        finished, wanted = count_records(self.folder, self.left), len(self.engine.crew.missing)
        self.engine.pulse.beat((news.words, len(news.trained), finished), news.there)
        self.engine.pulse.trials(finished, len(self.left) - finished)
        words = [f"{word} {word.step}/{word.steps}" for word in news.words.values()]
        training = words if len(news.trained) < wanted else []
        where = [f"{finished}/{len(self.left)} trials", f"{len(news.trained)}/{wanted} experts trained", *training]
        self.say("; ".join([*where, *self.engine.waiting(news)]))


def _send(sweep: Sweep, name: str, lines: Lines) -> None:
    """Sends MLflow what it missed, as where its server was started after the sweep."""
    words = sync(sweep.storage, find(sweep.storage, name), sweep.tracking.uri)
    lines.console.print(f"MLflow answers again: {words}")


def _report(sweep: Sweep, name: str, parent: Parent, seconds: float, lines: Lines) -> list[Place]:
    """Writes the report from the records in storage, and gives MLflow's run of the sweep its aggregates."""
    found = find(sweep.storage, name)
    extra = {"seconds": seconds, "command": command()}
    folder = report_folder(found.folder)
    numbers = write_sweep_report([found], folder, published=sweep.published, extra=extra)
    parent.finish(aggregates(numbers), folder)
    lines.console.print(f"{shown_costs(numbers)}; {seconds:.0f} s")
    lines.console.print(f"report: {folder / 'report.md'}")
    return [folder / name for name in artifacts.names(folder)]
