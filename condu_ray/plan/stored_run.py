"""A run as storage has it, finished or not: what was committed and measured, its states and its experts; no Ray.

Nothing here writes, so a run may be at work meanwhile: what it has done so far is found.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch

from condu_ray.benchmark import Task
from condu_ray.config import Experiment
from condu_ray.learn.loop import resolved_precision
from condu_ray.merging.delta import Delta
from condu_ray.methods import ModelState
from condu_ray.metrics import continual_metrics
from condu_ray.plan.measurement import Space, Unit, label_spaces, session_units
from condu_ray.plan.preflight import Checked, make_plans
from condu_ray.plan.stored_method import StoredMethod
from condu_ray.store.measurements import read_measurement

if TYPE_CHECKING:
    from pandas import DataFrame


@dataclass(frozen=True)
class StoredRun:
    """A run in storage; the tables are pandas' and say what is there so far.

    Attributes:
        config: the run's configuration.
        tasks: in the order of learning.
        methods: by name.
        backbone: theta0's fingerprint.
        precision: `fp32` or `bf16`, in which it was trained and measured.
    """

    config: Experiment
    tasks: tuple[Task, ...]
    methods: Mapping[str, StoredMethod]
    backbone: str
    precision: str

    @classmethod
    def of(cls, checked: Checked, precision: str) -> StoredRun:
        """Returns the run of a configuration that was checked, trained in a resolved precision."""
        plans = make_plans(checked, precision)
        methods = {plan.method.name: StoredMethod(checked.config, checked.tasks, plan) for plan in plans}
        return cls(checked.config, checked.tasks, methods, checked.backbone, precision)

    @cached_property
    def units(self) -> list[Unit]:
        """All measurements that the committed sessions want, in their order.

        Raises:
            LedgerError: a ledger is damaged.
        """
        return [
            unit
            for one in self.methods.values()
            for entry in one.entries
            for unit in session_units(self.config, one.plan, entry, self.tasks, self.backbone, self.precision)
        ]

    @cached_property
    def measured(self) -> list[tuple[Unit, dict[str, Any]]]:
        """Those of `units` that are there, each with what was measured.

        Raises:
            ArtifactError: a measurement is damaged.
            LedgerError: a ledger is damaged.
        """
        found = ((unit, read_measurement(self.config.storage, unit.key)) for unit in self.units)
        return [(unit, values) for unit, values in found if values is not None]

    @property
    def complete(self) -> bool:
        """Whether every session is committed and measured."""
        committed = all(len(one.entries) == len(self.tasks) for one in self.methods.values())
        return committed and len(self.measured) == len(self.units)

    def rows(self) -> DataFrame:
        """Returns the measurements, one a row.

        Columns: `method`, `seed`, `session` (0-based), `learned_task`, `task`, `task_position` (0-based), `seen`
        (whether the task is learned by then), `label_space`, `correct`, `images`, `accuracy` (percent), `relative_l2`,
        `sign_agreement` and `rescaler` (of learned tasks of methods that merge), `state`, `expert` (keys).
        """
        from pandas import DataFrame

        places = {task.name: place for place, task in enumerate(self.tasks)}
        columns = (
            *("method", "seed", "session", "learned_task", "task", "task_position", "seen", "label_space", "correct"),
            *("images", "accuracy", "relative_l2", "sign_agreement", "rescaler", "state", "expert"),
        )
        rows = [
            found
            | {"method": unit.method, "seed": self.config.seed, "session": unit.entry.position}
            | {"learned_task": unit.entry.task, "task": unit.task, "task_position": places[unit.task]}
            | {"seen": unit.seen, "label_space": unit.space, "accuracy": 100 * found["correct"] / found["images"]}
            | {"state": unit.entry.state, "expert": unit.entry.expert}
            for unit, found in self.measured
        ]
        return DataFrame(rows, columns=columns)

    def matrix(self, method: str, space: Space = "task") -> DataFrame:
        """Returns accuracies in percent: a row a committed session (its task), a column a task; NaN: not measured yet.

        Raises:
            ValueError: the run has no such method, or it is not measured over that label space.
        """
        one, names = self._of(method), [task.name for task in self.tasks]
        if space not in label_spaces(self.config, one.method):
            raise ValueError(f"{method}: is not measured over the label space {space!r}")
        rows = self.rows()
        rows = rows[(rows["method"] == method) & (rows["label_space"] == space)]
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
                there = sum((unit.method, unit.entry) == (name, entry) for unit, _ in self.measured)
                wanted = sum((unit.method, unit.entry) == (name, entry) for unit in self.units)
                counts = {"measured": there, "to_measure": wanted - there}
                about = {"method": name, "session": entry.position, "task": entry.task, "expert": entry.expert}
                rows.append(about | {"state": entry.state, "merge_seconds": entry.seconds} | counts)
        columns = ("method", "session", "task", "expert", "state", "merge_seconds", "measured", "to_measure")
        return DataFrame(rows, columns=columns)

    def metrics(self) -> DataFrame:
        """Returns Transfer, Average, Last, BWT and forgetting in percent, a row a method and label space.

        `sessions` says over how many: those that are measured on all tasks, from the first on, and their own tasks.
        """
        from pandas import DataFrame

        names = ("transfer", "average", "last", "backward_transfer", "forgetting")
        rows = []
        for name, one in self.methods.items():
            for space in label_spaces(self.config, one.method):
                matrix = self.matrix(name, space)
                count = int(matrix.notna().all(axis=1).cummin().sum())
                values = continual_metrics(matrix.to_numpy()[:count, :count]) if count else None
                about = {"method": name, "label_space": space, "sessions": count}
                rows.append(about | ({key: getattr(values, key) for key in names} if values else {}))
        return DataFrame(rows, columns=["method", "label_space", "sessions", *names])

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
            raise ValueError(f"{method}: session {session} is not committed; there are {len(one.entries)}") from None

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
            for item in one.plan.items:
                if item.task == task:
                    return one.load(item.key)
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
    runs = [
        StoredRun.of(checked, one) for one in dict.fromkeys([here, *(("bf16", "fp32") if wanted == "auto" else ())])
    ]
    return max(runs, key=lambda run: (len(run.units), len(run.measured)))


def finished_run(checked: Checked) -> StoredRun | None:
    """Returns a run whose every session and measurement is in storage; None when anything is missing.

    What `training.precision=auto` means is known here only of this machine, so a run of a cluster whose GPUs this
    machine has not is not found.
    """
    precision = resolved_precision(checked.config.training.precision, torch.cuda.is_available())
    found = StoredRun.of(checked, precision)
    return found if found.complete else None
