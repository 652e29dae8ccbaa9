"""Evaluation after every session: long-lived evaluator actors, a queue of units, and a cache of what was measured.

A unit is one (state, task, label space). Units whose weights and data were measured before, by any method or run, are
not measured again: `<storage>/evaluations/<key>.json`.
"""

from __future__ import annotations

import json
from collections import OrderedDict, deque
from collections.abc import Sequence
from dataclasses import asdict
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import ray
import torch

from condu_ray.benchmark import Task, load_task
from condu_ray.config import Experiment
from condu_ray.learn.evaluate import Evaluator
from condu_ray.learn.features import Weights
from condu_ray.learn.prototype_store import load_prototypes
from condu_ray.merging import reconstruction
from condu_ray.methods import Method, ModelState, get
from condu_ray.methods.session import load_session
from condu_ray.orchestration.cluster.env import EVALUATOR_CPUS, Room
from condu_ray.orchestration.watch import telemetry
from condu_ray.plan.measurement import Unit, routed
from condu_ray.store.experts import load_expert
from condu_ray.store.ledger import Entry
from condu_ray.store.measurements import read_measurement, write_measurement
from condu_ray.vlm.model import BackboneSpec, load_backbone

UNITS_PER_START = 16
"""Waiting units that are worth the seconds that another evaluator's start takes."""
STATES = 2
"""Sessions' states that an evaluator keeps loaded."""


class EvaluatorActor:
    """Holds the backbone for the whole run and measures one unit a call.

    Args:
        backbone: the backbone's spec, as a dict.
        evaluation: the config's `evaluation`, as a dict.
        threads: CPU threads.
        precision: `fp32` or `bf16`.
        folders: folder of each task.
        cuda: whether to compute on the GPU that Ray gave.
        storage: storage folder, absolute.
        run: the run or sweep that it measures for.
    """

    def __init__(
        self,
        backbone: dict[str, Any],
        evaluation: dict[str, Any],
        threads: int,
        precision: str,
        folders: dict[str, str],
        cuda: bool,
        storage: str,
        run: str = "",
    ) -> None:
        torch.set_num_threads(threads)
        self._evaluator = Evaluator(
            load_backbone(BackboneSpec(**backbone)),
            batch_size=evaluation["batch_size"],
            max_images=evaluation["max_images"],
            precision=precision,
            device="cuda" if cuda else "cpu",
            storage=Path(storage),
        )
        self._tasks = {name: load_task(Path(folder)) for name, folder in folders.items()}
        self._states: OrderedDict[str, ModelState] = OrderedDict()
        self._run = run
        telemetry.restarted("evaluator", run)
        telemetry.gauge("condu_evaluators_active", 1, run=run)

    def _state(self, method: Method, entry: Entry) -> ModelState:
        key = f"{method.config.run_name}/{method.name}/{entry.state}"
        if key not in self._states:
            self._states[key] = load_session(method.config.run_folder, method, entry)
            while len(self._states) > STATES:
                self._states.popitem(last=False)
        return self._states[key]

    def _weights(self, method: Method, state: ModelState, task: str) -> Weights:
        load = partial(load_expert, method.config.storage)
        return Weights(method.weights(state, task), lambda: method.delta(state, task, load))

    def measure(self, config: str, unit: Unit) -> dict[str, Any]:
        """Measures one unit.

        Args:
            config: the run's configuration as JSON, with an absolute storage folder.
            unit: what to measure.

        Returns:
            `correct`, `images` and `seconds`; for a seen task of a method that merges, also how well its expert is
            reconstructed (`relative_l2`, `sign_agreement`) and its `rescaler`.
        """
        with telemetry.busy("condu_evaluator_busy_seconds_total", run=self._run):
            return self._measure(config, unit)

    def _measure(self, config: str, unit: Unit) -> dict[str, Any]:
        method, task = get(unit.method, _parsed(config)), self._tasks[unit.task]
        state = self._state(method, unit.entry)
        space = tuple(self._tasks.values()) if unit.space == "union" else ()
        if not routed(method, unit.seen, unit.space):
            count = self._evaluator.known(task, self._weights(method, state, unit.task), space)
            return asdict(count) | (self._fidelity(method, state, unit) if unit.space == "task" else {})
        options, theta0 = method.config.inference, self._evaluator.features.backbone.fingerprint
        experts = {name: self._weights(method, state, name) for name in state.tasks}
        prototypes = {
            name: load_prototypes(method.config.storage, theta0, self._tasks[name], options.prototypes)
            for name in state.tasks
        }
        return asdict(self._evaluator.aggregated(task, experts, prototypes, options, space))

    def _fidelity(self, method: Method, state: ModelState, unit: Unit) -> dict[str, Any]:
        """How near what serves a learned task is to the expert that was merged."""
        if not (unit.seen and method.keeps_model):
            return {}
        load = partial(load_expert, method.config.storage)
        delta = method.delta(state, unit.task, load)
        assert delta is not None
        error = reconstruction(load(state.expert_of(unit.task)), delta)
        rescaler = getattr(state.model, "rescalers", {}).get(unit.task)
        return {"relative_l2": error.relative_l2, "sign_agreement": error.sign_agreement, "rescaler": rescaler}


@lru_cache(maxsize=64)
def _parsed(config: str) -> Experiment:
    return Experiment.model_validate_json(config)


def start_evaluator(config: Experiment, spec: BackboneSpec, tasks: Sequence[Task], precision: str, room: Room) -> Any:
    """Starts an evaluator, which Ray restarts as often as it dies."""
    options = {"num_cpus": EVALUATOR_CPUS, "num_gpus": room.gpus_per_evaluator}
    return (
        ray.remote(EvaluatorActor)
        .options(**options, max_restarts=-1, max_task_retries=-1)
        .remote(
            asdict(spec),
            config.evaluation.model_dump(),
            config.training.threads,
            precision,
            {task.name: str(task.folder) for task in tasks},
            room.gpus_per_evaluator > 0,
            str(config.storage.absolute()),
            config.run_name,
        )
    )


class EvaluationQueue:
    """Feeds units to a pool of evaluators and collects what they measured.

    Args:
        config: the run's configuration.
        spec: the backbone.
        tasks: all tasks.
        precision: resolved precision.
        room: number of evaluators and their share of a GPU.
    """

    def __init__(
        self, config: Experiment, spec: BackboneSpec, tasks: Sequence[Task], precision: str, room: Room
    ) -> None:
        self._storage, self._run = config.storage, config.run_name
        self._waiting: deque[Unit] = deque()
        self._running: dict[Any, tuple[Unit, int]] = {}
        self._done: deque[tuple[Unit, dict[str, Any]]] = deque()
        self._same: dict[str, list[Unit]] = {}
        self.reused = 0
        self._config = json.dumps(config.portable())
        self._make = partial(start_evaluator, config, spec, tasks, precision, room)
        self._actors: list[Any] = [None] * room.evaluators
        self._load = [0] * room.evaluators
        self._last: list[tuple[str, str] | None] = [None] * room.evaluators

    def __len__(self) -> int:
        return sum(len(units) for units in self._same.values()) + len(self._done)

    def grow(self) -> None:
        """Makes room for one more evaluator, which starts when enough units wait to be worth it."""
        self._actors.append(None)
        self._load.append(0)
        self._last.append(None)

    @property
    def busy(self) -> bool:
        """Whether an evaluator is at work, so that `poll` waits for it."""
        return bool(self._running)

    def submit(self, unit: Unit) -> None:
        """Adds a unit, or takes its result from storage, or waits for the equal one that is under way."""
        if unit.key in self._same:
            self._same[unit.key].append(unit)
            self._reuse()
            return
        found = read_measurement(self._storage, unit.key)
        if found is None:
            telemetry.inc("condu_cache_lookups_total", run=self._run, what="measurement", result="miss")
            self._waiting.append(unit)
            self._same[unit.key] = [unit]
        else:
            self._done.append((unit, found))
            self._reuse()

    def _reuse(self) -> None:
        self.reused += 1
        telemetry.inc("condu_cache_lookups_total", run=self._run, what="measurement", result="hit")

    def poll(self, timeout: float) -> list[tuple[Unit, dict[str, Any]]]:
        """Hands out waiting units and returns the results that came in, waiting up to `timeout` seconds for one."""
        for index, load in enumerate(self._load):
            if self._actors[index] is None and index and len(self._waiting) < UNITS_PER_START:
                continue
            for _ in range(2 - load):  # one in hand and one queued, so that an evaluator never waits for the driver
                if self._waiting:
                    self._dispatch(index, self._next(index))
        if self._running and not self._done:
            ready, _ = ray.wait(list(self._running), num_returns=1, timeout=timeout)
            for reference in ready:
                unit, index = self._running.pop(reference)
                self._load[index] -= 1
                result = ray.get(reference)
                write_measurement(self._storage, unit.key, result)
                telemetry.observe("condu_measurement_seconds", result["seconds"], run=self._run, method=unit.method)
                self._done.extend((same, result) for same in self._same.pop(unit.key))
        telemetry.gauge("condu_measurements_waiting", len(self), run=self._run)
        finished = list(self._done)
        self._done.clear()
        return finished

    def _next(self, index: int) -> Unit:
        """Takes a unit of the state that this evaluator had last, whose features it keeps, or the first."""
        for position, unit in enumerate(self._waiting):
            if (unit.method, unit.entry.state) == self._last[index]:
                del self._waiting[position]
                return unit
        return self._waiting.popleft()

    def _dispatch(self, index: int, unit: Unit) -> None:
        if self._actors[index] is None:
            self._actors[index] = self._make()
        self._last[index] = (unit.method, unit.entry.state)
        self._load[index] += 1
        self._running[self._actors[index].measure.remote(self._config, unit)] = (unit, index)
