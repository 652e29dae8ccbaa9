"""What works for a run or a sweep: lanes that train, encoders, evaluators; started together, and watched together."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from condu_ray.benchmark.tasks import known_hashes
from condu_ray.config import Experiment
from condu_ray.learn.precision import resolved_precision, slow_in
from condu_ray.methods import get
from condu_ray.orchestration.cluster import stop
from condu_ray.orchestration.cluster.background import background
from condu_ray.orchestration.cluster.data_check import DataCheck
from condu_ray.orchestration.cluster.failure import RunError
from condu_ray.orchestration.cluster.room import room_for
from condu_ray.orchestration.cluster.sight import versions
from condu_ray.orchestration.lanes.crew import Crew
from condu_ray.orchestration.lanes.lane import Lane
from condu_ray.orchestration.measure.encoders import make_prototypes
from condu_ray.orchestration.measure.pool import Pool
from condu_ray.orchestration.measure.zero_shot import check_zero_shot
from condu_ray.orchestration.watch.news import News
from condu_ray.orchestration.watch.pulse import Pulse
from condu_ray.plan.expert import adopt, different
from condu_ray.plan.preflight import Checked
from condu_ray.plan.run_plan import plan_run
from condu_ray.store.layout import checked_folder, train_folder
from condu_ray.store.location import Place
from condu_ray.vlm.staged import staged

Say = Callable[[str], None]
"""Takes a line for people."""


class Engine:
    """The workers of a run, or of all trials of a sweep, on a cluster that is up. A run is a sweep of one trial.

    Args:
        checked: settings of the run, or those that all trials share (`run` names it), tasks and backbone.
        folder: of the run or the sweep.
        trials: configurations of the trials; none: a run, whose driver merges.
    """

    def __init__(self, checked: Checked, folder: Place, trials: Sequence[Experiment] = ()) -> None:
        self.config, self.checked = checked.config, checked
        self.room, self._merges = room_for(self.config), not trials
        self.precision = resolved_precision(self.config.training.precision, self.room.gpus_per_worker > 0)
        self.plans = [plan_run(checked.under(trial), self.precision) for trial in trials or [self.config]]
        self.experts = different(expert for plan in self.plans for expert in plan.experts)
        self._folder, self._begin, self._encoding, self._ended = folder, time.perf_counter(), "", False

    def start(self, say: Say) -> None:
        """Starts the lanes and the service that measures, and has theta0's prototypes made beside them.

        A run that claims a paper's figures first has to show the published zero-shot accuracies.

        Args:
            say: takes a line for people.

        Raises:
            RunError: it does not show them.
        """
        checked = self.checked
        if words := slow_in(self.precision, "cuda" if self.room.gpus_per_worker else "cpu"):
            say(f"bf16: {words} (--training.precision fp32 makes experts of its own)")
        if self.room.gpus_per_worker and not self.room.gpus_per_evaluator:
            words = f"; {words}" if (words := slow_in(self.precision, "cpu")) else ""
            say(
                f"accuracy is measured on the CPU, in {self.precision}{words}: --cluster.gpus_per_worker "
                f"{self.room.gpus_per_worker:g} leaves nothing of the one GPU; 0.6 leaves evaluators the rest"
            )
        self._data = DataCheck(
            checked.unchecked,
            checked_folder(self.config.storage),
            refuse_transparent=self.config.transparent == "refuse",
        )
        self._data_checked: Future[None] = background(self._data.run)
        if self.config.paper:  # the check before the bill measures on all of them
            self._data_checked.result()
        self.checked = replace(checked, spec=staged(self.config.storage.absolute(), checked.spec, checked.backbone))
        check_zero_shot(self.checked, self.precision, self.room, say)
        adopt(self.experts)
        self.crew = Crew(self.config, self._lane, self.experts, self.room, train_folder(self._folder), self._held)
        self.crew.start()  # first: what trains is what all others wait for
        self.pool = Pool(self.config, self.checked, self.precision, self.room)
        found = len(self.experts) - len(self.crew.missing)
        plans = self.plans[0].methods if self._merges else ()
        self.pulse = Pulse(self.config.run_name, self.config.storage, found, self.crew.missing, plans)
        self._prototypes: Future[None] = background(self._make_prototypes, say)

    def _held(self) -> frozenset[str]:
        """Tasks of which nothing may be trained yet."""
        return self._data.left

    def _lane(self, number: int, board: Any) -> Lane:
        folders = {task.name: task.folder for task in self.checked.tasks}
        return Lane(
            number, self.config.absolute(), self.checked.spec, folders, self.precision, self.room.decoders, board,
            known_hashes(), self.checked.contents, versions(),
        )  # fmt: skip

    def _make_prototypes(self, say: Say) -> None:
        """Makes the prototypes, beside the training that has begun, when some method wants them.

        Not before all images are checked; and as nothing is measured before this is done, nor is anything measured.
        """
        self._data_checked.result()
        if not any(get(name, self.config).routes for name in self.config.method):
            return
        begin, config, checked = time.perf_counter(), self.config, self.checked
        images = {plan.config.inference.prototype_images for plan in self.plans}
        tasks = {task.train_fingerprint: task for name in images for task in checked.pictured(name)}
        made = make_prototypes(
            config.storage, checked.spec, checked.backbone, [*tasks.values()], self.room, config.training.threads,
            self._encoded, self.pool.first,
        )  # fmt: skip
        if made:
            say(f"prototypes of {made} tasks in {time.perf_counter() - begin:.0f} s")

    @property
    def encoded(self) -> bool:
        """Whether the prototypes are made: what is predicted later wants them, also where nothing is measured now."""
        return self._prototypes.done() and self._prototypes.result() is None

    def _encoded(self, words: str) -> None:
        if self._ended:
            raise RunError("the run has ended")
        self._encoding = words

    def waiting(self, news: News) -> list[str]:
        """Returns for what the run waits, in words for people.

        Args:
            news: the board's latest.
        """
        found = [words] if (words := self._data.words) else []
        if not self._prototypes.done() and self._encoding:
            found.append(f"prototypes: {self._encoding}")
        if self.crew.working and not news.words and not news.trained:
            found.append(f"waiting: lanes start ({time.perf_counter() - self._begin:.0f} s)")
        return found

    def look(self, say: Say) -> News:
        """Looks after all who work; to be called every now and then.

        Args:
            say: takes a line for people.

        Returns:
            What the board has heard.

        Raises:
            RunError: an expert or the prototypes cannot be made.
            TaskError: images of a task cannot be used.
        """
        if self._data_checked.done():
            self._data_checked.result()
        news = self.crew.look(say)
        if news.failure:
            self.pulse.diverged()
            raise RunError(f"{news.failure}. Nothing that was committed is lost.")
        # Evaluators want the prototypes, and the room that the encoders have until these are made.
        if self._prototypes.done():
            self._prototypes.result()
            self.pool.look(self.crew.free)
        return news

    def described(self) -> str:
        """Returns what is to be done, in a line for people."""
        missing, methods = len(self.crew.missing), len(self.config.method)
        shared = sum(len(plan.experts) for one in self.plans for plan in one.methods) - missing
        decoders = (
            f", {many} data workers a lane" if (many := self.config.training.workers * self.room.decoders) > 1 else ""
        )
        return (
            f"{len(self.checked.tasks)} tasks, {methods} methods: {missing} experts to fine-tune in {self.crew.lanes} "
            f"lanes ({shared} shared or in storage), {self.precision}{decoders}"
        )

    def close(self) -> None:
        """Lets the lanes end."""
        self.crew.close()

    @contextmanager
    def ending(self) -> Iterator[None]:
        """Has all that works beside the main thread end, where the block ends by an error; waits for nothing.

        Not where the process has been asked to end: then all ends with it.
        """
        try:
            yield
        except BaseException:
            if stop.asked() is None:
                self._ended = True
                for part in ("_data", "crew", "pool"):
                    if hasattr(self, part):
                        getattr(self, part).abort()
            raise
