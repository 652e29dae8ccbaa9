"""One method of a run as storage has it: its committed sessions, their states, and its experts."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from itertools import takewhile
from typing import Any

from condu_ray.benchmark import Task
from condu_ray.command_line import run_command
from condu_ray.config import Experiment
from condu_ray.learn.features import Weights
from condu_ray.merging import DeltaSource
from condu_ray.merging.delta import Delta
from condu_ray.methods import Method, ModelState
from condu_ray.methods.session import load_session
from condu_ray.plan.kept_deltas import KeptDeltas
from condu_ray.plan.sessions import MethodPlan
from condu_ray.store import artifacts
from condu_ray.store.backend import backend
from condu_ray.store.experts import load_expert
from condu_ray.store.layout import expert_folder, ledger_path, session_folder
from condu_ray.store.ledger import Entry, read_entries
from condu_ray.store.provenance import command, provenance


class MissingRunError(ValueError):
    """An expert or a session that storage does not hold; the message names it and the command that makes it."""


@dataclass(frozen=True)
class StoredMethod:
    """One method of a stored run.

    Attributes:
        config: the run's configuration.
        tasks: in the order of learning.
        plan: the method, and the sessions that it is to have.
        held_out: the tasks with the images that `validation_share` holds out as their test images; empty without it.
    """

    config: Experiment
    tasks: tuple[Task, ...]
    plan: MethodPlan
    held_out: tuple[Task, ...] = ()
    _kept: KeptDeltas = field(default_factory=KeptDeltas, repr=False, compare=False)

    @property
    def method(self) -> Method:
        """The method."""
        return self.plan.method

    @cached_property
    def entries(self) -> tuple[Entry, ...]:
        """The sessions that are committed, in order, up to the first that is not.

        Raises:
            LedgerError: the ledger is damaged.
        """
        there = {entry.state: entry for entry in self._committed()}
        found = takewhile(lambda entry: entry is not None, (there.get(one.state) for one in self.plan.sessions))
        return tuple(entry for entry in found if entry is not None)

    def _committed(self) -> list[Entry]:
        """All sessions that the ledger has, also those that the settings do not ask for."""
        path = ledger_path(self.config.run_folder, self.method.name)
        return read_entries(path)[0] if backend(path).exists(path) else []

    @property
    def why_none(self) -> str:
        """Says why there are no `entries`, and what to do."""
        if not (count := len(self._committed())):
            return "has committed no session yet; let the run learn a task first"
        return (
            f"has {count} session{'s' * (count > 1)} in storage, of which its settings ask for none now: its data or "
            "backbone have changed since, or an earlier condu_ray wrote them. Put the data back, or give the run's own "
            "command again, which makes them anew"
        )

    @property
    def why_fewer(self) -> str:
        """Says of the first session that `entries` lack that it is there for other data or settings, where it is."""
        place = len(self.entries)
        if not place:
            return self.why_none if self._committed() else ""
        if place == len(self.plan.sessions):
            return ""
        lacking = self.plan.sessions[place]
        if not any((one.parent, one.task) == (lacking.parent, lacking.task) for one in self._committed()):
            return ""
        return (
            f"its session of {lacking.task}, number {place + 1}, is in storage and counts no more, nor do those after "
            "it, for the task's data or settings have changed since; put them back, or give the run's own command "
            "again, which makes these sessions anew"
        )

    def load(self, key: str) -> Delta:
        """Loads an expert's weight delta by its key, its checksum checked the first time.

        Raises:
            ArtifactError: it is missing or damaged.
        """
        return self._kept.get(key, partial(load_expert, self.config.storage, key))

    @property
    def deltas(self) -> dict[str, DeltaSource]:
        """Task -> what loads its expert's weight delta, in the order of learning."""
        return {expert.task: partial(self.load, expert.key) for expert in self.plan.experts}

    def state(self, position: int) -> ModelState:
        """Loads the state after the committed session at a 0-based position; -1 is the last.

        Raises:
            ArtifactError: it is missing or damaged.
            IndexError: there is no such session yet.
        """
        return load_session(self.config.run_folder, self.method, self.entries[position])

    def weights(self, state: ModelState, task: str) -> Weights:
        """Returns the weights that answer for a task in a state, named as the evaluators name them."""
        return Weights(self.method.weights(state, task), lambda: self.method.delta(state, task, self.load))

    def require(self, arguments: Sequence[str], *, sessions: bool) -> None:
        """Makes sure that all experts are in storage.

        Args:
            arguments: the flags that name the run, for the message.
            sessions: whether the merged states have to be there too.

        Raises:
            MissingRunError: an expert or a session is not there.
            LedgerError: the ledger is damaged.
        """
        run, name, missing = self.config.run_folder, self.method.name, []
        for one in self.plan.sessions:
            if one.expert is not None:
                folder = expert_folder(self.config.storage, one.expert.key)
                if not artifacts.exists(folder):
                    missing.append(f"expert of task {one.task} ({folder})")
            folder = session_folder(run, name, one.position, one.task, one.state)
            if sessions and not (one.position < len(self.entries) and artifacts.exists(folder)):
                missing.append(f"session {one.position + 1}, which learns {one.task} ({folder})")
        if missing:
            raise MissingRunError(
                f"{name}: storage lacks {len(missing)} experts or sessions of this run; the first is the "
                f"{missing[0]}. Make them with\n  {shlex.join([*run_command(), *arguments])}\nor give "
                "the flags that the run was made with (on a machine of another kind also its --training.precision)"
            )

    def describe(self) -> dict[str, Any]:
        """Returns where results come from: run, method, tasks, configuration, versions and command."""
        return {
            "run": self.config.run_name,
            "method": self.method.name,
            "tasks": [task.name for task in self.tasks],
            "config": self.config.model_dump(mode="json", exclude={"tracking": {"uri"}}),  # it may hold a password
            "versions": provenance(),
            "command": command(),
        }
