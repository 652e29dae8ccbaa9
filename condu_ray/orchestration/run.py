"""The main loop: train experts in lanes, merge them in task order, measure every session, report.

Read `run` first: it tells the story. Everything that it finds in storage it takes from there, so the same command goes
on where it was stopped and ends at once when all is done.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import Future, wait
from typing import Any

from condu_ray.config import Experiment
from condu_ray.learn.loop import resolved_precision
from condu_ray.orchestration.cluster import env
from condu_ray.orchestration.cluster.background import background
from condu_ray.orchestration.lanes.board import Board
from condu_ray.orchestration.watch.progress import Display
from condu_ray.orchestration.watch.pulse import Pulse
from condu_ray.orchestration.watch.tracking import Tracker
from condu_ray.plan.preflight import Checked, check, make_plans
from condu_ray.plan.repair import mend
from condu_ray.plan.sessions import MethodPlan
from condu_ray.store import artifacts
from condu_ray.store.drafts import remove_drafts
from condu_ray.store.lease import lease
from condu_ray.store.ledger import Entry

GROW_SECONDS = 10.0
"""How often the driver looks whether the cluster has grown."""
LANE_END_SECONDS = 60.0
"""How long lanes whose experts are all there may take to close."""


class RunError(RuntimeError):
    """A run that cannot go on; the message says why, and what was committed stays."""


def run(config: Experiment) -> dict[str, Any]:
    """Runs every method of the configuration and writes the report.

    Args:
        config: the run's configuration.

    Returns:
        The results as `results.json` has them.

    Raises:
        RunError: training failed for good; what was committed stays, and the same command goes on from there.
        LeaseError: another driver is at this run.
        ValueError, RuntimeError: bad input, by `check` and `env.room`, before anything was spent.
    """
    if config.repair:
        mend(config.storage)
    checked = check(config)
    config = checked.config
    with lease(config.run_folder):
        remove_drafts(config.storage)
        artifacts.write_text(
            config.run_folder / "config.json", config.model_dump_json(indent=1, exclude={"tracking": {"uri"}})
        )
        done = from_storage(checked)
        if done is not None:
            return done
        with env.ray_cluster(config.cluster.address, namespace=f"condu_ray/{config.run_name}"):
            session = Session(checked)
            try:
                return session.run()
            except BaseException:
                session.tracker.fail()
                raise


def from_storage(checked: Checked) -> dict[str, Any] | None:
    """Makes the report again when storage holds every session and measurement; None when anything is missing.

    No Ray is started for it; a run of a cluster whose precision this machine cannot know (`finished_run`) is looked up
    on the cluster instead, by the ordinary way.
    """
    from condu_ray.plan.results import Results
    from condu_ray.plan.stored_run import finished_run

    config, begin = checked.config, time.perf_counter()
    found = finished_run(checked)
    if found is None:
        return None
    plans = [one.plan for one in found.methods.values()]
    tracker = Tracker(config, [task.name for task in checked.tasks])
    results = Results(config, checked.tasks, plans, tracker)
    for plan in plans:
        tracker.start(plan.method.name, plan.steps[-1].state)
    with Display([task.name for task in checked.tasks], 0, 0, config.training.steps) as display:
        for unit, measured in found.measured:
            session = results.add(unit, measured)
            if session is not None:
                display.session(*session)
        report = results.report(time.perf_counter() - begin, reused=len(found.measured), trained=0)
        display.finish(report, config.run_folder)
    tracker.close()
    return report


class Session:
    """One run on a Ray cluster that is up.

    Args:
        checked: its configuration, tasks and backbone.
    """

    def __init__(self, checked: Checked) -> None:
        import ray

        from condu_ray.orchestration.lanes.lane import work_of
        from condu_ray.orchestration.measure.evaluation import EvaluationQueue
        from condu_ray.orchestration.state import start_state_actor
        from condu_ray.plan.results import Results

        config = checked.config
        self.config, self.checked = config, checked
        self.room = env.room_for(config)
        self.precision = resolved_precision(config.training.precision, self.room.gpus_per_worker > 0)
        self.plans = make_plans(checked, self.precision)
        work = {entry.key: entry for plan in self.plans for entry in work_of(config, plan.items)}
        self.missing = [entry for entry in work.values() if not entry.finished]
        self.found = sum(len(plan.items) for plan in self.plans) - len(self.missing)
        self.tracker = Tracker(config, [task.name for task in checked.tasks])
        self.results = Results(config, checked.tasks, self.plans, self.tracker)
        self.queue = EvaluationQueue(config, checked.spec, checked.tasks, self.precision, self.room)
        self.state = start_state_actor(config)
        board = ray.remote(Board).options(num_cpus=0, max_restarts=-1, max_task_retries=-1, **env.beside_driver())
        self.lanes = min(self.room.lanes, len(self.missing))
        self.board: Any = board.remote(self.missing, self.lanes)
        self._next = {plan.method.name: 0 for plan in self.plans}
        self._merging: dict[Any, MethodPlan] = {}
        self._ended: set[int] = set()
        self._looked = time.monotonic()
        self._news: dict[str, Any] = {}
        self.pulse = Pulse(config.run_name, config.storage, self.found, self.missing, self.plans)

    def run(self) -> dict[str, Any]:
        """Trains, merges, measures; returns the results."""
        import ray.train.torch  # noqa: F401  (here, for lanes' threads that import it at once may find half of it)

        begin = time.perf_counter()
        names = [task.name for task in self.checked.tasks]
        for plan in self.plans:
            self.tracker.start(plan.method.name, plan.steps[-1].state)
        count = len(self.missing)
        with Display(names, self.lanes, count, self.config.training.steps) as display:
            display.say(
                f"{len(names)} tasks, {len(self.plans)} methods: {count} experts to fine-tune in {self.lanes} "
                f"lanes ({self.found} shared or in storage), {self.precision}"
            )
            prototypes = background(self._prototypes, display)
            futures = [background(self._fit, number) for number in range(self.lanes)]
            while not self.results.complete:
                self._merge_next()
                # Evaluators want the prototypes, and the room that the encoders have until these are made.
                for unit, found in self.queue.poll(timeout=0.1) if prototypes.done() else ():
                    session = self.results.add(unit, found)
                    if session is not None:
                        display.session(*session)
                if not self.queue.busy:
                    time.sleep(0.1)
                if prototypes.done():
                    prototypes.result()
                self._watch(futures, display)
                self._grow(futures, display)
                progress = (self._news.get("words"), self._next, len(self._merging), len(self.queue))
                self.pulse.beat(progress, self._next)
            self.pulse.beat("measured", self._next, now=True)
        # A fit that still closes its workers must not find its cluster gone: Ray would end this process.
        wait(futures, timeout=LANE_END_SECONDS)
        results = self.results.report(time.perf_counter() - begin, reused=self.queue.reused, trained=count)
        display.finish(results, self.config.run_folder)
        self.tracker.close()
        return results

    def _fit(self, number: int) -> None:
        from condu_ray.orchestration.lanes.lane import fit_lane, lane_job

        folders = {task.name: task.folder for task in self.checked.tasks}
        job = lane_job(self.config, self.checked.spec, folders, self.precision, number)
        fit_lane(job | {"board": self.board}, self.config, self.room, self.config.run_folder / "train")

    def _grow(self, futures: list[Future[None]], display: Display) -> None:
        """Starts further lanes where nodes have come since the start and experts wait."""
        import ray

        now = time.monotonic()
        if self.config.training.lanes or not futures or now - self._looked < GROW_SECONDS:
            return
        self._looked = now
        try:
            room = env.room_for(self.config).lanes
        except env.ResourceError:  # nodes have gone: lanes wait for others by themselves
            return
        working = sum(not future.done() for future in futures)
        for _ in range(min(room - working, ray.get(self.board.waiting.remote()))):
            futures.append(background(self._fit, len(futures)))
        if len(futures) > self.lanes:
            display.say(f"{len(futures) - self.lanes} more lanes: the cluster has grown")
            self.lanes = len(futures)
            display.more_lanes(self.lanes)
            self.board.share.remote(self.lanes)

    def _prototypes(self, display: Display) -> None:
        """Makes the prototypes, beside the training that has begun, when some method wants them."""
        if any(plan.method.routes for plan in self.plans):
            from condu_ray.orchestration.measure.encoders import make_prototypes

            begin = time.perf_counter()
            made = make_prototypes(
                self.config.storage,
                self.checked.spec,
                self.checked.backbone,
                self.checked.tasks,
                self.room,
                self.config.training.threads,
            )
            if made:
                display.say(f"prototypes of {made} tasks in {time.perf_counter() - begin:.0f} s")

    def _merge_next(self) -> None:
        """Hands every method's next expert to the state actor, and what it committed to the evaluators."""
        import ray

        if self._merging:
            ready, _ = ray.wait(list(self._merging), num_returns=len(self._merging), timeout=0)
            for reference in ready:
                plan = self._merging.pop(reference)
                entry = Entry(**ray.get(reference))
                for unit in self.results.units(plan, entry, self.checked.backbone, self.precision):
                    self.queue.submit(unit)
        busy = {plan.method.name for plan in self._merging.values()}
        for plan in self.plans:
            name = plan.method.name
            if name in busy or self._next[name] == len(plan.steps):
                continue
            step = plan.steps[self._next[name]]
            key = step.item.key if step.item else None
            if step.item is None or not self._missing(step.item.key):
                call = self.state.merge.remote(name, step.position, step.task, key, step.parent, step.state)
                self._merging[call] = plan
                self._next[name] += 1

    def _missing(self, key: str) -> bool:
        from condu_ray.store.experts import expert_folder

        return not artifacts.exists(expert_folder(self.config.storage, key))

    def _watch(self, futures: Sequence[Future[None]], display: Display) -> None:
        """Shows progress, and stops the run when a lane is lost for good."""
        import ray

        if futures and not all(future.done() for future in futures):
            news = ray.get(self.board.read.remote())
            display.lanes(news["words"], len(news["trained"]), len(self.queue))
            self._news = news
            if news["failure"]:
                self.pulse.diverged()
                raise RunError(f"{news['failure']}. Nothing that was committed is lost.")
        ended = {number for number, future in enumerate(futures) if future.done()}
        for _ in ended - self._ended:
            self.queue.grow()  # what the lane had is free for evaluation now
        self._ended = ended
        for number, future in enumerate(futures):
            if future.done() and future.exception() is not None:
                raise RunError(
                    f"lane {number} failed after {self.config.training.max_failures} restarts: "
                    f"{future.exception()}. What was committed stays; the same command goes on from there."
                ) from future.exception()
