"""A finished run found again in storage: its experts and sessions, or a refusal that says how to make them."""

from __future__ import annotations

import shlex
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

import torch

from condu_ray.benchmark import Task
from condu_ray.config import Experiment
from condu_ray.learn.evaluate import Evaluator
from condu_ray.learn.features import Weights
from condu_ray.merging import DeltaSource
from condu_ray.merging.delta import Delta
from condu_ray.methods import Method, ModelState, get
from condu_ray.methods.session import load_session, session_folder
from condu_ray.store import artifacts
from condu_ray.store.backend import backend
from condu_ray.store.experts import expert_folder, load_expert
from condu_ray.store.layout import ledger_path
from condu_ray.store.ledger import Entry, Ledger
from condu_ray.vlm.model import BackboneSpec, load_backbone

DELTA_BYTES = 2**31
"""Experts' deltas that are kept in memory, at most; beyond it they are loaded again."""


class MissingRunError(ValueError):
    """An expert or a session that storage does not hold; the message names it and the command that makes it."""


@dataclass(frozen=True)
class StoredRun:
    """One method's experts and sessions in storage.

    Attributes:
        config: the run's configuration.
        method: the method.
        tasks: in the order of learning.
        entries: its sessions in order, each with its expert's key.
    """

    config: Experiment
    method: Method
    tasks: tuple[Task, ...]
    entries: tuple[Entry, ...]
    _kept: OrderedDict[str, Delta] = field(default_factory=OrderedDict, repr=False)

    def expert(self, key: str) -> Delta:
        """Loads an expert's weight delta, its checksum checked the first time.

        Raises:
            ArtifactError: it is damaged.
        """
        if key not in self._kept:
            self._kept[key] = load_expert(self.config.storage, key)
            while len(self._kept) > 1 and sum(map(_nbytes, self._kept.values())) > DELTA_BYTES:
                self._kept.popitem(last=False)
        self._kept.move_to_end(key)
        return self._kept[key]

    @property
    def deltas(self) -> dict[str, DeltaSource]:
        """Task -> what loads its expert's weight delta, in the order of learning."""
        return {entry.task: partial(self.expert, str(entry.expert)) for entry in self.entries}

    def state(self, position: int) -> ModelState:
        """Loads the state after the session at a 0-based position.

        Raises:
            ArtifactError: it is damaged.
        """
        return load_session(self.config.run_folder, self.method, self.entries[position])

    def weights(self, state: ModelState, task: str) -> Weights:
        """Returns the weights that answer for a task in a state, named as the evaluators name them."""
        return Weights(self.method.weights(state, task), lambda: self.method.delta(state, task, self.expert))

    def describe(self) -> dict[str, Any]:
        """Returns where results come from: run, method, tasks, configuration, versions and command."""
        return {
            "run": self.config.run_name,
            "method": self.method.name,
            "tasks": [task.name for task in self.tasks],
            "config": self.config.model_dump(mode="json", exclude={"tracking": {"uri"}}),  # it may hold a password
            "versions": artifacts.provenance(),
            "command": artifacts.command(),
        }


class PlannedStep(Protocol):
    """One session as `orchestration.plan.Step` plans it."""

    @property
    def position(self) -> int:
        """0-based place of the task."""

    @property
    def task(self) -> str:
        """Name of the task."""

    @property
    def item(self) -> Any:
        """The expert to train, whose `key` it has; None where nothing is trained."""

    @property
    def parent(self) -> str:
        """Identity of the state before."""

    @property
    def state(self) -> str:
        """Identity of the state after."""


class Planned(Protocol):
    """A method and its sessions as `orchestration.plan.MethodPlan` plans them (a floor above this one)."""

    @property
    def method(self) -> Method:
        """The method."""

    @property
    def steps(self) -> Sequence[PlannedStep]:
        """Its sessions in order."""


def keep_methods(config: Experiment, suitable: Callable[[Method], bool], which: str) -> Experiment:
    """Returns the configuration with those of its methods alone that an ablation is about.

    Args:
        config: of a run, which may have other methods too.
        suitable: whether the ablation is about a method.
        which: describes such methods, for the message.

    Raises:
        MissingRunError: the storage folder does not exist.
        ValueError: there is no such method, by name or at all.
    """
    if not backend(config.storage).exists(config.storage):
        raise MissingRunError(f"--storage {config.storage}: no such folder; give the storage of a finished run")
    kept = tuple(name for name in config.method if suitable(get(name, config)))
    if not kept:
        raise ValueError(f"--method {','.join(config.method)}: this is about {which}; name one that the run has")
    return config.model_copy(update={"method": kept})


def stored_run(
    config: Experiment, tasks: Sequence[Task], plan: Planned, arguments: Sequence[str], *, sessions: bool
) -> StoredRun:
    """Finds a planned run in storage.

    Args:
        config: the run's configuration.
        tasks: in the order of learning.
        plan: a method that trains experts, and its sessions.
        arguments: the flags that name the run, for the message.
        sessions: whether the merged states have to be there too, beside the experts.

    Raises:
        MissingRunError: an expert or a session is not in storage.
        ValueError: the method's ledger is damaged.
    """
    method, ledger = plan.method, Ledger(ledger_path(config.run_folder, plan.method.name))
    entries, missing = [], []
    for step in plan.steps:
        planned = Entry(step.position, step.task, step.item.key, step.parent, step.state, 0.0)
        entries.append(ledger.get(step.state) or planned)
        folder = expert_folder(config.storage, step.item.key)
        if not artifacts.exists(folder):
            missing.append(f"expert of task {step.task} ({folder})")
        folder = session_folder(config.run_folder, method.name, step.position, step.task, step.state)
        if sessions and not (ledger.get(step.state) and artifacts.exists(folder)):
            missing.append(f"session {step.position + 1}, which learns {step.task} ({folder})")
    if missing:
        raise MissingRunError(
            f"{method.name}: storage lacks {len(missing)} experts or sessions of this run; the first is the "
            f"{missing[0]}. Make them with\n  {shlex.join(['python', 'jobs/run_mtil.py', *arguments])}\nor give the "
            "flags that the run was made with (on a machine of another kind also its --training.precision)"
        )
    return StoredRun(config, method, tuple(tasks), tuple(entries))


def make_evaluator(config: Experiment, spec: BackboneSpec, precision: str) -> Evaluator:
    """Returns an evaluator in this process, as those of the run: on the GPU if there is one, else on the CPU.

    Args:
        config: batch size, images a task, and the CPU threads of this process.
        spec: the backbone.
        precision: resolved.
    """
    torch.set_num_threads(config.training.threads)
    return Evaluator(
        load_backbone(spec),
        batch_size=config.evaluation.batch_size,
        max_images=config.evaluation.max_images,
        precision=precision,
        device="cuda" if torch.cuda.is_available() else "cpu",
    )


def _nbytes(delta: Delta) -> int:
    return sum(tensor.nbytes for tensor in delta.values())
