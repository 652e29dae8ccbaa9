"""The plan of a run: every expert's key and every state's identity are known before anything is trained."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from condu_ray.benchmark import Task
from condu_ray.config import Experiment
from condu_ray.learn.expert import expert_folder, expert_key
from condu_ray.methods import Method
from condu_ray.store import artifacts
from condu_ray.store.ledger import ROOT, state_id


@dataclass(frozen=True)
class Item:
    """One expert to fine-tune: its task, its key, and the expert whose weights it starts from (None: theta0)."""

    task: str
    key: str
    start: str | None


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
    parent, previous = ROOT, None
    for position, task in enumerate(tasks):
        item = None
        if method.starts_from != "nothing":
            start = previous if method.starts_from == "previous" else None
            key = expert_key(
                backbone=backbone,
                data=task.train_fingerprint,
                task=task.name,
                training=config.training,
                precision=precision,
                seed=config.seed,
                start=start,
            )
            item, previous = Item(task.name, key, start), key
        settings = config.merging.model_dump() if method.keeps_model else {}
        state = state_id(parent, method.name, task.name, item.key if item else backbone, settings)
        steps.append(Step(position, task.name, item, parent, state))
        parent = state
    return MethodPlan(method, tuple(steps))


def missing(storage: Path, items: Iterable[Item]) -> list[Item]:
    """Returns the experts that storage does not hold yet, each key once, in order."""
    unique = {item.key: item for item in items}
    return [item for item in unique.values() if not artifacts.exists(expert_folder(storage, item.key))]


def lanes(storage: Path, plans: Sequence[MethodPlan], count: int) -> list[list[Item]]:
    """Shares the missing experts among lanes, each expert in exactly one.

    A chain (experts that start from one another) is a lane of its own and comes first; the experts that start from
    theta0 are dealt to the remaining lanes, those of early tasks first, since merges need them in task order.

    Args:
        storage: storage folder.
        plans: the methods' plans.
        count: lanes that can run side by side.
    """
    chains: list[list[Item]] = []
    taken: set[str] = set()
    for plan in plans:
        if plan.method.starts_from == "previous":
            chain = [item for item in missing(storage, plan.items) if item.key not in taken]
            taken |= {item.key for item in chain}
            chains += [chain] if chain else []
    free = [item for plan in plans if plan.method.starts_from == "pretrained" for item in plan.items]
    free = [item for item in missing(storage, free) if item.key not in taken]
    width = max(1, count - len(chains))
    return chains + [free[lane::width] for lane in range(width) if free[lane::width]]
