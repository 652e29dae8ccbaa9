"""A run as storage has it, finished or not: what was committed and measured, its states and its experts; no Ray.

Nothing here writes, so a run may be at work meanwhile: what it has done so far is found.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch

from condu_ray.benchmark import Task
from condu_ray.config import Experiment, Protocol
from condu_ray.learn.precision import resolved_precision
from condu_ray.learn.prototype_store import prototype_key
from condu_ray.merging.delta import Delta
from condu_ray.methods import ModelState, get
from condu_ray.metrics import METRICS, MORE, continual_metrics
from condu_ray.plan.measurement import Measurement, protocols
from condu_ray.plan.preflight import Checked
from condu_ray.plan.results import Results
from condu_ray.plan.run_plan import RunPlan, plan_run
from condu_ray.plan.stored_method import StoredMethod
from condu_ray.store.layout import expert_folder, prototype_folder, session_folder
from condu_ray.store.ledger import ROOT
from condu_ray.store.location import Place
from condu_ray.store.measurements import Accuracy, read_measurement
from condu_ray.store.presence import present

if TYPE_CHECKING:
    from pandas import DataFrame


@dataclass(frozen=True)
class StoredRun:
    """A run in storage; the tables are pandas' and say what is there so far.

    Attributes:
        plan: what it is to do.
    """

    plan: RunPlan

    @property
    def config(self) -> Experiment:
        """The run's settings."""
        return self.plan.config

    @property
    def tasks(self) -> tuple[Task, ...]:
        """Its tasks, in the order of learning."""
        return self.plan.checked.tasks

    @cached_property
    def methods(self) -> dict[str, StoredMethod]:
        """What there is of each method, by name."""
        held_out = self.plan.checked.validation
        return {one.method.name: StoredMethod(self.config, self.tasks, one, held_out) for one in self.plan.methods}

    @cached_property
    def wanted(self) -> list[Measurement]:
        """All measurements of the committed sessions, in their order.

        Raises:
            LedgerError: a ledger is damaged.
        """
        results = Results(self.plan)
        return [
            measurement
            for one in self.methods.values()
            for entry in one.entries
            for measurement in results.measurements(one.plan, entry)
        ]

    @cached_property
    def measured(self) -> list[tuple[Measurement, Accuracy]]:
        """Those of `wanted` that are there, each with what was measured.

        Raises:
            ArtifactError: a measurement is damaged.
            LedgerError: a ledger is damaged.
        """
        found = ((one, read_measurement(self.config.storage, one.key)) for one in self.wanted)
        return [(one, accuracy) for one, accuracy in found if accuracy is not None]

    @property
    def prototypes(self) -> list[Place]:
        """Folders of the prototypes that its methods route by; none where no method routes."""
        return prototypes_of(self.plan.checked, self.config.inference.prototype_images)

    @property
    def complete(self) -> bool:
        """Whether every session is committed and measured."""
        committed = all(len(one.entries) == len(self.tasks) for one in self.methods.values())
        return committed and len(self.measured) == len(self.wanted)

    def rows(self) -> DataFrame:
        """Returns the measurements, one a row.

        Columns: `method`, `seed`, `session` (0-based), `learned_task`, `task`, `task_position` (0-based), `seen`
        (whether the task is learned by then), `protocol`, `measured_on` (test or validation images), `correct`,
        `images`, `accuracy` (percent), `relative_l2`, `sign_agreement` and `rescaler` (of learned tasks of methods that
        merge), `state`, `expert` (keys), `temperature`, `calibration_before` and `calibration_after` (of learned tasks
        whose own expert was measured), and `relative_l2_error` (standard error of an estimate). Probes come after the
        tasks.
        """
        from pandas import DataFrame

        places = {task.name: place for place, task in enumerate([*self.tasks, *self.plan.probes])}
        columns = (
            *("method", "seed", "session", "learned_task", "task", "task_position", "seen", "protocol"),
            *("measured_on", "correct"),
            *("images", "accuracy", "relative_l2", "sign_agreement", "rescaler", "state", "expert"),
            *("temperature", "calibration_before", "calibration_after", "relative_l2_error"),
        )
        rows = [
            vars(accuracy)
            | {"method": one.method, "seed": self.config.seed, "session": one.entry.position}
            | {"learned_task": one.entry.task, "task": one.task, "task_position": places[one.task]}
            | {"seen": one.seen, "protocol": one.protocol, "accuracy": accuracy.percent}
            | {"measured_on": self.config.measure_on}
            | {"state": one.entry.state, "expert": one.entry.expert}
            for one, accuracy in self.measured
            if one.entry.state != ROOT  # theta0's, of probes
        ]
        return DataFrame(rows, columns=columns)

    def probes(self) -> DataFrame:
        """Returns accuracies on probes in percent: a row a method and committed session, a column a probe.

        The first row is theta0's, of no method and session 0; NaN: not measured yet.
        """
        from pandas import DataFrame

        names = [probe.name for probe in self.plan.probes]
        found: dict[tuple[str, int], dict[str, float]] = {}
        for one, accuracy in self.measured:
            if one.task in names:
                theta0 = one.entry.state == ROOT
                row = ("", 0) if theta0 else (one.method, one.entry.position + 1)
                found.setdefault(row, {})[one.task] = accuracy.percent
        rows = [{"method": method, "session": session} | row for (method, session), row in sorted(found.items())]
        return DataFrame(rows, columns=["method", "session", *names])

    def matrix(self, method: str, protocol: Protocol = "task") -> DataFrame:
        """Returns accuracies in percent: a row a committed session (its task), a column a task; NaN: not measured yet.

        Raises:
            ValueError: the run has no such method, or it is not measured by that protocol.
        """
        one, names = self._of(method), [task.name for task in self.tasks]
        if protocol not in protocols(self.config, one.method):
            raise ValueError(f"{method}: is not measured under the protocol {protocol!r}")
        rows = self.rows()
        rows = rows[(rows["method"] == method) & (rows["protocol"] == protocol)]
        found = rows.pivot(index="learned_task", columns="task", values="accuracy")
        return found.reindex(index=[entry.task for entry in one.entries], columns=names)

    def sessions(self) -> DataFrame:
        """Returns the committed sessions, one a row.

        Columns: `method`, `session` (0-based), `task`, `expert` (key), `state`, `merge_seconds`, `measured` and
        `to_measure` (how many accuracies are there, and are not yet).
        """
        from pandas import DataFrame

        rows = []
        for name, one in self.methods.items():
            for entry in one.entries:
                there = sum((found.method, found.entry) == (name, entry) for found, _ in self.measured)
                wanted = sum((found.method, found.entry) == (name, entry) for found in self.wanted)
                counts = {"measured": there, "to_measure": wanted - there}
                about = {"method": name, "session": entry.position, "task": entry.task, "expert": entry.expert}
                rows.append(about | {"state": entry.state, "merge_seconds": entry.seconds} | counts)
        columns = ("method", "session", "task", "expert", "state", "merge_seconds", "measured", "to_measure")
        return DataFrame(rows, columns=columns)

    def metrics(self) -> DataFrame:
        """Returns Transfer, Average, Last, BWT and forgetting in percent, a row a method and protocol.

        `sessions` says over how many: those that are measured on all tasks, from the first on, and their own tasks.
        """
        from pandas import DataFrame

        names = (*METRICS, *MORE)
        rows = []
        for name, one in self.methods.items():
            for protocol in protocols(self.config, one.method):
                matrix = self.matrix(name, protocol)
                count = int(matrix.notna().all(axis=1).cummin().sum())
                values = continual_metrics(matrix.to_numpy()[:count, :count]) if count else None
                about = {"method": name, "protocol": protocol, "sessions": count}
                rows.append(about | ({key: getattr(values, key) for key in names} if values else {}))
        return DataFrame(rows, columns=["method", "protocol", "sessions", *names])

    def state(self, method: str, session: int = -1) -> ModelState:
        """Loads what a method has after a session: 0-based, -1 is the last that is committed.

        `state.model` is what it keeps, for `condu` a `UnifiedDelta`.

        Raises:
            ValueError: the run has no such method or session.
            ArtifactError: it is damaged.
        """
        one = self._of(method)
        try:
            return one.state(session)
        except IndexError:
            why = f"; {one.why_fewer}" if one.why_fewer else ""
            raise ValueError(
                f"{method}: session {session} (counted from 0) is not committed; there are {len(one.entries)}{why}"
            ) from None

    def expert(self, task: str, method: str | None = None) -> Delta:
        """Loads a task's expert as a weight delta.

        Args:
            task: its name.
            method: whose; None: the first method's that trains experts.

        Raises:
            ValueError: there is no such method, task or expert.
            ArtifactError: it is missing or damaged.
        """
        ones = [self._of(method)] if method else list(self.methods.values())
        for one in ones:
            for expert in one.plan.experts:
                if expert.task == task:
                    return one.load(expert.key)
        raise ValueError(f"{self.config.run_name}: has no expert of a task {task} by {method or 'any method'}")

    def _of(self, method: str) -> StoredMethod:
        if method not in self.methods:
            raise ValueError(f"{self.config.run_name}: has no method {method}; it has {', '.join(self.methods)}")
        return self.methods[method]


def stored_run(checked: Checked) -> StoredRun:
    """Returns the run of a configuration that was checked.

    `training.precision=auto` is what this machine makes of it, unless storage has more of the run in the other one.
    """
    wanted = checked.config.training.precision
    here = resolved_precision(wanted, torch.cuda.is_available())
    either = [here, "bf16", "fp32"] if wanted == "auto" else [here]
    runs = [StoredRun(plan_run(checked, precision)) for precision in either]
    return max(runs, key=lambda run: (len(run.wanted), len(run.measured)))


def prototypes_of(checked: Checked, images: str) -> list[Place]:
    """Returns folders of the prototypes that a run's or a sweep's methods route by; none where no method routes.

    Args:
        checked: its settings, tasks and backbone.
        images: `inference.prototype_images`, which a sweep may have several of.
    """
    if not any(get(name, checked.config).routes for name in checked.config.method):
        return []
    keys = (prototype_key(checked.backbone, task) for task in checked.pictured(images))
    return [prototype_folder(checked.config.storage, key) for key in keys]


def finished_run(checked: Checked) -> StoredRun | None:
    """Returns a run whose every session, expert and measurement is in storage; None when anything is missing.

    What `training.precision=auto` means is known here only of this machine, so a run of a cluster whose GPUs this
    machine has not is not found.
    """
    precision = resolved_precision(checked.config.training.precision, torch.cuda.is_available())
    found = StoredRun(plan_run(checked, precision))
    return found if found.complete and _whole(found) else None


def _whole(found: StoredRun) -> bool:
    """Whether the folders are there that a run's ledgers and plan name: storage may be a copy that was cut short."""
    storage, run = found.config.storage, found.config.run_folder
    wanted: set[Place] = {expert_folder(storage, expert.key) for expert in found.plan.experts}
    for name, one in found.methods.items():
        wanted |= {session_folder(run, name, at.position, at.task, at.state) for at in one.entries}
    return present(wanted) == wanted
