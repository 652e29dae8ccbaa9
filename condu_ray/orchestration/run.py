"""The main job: train experts in lanes, merge them in task order, measure every session, report.

Read `learn` and `work` first: they tell the story. Everything that it finds in storage it takes from there, so the same
command goes on where it was stopped and ends at once when all is done.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

from rich.markup import escape

from condu_ray.config import Experiment
from condu_ray.orchestration.again import remember
from condu_ray.orchestration.cluster import env
from condu_ray.orchestration.cluster.failure import at_work
from condu_ray.orchestration.cluster.forks import forks
from condu_ray.orchestration.engine import Engine
from condu_ray.orchestration.merger import Merger
from condu_ray.orchestration.state import start_state_actor
from condu_ray.orchestration.watch.lines import Lines
from condu_ray.orchestration.watch.mlflow_address import check_tracking, elsewhere
from condu_ray.orchestration.watch.progress import Display
from condu_ray.orchestration.watch.recorder import Recorder
from condu_ray.plan.moved import moved, numbers_before
from condu_ray.plan.preflight import Checked, check
from condu_ray.plan.remarks import left_out
from condu_ray.plan.repair import mend
from condu_ray.plan.results import Results, SessionResult
from condu_ray.plan.stored_run import finished_run
from condu_ray.report.run_report import write_report
from condu_ray.store import artifacts
from condu_ray.store.drafts import remove_drafts
from condu_ray.store.layout import config_path, report_folder
from condu_ray.store.lease import lease
from condu_ray.store.location import Place
from condu_ray.store.presence import present

LOOK_SECONDS = 0.1
"""How often the main loop looks whether something can go on."""


def run(config: Experiment, lines: Lines | None = None, held: Callable[[], None] | None = None) -> dict[str, Any]:
    """Runs every method of the configuration and writes the report.

    Args:
        config: the run's configuration.
        lines: says the lines; None: new ones, whose time begins now.
        held: of the run's lease, which the caller has; None: it is taken here.

    Returns:
        The results as `results.json` has them.

    Raises:
        RunError: training failed for good; what was committed stays, and the same command goes on from there.
        LeaseError: another driver is at this run.
        ValueError, RuntimeError: bad input, by `check` and `room_for`, before anything was spent.
    """
    lines = lines or Lines()
    check_tracking(config)
    if config.repair:
        mend(config.storage)
    # A change of a run has seldom anything left to do here; where it has, the cluster begins a fork server itself.
    with forks(config.cluster.address) if held is None else nullcontext():
        return _run(config, lines, held)


def _run(config: Experiment, lines: Lines, held: Callable[[], None] | None) -> dict[str, Any]:
    with lines.waiting("tasks and backbone are checked"):
        checked = check(config, lambda words: lines.say(escape(words)), later=True)
    config, tasks = checked.config, [task.name for task in checked.tasks]
    leased = lease(config.run_folder) if held is None else nullcontext(held)
    with leased as held, Display(tasks, config.training.steps, lines) as display:
        held()
        remove_drafts(config.storage)
        # By name: what a run has learned stays the same when its data get another folder, which `add` may then learn.
        words = (*checked.words, *left_out(config, tasks), *elsewhere(config))
        write_config(config.model_copy(update={"tasks": tuple(tasks)}))
        for line in words:
            display.say(escape(line))
        results = from_storage(checked, display, routed=True)
        if results is None:
            with env.ray_cluster(config.cluster.address, config.run_name, lines):
                results = learn(checked, display, held)
        display.finish(results, config.run_folder)
        return results


def learn(checked: Checked, display: Display, held: Callable[[], None] = lambda: None) -> dict[str, Any]:
    """Trains, merges and measures on a cluster that is up.

    Args:
        checked: the run's configuration, tasks and backbone.
        display: shows where it is.
        held: raises LeaseError once another driver has taken the run over.

    Returns:
        The results.

    Raises:
        RunError: training failed for good.
    """
    begin, engine = time.perf_counter(), Engine(checked, checked.config.run_folder)
    before = numbers_before(checked.config.run_folder)
    with at_work(), Recorder(Results(engine.plans[0])) as recorder:
        merger = work(engine, recorder.results, display, recorder.session, held)
        found = report(recorder, begin, reused=merger.reused, trained=len(engine.crew.missing))
    remember(recorder)
    if told := moved(before, found):
        display.say(escape(told))
    return found


def work(
    engine: Engine,
    results: Results,
    display: Display,
    told: Callable[[SessionResult], None],
    held: Callable[[], None] = lambda: None,
    *,
    staged: bool = False,
) -> Merger:
    """Trains, merges and measures until the results are complete and the prototypes made.

    Args:
        engine: of the run.
        results: fill.
        display: shows where it is.
        told: takes each session that is measured.
        held: raises LeaseError once another driver has taken the run over.
        staged: whether merges are on trial, and not committed.

    Returns:
        Who merged.
    """
    with engine.ending():
        with display.waiting("workers are started"):
            engine.start(display.say)
            state = start_state_actor(engine.config, staged)
        merger = Merger(results, state.merge.remote, engine.crew.board, engine.pool.service)
        display.say(engine.described())
        while not (results.complete and engine.encoded):
            held()
            news = engine.look(display.say)
            for session in merger.advance(news):
                told(session)
                display.session(session)
            display.lanes(news, engine.crew.lanes, len(engine.crew.missing), merger.pending, engine.waiting(news))
            engine.pulse.beat((news.words, merger.state), news.there, merger.handed)
            time.sleep(LOOK_SECONDS)
        engine.pulse.beat("measured", news.there, merger.handed, now=True)
        engine.close()
    return merger


def from_storage(checked: Checked, display: Display, *, routed: bool = False) -> dict[str, Any] | None:
    """Makes the report again when storage holds every session and measurement; None when anything is missing.

    No Ray is started for it. What `training.precision=auto` means is known here only of this machine: a run of a
    cluster whose GPUs this machine has not is looked up on the cluster instead, by the ordinary way.

    Args:
        checked: the run's configuration, tasks and backbone.
        display: shows the sessions.
        routed: whether the prototypes have to be there too, which no report wants, and who predicts does.
    """
    begin = time.perf_counter()
    found = finished_run(checked)
    if found is None or (routed and len(present(found.prototypes)) < len(found.prototypes)):
        return None
    with Recorder(Results(found.plan)) as recorder:
        for session in recorder.replay(found.measured):
            display.session(session)
        results = report(recorder, begin, reused=len(found.measured), trained=0)
    remember(recorder)
    return results


def report(recorder: Recorder, begin: float, *, reused: int, trained: int, pictures: bool = True) -> dict[str, Any]:
    """Writes `<run>/report` and closes the MLflow runs.

    Args:
        recorder: of a run that is measured.
        begin: when it began, by `time.perf_counter`.
        reused: measurements taken from storage.
        trained: experts fine-tuned now.
        pictures: whether to draw them; a trial of a sweep has its sweep's.

    Returns:
        The results as in `results.json`.
    """
    found = recorder.results.summary(time.perf_counter() - begin, reused=reused, trained=trained)
    folder = report_folder(recorder.results.plan.config.run_folder)
    write_report(found, folder, pictures=pictures)
    recorder.finish(folder)
    return found


def write_config(config: Experiment) -> Place:
    """Writes a run's `config.json`, without the tracking address, which may hold a password."""
    return write_settings(config_path(config.run_folder), config)


def write_settings(path: Place, config: Experiment) -> Place:
    """Writes a run's settings into a file of its folder, as `write_config`."""
    artifacts.write_text(path, config.model_dump_json(indent=1, exclude={"tracking": {"uri"}}))
    return path
