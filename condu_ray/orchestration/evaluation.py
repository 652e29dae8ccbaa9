"""Evaluation after every session: long-lived evaluator actors, a queue of units, and a cache of what was measured.

A unit is one (state, task). Units whose weights and data were measured before, by any method or run, are not measured
again: `<storage>/evaluations/<key>.json`.
"""

from __future__ import annotations

import json
from collections import OrderedDict, deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import ray
import torch

from condu_ray.benchmark import Task, load_task
from condu_ray.config import Experiment, content_hash
from condu_ray.learn.evaluate import Delta, Evaluator
from condu_ray.learn.expert import load_expert
from condu_ray.merging import reconstruction
from condu_ray.methods import ModelState, get
from condu_ray.methods.session import load_session
from condu_ray.orchestration.env import EVALUATOR_CPUS, Room
from condu_ray.orchestration.prototypes import load_prototypes
from condu_ray.store import artifacts
from condu_ray.store.ledger import Entry
from condu_ray.vlm.model import BackboneSpec, load_backbone

VERSION = "1"
UNITS_PER_START = 16
"""Waiting units that are worth the seconds that another evaluator's start takes."""
STATES = 2
"""Sessions' states that an evaluator keeps loaded."""


@dataclass(frozen=True)
class Unit:
    """One measurement: a method's state after a session, on one task."""

    method: str
    entry: Entry
    task: str
    seen: bool
    key: str


class EvaluatorActor:
    """Holds the backbone for the whole run and measures one unit a call.

    Args:
        backbone: the backbone's spec, as a dict.
        run_folder: where the sessions are.
        config: the run's configuration, as a dict.
        precision: `fp32` or `bf16`.
        folders: folder of each task.
        cuda: whether to compute on the GPU that Ray gave.
    """

    def __init__(
        self,
        backbone: dict[str, Any],
        run_folder: str,
        config: dict[str, Any],
        precision: str,
        folders: dict[str, str],
        cuda: bool,
    ) -> None:
        self._config = Experiment.model_validate(config)
        torch.set_num_threads(self._config.training.threads)
        self._run, self._folders = Path(run_folder), folders
        loaded = load_backbone(BackboneSpec(**backbone))
        self._evaluator = Evaluator(
            loaded,
            batch_size=self._config.evaluation.batch_size,
            max_images=self._config.evaluation.max_images,
            precision=precision,
            device="cuda" if cuda else "cpu",
        )
        self._tasks: dict[str, Task] = {}
        self._states: OrderedDict[str, ModelState] = OrderedDict()

    def _task(self, name: str) -> Task:
        if name not in self._tasks:
            self._tasks[name] = load_task(Path(self._folders[name]))
        return self._tasks[name]

    def _state(self, method: str, entry: Entry) -> ModelState:
        key = f"{method}/{entry.state}"
        if key not in self._states:
            self._states[key] = load_session(self._run, get(method), entry)
            while len(self._states) > STATES:
                self._states.popitem(last=False)
        return self._states[key]

    def _expert(self, key: str) -> Delta:
        return load_expert(self._config.storage, key)

    def measure(self, unit: Unit) -> dict[str, Any]:
        """Returns `correct`, `images` and `seconds`.

        For a seen task of a method that merges, also how well its expert is reconstructed (`relative_l2`,
        `sign_agreement`) and its `rescaler`.
        """
        method, task, state = get(unit.method), self._task(unit.task), self._state(unit.method, unit.entry)
        found: dict[str, Any] = {}
        if unit.seen or not method.aggregates_unseen:
            delta = method.delta(state, unit.task, self._expert)
            count = self._evaluator.known(task, delta)
            if unit.seen and method.keeps_model and delta is not None:
                error = reconstruction(self._expert(state.expert_of(unit.task)), delta)
                found = {"relative_l2": error.relative_l2, "sign_agreement": error.sign_agreement}
                found["rescaler"] = getattr(state.model, "rescalers", {}).get(unit.task)
        else:
            kind, identity = self._config.inference.prototypes, self._evaluator.backbone.fingerprint
            learned = {name: self._task(name) for name in state.tasks}
            count = self._evaluator.aggregated(
                task,
                {name: lambda name=name: method.delta(state, name, self._expert) for name in learned},  # type: ignore[misc]
                {name: load_prototypes(self._config.storage, identity, known, kind) for name, known in learned.items()},
                self._config.inference,
            )
        return asdict(count) | found


def unit_key(
    config: Experiment, backbone: str, precision: str, method: str, state: ModelState, task: Task, seen: bool
) -> str:
    """Returns the identity of a measurement: the weights or the aggregation, the test data, and how it is measured."""
    found = get(method)
    weights: list[Any] = [found.weights(state, task.name)]
    if found.aggregates_unseen and not seen:
        weights = ["aggregated", state.id, config.inference.model_dump()]
    measured = [config.evaluation.max_images, precision]
    return content_hash([VERSION, backbone, weights, task.test_fingerprint, measured])[:24]


def _cache(storage: Path, key: str) -> Path:
    return storage / "evaluations" / f"{key}.json"


def cached(storage: Path, key: str) -> dict[str, Any] | None:
    """Returns a measurement that storage holds, or None."""
    try:
        found: dict[str, Any] = json.loads(_cache(storage, key).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    return found


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
        self._storage = config.storage
        self._waiting: deque[Unit] = deque()
        self._running: dict[Any, tuple[Unit, int]] = {}
        self._done: deque[tuple[Unit, dict[str, Any]]] = deque()
        self._same: dict[str, list[Unit]] = {}
        self.reused = 0
        self._make = lambda: (
            ray.remote(EvaluatorActor)
            .options(num_cpus=EVALUATOR_CPUS, num_gpus=room.gpus_per_evaluator, max_restarts=-1, max_task_retries=-1)
            .remote(
                asdict(spec),
                str(config.run_folder.absolute()),
                config.model_dump(mode="json") | {"storage": str(config.storage.absolute())},
                precision,
                {task.name: str(task.folder) for task in tasks},
                room.gpus_per_evaluator > 0,
            )
        )
        self._actors: list[Any] = [None] * room.evaluators
        self._load = [0] * room.evaluators

    def __len__(self) -> int:
        return sum(len(units) for units in self._same.values()) + len(self._done)

    def grow(self) -> None:
        """Makes room for one more evaluator, which starts when enough units wait to be worth it."""
        self._actors.append(None)
        self._load.append(0)

    @property
    def busy(self) -> bool:
        """Whether an evaluator is at work, so that `poll` waits for it."""
        return bool(self._running)

    def submit(self, unit: Unit) -> None:
        """Adds a unit, or takes its result from storage, or waits for the equal one that is under way."""
        if unit.key in self._same:
            self._same[unit.key].append(unit)
            self.reused += 1
            return
        found = cached(self._storage, unit.key)
        if found is None:
            self._waiting.append(unit)
            self._same[unit.key] = [unit]
        else:
            self._done.append((unit, found))
            self.reused += 1

    def poll(self, timeout: float) -> list[tuple[Unit, dict[str, Any]]]:
        """Hands out waiting units and returns the results that came in, waiting up to `timeout` seconds for one."""
        for index, load in enumerate(self._load):
            if self._actors[index] is None and index and len(self._waiting) < UNITS_PER_START:
                continue
            for _ in range(2 - load):  # one in hand and one queued, so that an evaluator never waits for the driver
                if self._waiting:
                    self._dispatch(index, self._waiting.popleft())
        if self._running and not self._done:
            ready, _ = ray.wait(list(self._running), num_returns=1, timeout=timeout)
            for reference in ready:
                unit, index = self._running.pop(reference)
                self._load[index] -= 1
                result = ray.get(reference)
                artifacts.write_text(_cache(self._storage, unit.key), json.dumps(result))
                self._done.extend((same, result) for same in self._same.pop(unit.key))
        finished = list(self._done)
        self._done.clear()
        return finished

    def _dispatch(self, index: int, unit: Unit) -> None:
        if self._actors[index] is None:
            self._actors[index] = self._make()
        self._load[index] += 1
        self._running[self._actors[index].measure.remote(unit)] = (unit, index)
