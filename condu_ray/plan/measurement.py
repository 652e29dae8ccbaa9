"""Measurements: one (state, task, protocol) each, with an identity by which it is never measured twice.

Loading this loads no torch, for the process that shares measurements among evaluators needs none.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal

from condu_ray.config import Experiment, Protocol, content_hash
from condu_ray.options import MIXTURE_VERSION, RIDGE_VERSION
from condu_ray.store.ledger import ROOT, Entry

if TYPE_CHECKING:
    from condu_ray.benchmark import Task
    from condu_ray.methods import Method, ModelState

Kind = Literal["one model", "router", "task identity"]
"""Kinds of methods: the same weights for every image; the nearest experts where a task is not known; an expert a task
and nothing that would choose among them."""
Predicted = Literal["model", "routed", "routed unless learned"]
"""By the task's weights; by the nearest experts; by these only where the task is not learned yet."""
PREDICTED: Mapping[Kind, Mapping[Protocol, Predicted]] = {
    "one model": {"task": "model", "own": "model", "union": "model", "xtail": "model"},
    "router": {"task": "routed unless learned", "own": "routed", "union": "routed", "xtail": "routed"},
    "task identity": {"task": "model"},
}
"""Under which protocols a method is measured, and what predicts there. What has one model does the same under `own` as
under `task`; what needs the task's identity is measured only where it is known."""
VERSION = "3"
"""Raised whenever measurements change."""


@dataclass(frozen=True)
class Measurement:
    """A method's state after a session, measured on one task, by one protocol.

    Attributes:
        config: the run's settings, with an absolute storage folder.
        method: the method.
        entry: the session.
        task: whose test images.
        seen: whether the state has learned the task.
        protocol: what the prediction knows, and which classes it chooses from.
        key: what it is known again by (`measurement_key`).
    """

    config: Experiment
    method: str
    entry: Entry
    task: str
    seen: bool
    protocol: Protocol
    key: str

    @property
    def state(self) -> str:
        """Identity of the state."""
        return self.entry.state


@dataclass(frozen=True)
class Encoding:
    """theta0's features of a task's test images, which routed measurements leave in storage, made on their own.

    Attributes:
        task: whose test images.
    """

    task: str
    state = ROOT

    @property
    def key(self) -> str:
        """What it is known by while it is made."""
        return f"features of {self.task}"


Wanted = Measurement | Encoding
"""What evaluators are asked for."""


def kind(method: Method) -> Kind:
    """Returns what a method is by what it predicts with."""
    return "router" if method.routes else "one model" if method.one_model else "task identity"


def routed(method: Method, seen: bool, protocol: Protocol) -> bool:
    """Whether a measurement is predicted by the nearest experts: the task is not learned yet, or not known."""
    predicted = PREDICTED[kind(method)][protocol]
    return predicted == "routed" or (predicted == "routed unless learned" and not seen)


def judged(method: Method, seen: bool, protocol: Protocol) -> bool:
    """Whether a measurement also says how near to its expert is what serves a task."""
    if not method.keeps_model or not seen or protocol not in ("task", "own") or protocol not in PREDICTED[kind(method)]:
        return False
    return not routed(method, seen, protocol)


def by_own_expert(method: Method, state: ModelState, task: str) -> bool:
    """Whether what serves a learned task is its own expert, or made of it, of which calibration then says something.

    By the weights, whoever asks: after the first session `sequential` has those of `individual`, and their measurement.
    """
    own = dict(zip(state.tasks, state.experts, strict=True)).get(task)
    return not method.one_model or (own is not None and method.weights(state, task) == own)


def protocols(config: Experiment, method: Method) -> list[Protocol]:
    """Returns those of the run's protocols that a method is measured under."""
    return [protocol for protocol in config.protocol if protocol in PREDICTED[kind(method)]]


def measurement_key(
    config: Experiment,
    backbone: str,
    precision: str,
    method: Method,
    state: ModelState,
    task: Task,
    seen: bool,
    protocol: Protocol = "task",
    space: Sequence[Task] = (),
    learned: Sequence[Task] = (),
) -> str:
    """Returns the identity of a measurement: the weights or the aggregation, the test data, and how it is measured.

    Args:
        config: the run's configuration.
        backbone: theta0's fingerprint.
        precision: `fp32` or `bf16`.
        method: the method.
        state: its state.
        task: whose test images.
        seen: whether the state has learned it.
        protocol: how it is predicted.
        space: tasks whose classes are chosen from (`benchmark.label_space`); empty for the task's own.
        learned: the state's tasks.
    """
    weights: list[Any] = [ROOT if method.skips_trigger(state) else method.weights(state, task.name)]
    if routed(method, seen, protocol):
        inference = config.inference.resolved(*method.asks)
        weights = ["aggregated", state.id, inference.identity()]
        if inference.aggregation == "mixture":
            weights.append(MIXTURE_VERSION)
            weights += ["experts' temperatures"] if config.validation_share else []
            if protocol == "union" and (standing := _standing(tuple(space), tuple(learned))):
                weights.append(["in the run's order", standing])  # sweeps measured by their own order once
        if inference.router == "ridge":
            weights.append(["ridge", RIDGE_VERSION])
        # Prototypes are of their training data too, which the key of an expert from elsewhere says nothing of.
        if brought := {one.name: one.train_fingerprint for one in learned if one.name in config.imported}:
            weights.append(brought)
    if space:  # which classes there are, in which order the tasks come does not count
        weights.append(sorted(content_hash([other.classes, other.templates]) for other in space))
    if protocol == "xtail":  # classes of one name are counted in another way
        weights.append(protocol)
        if _spelt_in_several_ways(tuple(space)):  # all of them had the first one's prompt once
            weights.append("prompts as they are spelt")
        named = () if weights[0] == ROOT else state.tasks  # their names are part of what the weights are known by
        if shared := _sharing(tuple(space), task.name, named):  # others of other names were taken for these once
            weights.append(["the first by name", shared])
    measured = [config.evaluation.max_images, precision]
    if config.evaluation.fidelity == "whole" and judged(method, seen, protocol):
        measured.append("whole fidelity")
    calibrated = seen and not space and not routed(method, seen, protocol) and by_own_expert(method, state, task.name)
    if calibrated and config.validation_share and task.name in config.imported:  # by images that its key does not name
        measured.append(task.train_fingerprint)
    return content_hash([VERSION, backbone, weights, task.test_fingerprint, measured])[:24]


@lru_cache(maxsize=64)
def _standing(space: tuple[Task, ...], learned: tuple[Task, ...]) -> list[Any]:
    """Prompts that stand for the classes that several tasks have, none of them learned: of the first in their order."""
    from condu_ray.learn.routing import plain  # loads torch

    known = {plain(name) for task in learned for name in task.classes}
    said: dict[str, list[Any]] = {}
    for task in space:
        for name in task.classes:
            if plain(name) not in known:
                said.setdefault(plain(name), []).append([name, task.templates])
    return sorted([name, prompts[0]] for name, prompts in said.items() if any(one != prompts[0] for one in prompts))


@lru_cache(maxsize=64)
def _sharing(space: tuple[Task, ...], tested: str, named: tuple[str, ...]) -> list[str]:
    """Tasks that have a class which another one has too, as they stand: the first one's is predicted.

    By their classes, and whether it is the one that is tested; nothing where all of them are `named` otherwise.
    """
    from condu_ray.learn.routing import plain  # loads torch

    having = Counter(name for task in space for name in {plain(one) for one in task.classes})
    sharing = [task for task in space if any(having[plain(name)] > 1 for name in task.classes)]
    unnamed = any(task.name not in named for task in sharing)
    return [content_hash([task.classes, task.name == tested]) for task in sharing if unnamed]


@lru_cache(maxsize=64)
def _spelt_in_several_ways(space: tuple[Task, ...]) -> bool:
    """Whether some classes have one name as names are compared, and several as they are prompted."""
    from condu_ray.learn.routing import plain  # loads torch

    names = {name for task in space for name in task.classes}
    return len({plain(name) for name in names}) < len(names)
