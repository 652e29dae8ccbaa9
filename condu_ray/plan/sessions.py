"""The plan of a run: every expert's key and every state's identity are known before anything is trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from condu_ray.benchmark import Task
from condu_ray.config import Experiment
from condu_ray.methods import Method
from condu_ray.store.experts import expert_key
from condu_ray.store.ledger import ROOT, state_id


@dataclass(frozen=True)
class Item:
    """One expert to fine-tune.

    Attributes:
        method: a method whose objective trains it (all that share its key train it alike).
        task: task to learn.
        position: 0-based place of the task.
        key: the expert's key.
        start: key of the expert whose weights training starts from; None for theta0 or a state.
        state: identity of the merged state that training starts from; None otherwise.
        earlier: tasks and keys of the method's experts before this one.
        same: key of an expert that, where it is there, is this one: `training.on_nan` changes nothing of an expert
            that did not diverge. Only for what starts from theta0; a chain may have been begun again before it.
    """

    method: str
    task: str
    position: int
    key: str
    start: str | None = None
    state: str | None = None
    earlier: tuple[tuple[str, str], ...] = ()
    same: str | None = None


@dataclass(frozen=True)
class Step:
    """One session of a method: the task, its expert (None where nothing is trained), the state before and after."""

    position: int
    task: str
    item: Item | None
    parent: str
    state: str


@dataclass(frozen=True)
class MethodPlan:
    """A method and its sessions in the order of the tasks."""

    method: Method
    steps: tuple[Step, ...]

    @property
    def items(self) -> list[Item]:
        """Experts that the method needs, in order."""
        return [step.item for step in self.steps if step.item is not None]


def plan_method(method: Method, config: Experiment, tasks: Sequence[Task], backbone: str, precision: str) -> MethodPlan:
    """Chains the keys of experts and states of one method over the tasks.

    Args:
        method: the method.
        config: the run's configuration.
        tasks: in the order of learning.
        backbone: theta0's fingerprint.
        precision: resolved training precision.
    """
    steps: list[Step] = []
    parent, earlier = ROOT, tuple[tuple[str, str], ...]()
    for position, task in enumerate(tasks):
        item = None
        if method.starts_from != "nothing":
            start = earlier[-1][1] if earlier and method.starts_from == "previous" else None
            state = parent if method.starts_from == "state" and position else None
            key_of = partial(
                expert_key,
                backbone=backbone,
                data=task.train_fingerprint,
                task=task.name,
                precision=precision,
                seed=config.seed,
                start=start or state,
                recipe=method.expert_identity(position),
            )
            key, same = key_of(training=method.training), None
            if method.training.on_nan != "stop" and not (start or state):
                same = key_of(training=method.training.model_copy(update={"on_nan": "stop"}))
            item = Item(method.name, task.name, position, key, start, state, earlier, same)
            earlier = (*earlier, (task.name, key))
        key_or_theta0 = item.key if item else backbone
        identity = state_id(parent, method.name, task.name, key_or_theta0, method.state_identity())
        steps.append(Step(position, task.name, item, parent, identity))
        parent = identity
    return MethodPlan(method, tuple(steps))
