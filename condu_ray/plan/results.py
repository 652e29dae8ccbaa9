"""The matrix of a run as it fills: which measurements a session needs, its rows on disk, and the report."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from condu_ray.benchmark import Task
from condu_ray.config import Experiment
from condu_ray.metrics import continual_metrics
from condu_ray.orchestration.watch import telemetry
from condu_ray.orchestration.watch.tracking import Tracker
from condu_ray.plan.measurement import Space, Unit, label_spaces, session_units
from condu_ray.plan.sessions import MethodPlan
from condu_ray.report.run_report import write_report
from condu_ray.store import artifacts
from condu_ray.store.experts import expert_folder
from condu_ray.store.ledger import Entry
from condu_ray.store.results import write_rows


def _plain(value: float) -> float | None:
    return None if value is None or math.isnan(value) else float(value)


class Results:
    """Collects measurements into one T x T matrix a method and label space.

    Args:
        config: the run's configuration.
        tasks: tasks in order.
        plans: the methods' plans.
        tracker: MLflow.
    """

    def __init__(
        self, config: Experiment, tasks: Sequence[Task], plans: Sequence[MethodPlan], tracker: Tracker
    ) -> None:
        self._config, self._tasks, self._plans, self._tracker = config, list(tasks), list(plans), tracker
        self._found: dict[tuple[str, Space, int], dict[str, dict[str, Any]]] = {}
        self._entries: dict[tuple[str, int], Entry] = {}
        self._measured: dict[str, dict[str, float]] = {}

    @property
    def complete(self) -> bool:
        """Whether every session of every method is measured on every task, over all its label spaces."""
        size = len(self._tasks)
        return all(
            len(self._found.get((plan.method.name, space, position), {})) == size
            for plan in self._plans
            for space in label_spaces(self._config, plan.method)
            for position in range(size)
        )

    def units(self, plan: MethodPlan, entry: Entry, backbone: str, precision: str) -> list[Unit]:
        """Returns the measurements of a committed session: one a task."""
        return session_units(self._config, plan, entry, self._tasks, backbone, precision)

    def add(self, unit: Unit, found: dict[str, Any]) -> tuple[str, int, list[float]] | None:
        """Takes a measurement; when it completes a session, writes its rows and returns (title, position, row)."""
        method, space, position = unit.method, unit.space, unit.entry.position
        row = self._found.setdefault((method, space, position), {})
        row[unit.task] = found
        self._entries[method, position] = unit.entry
        self._measured.setdefault(method, {})[unit.key] = found["seconds"]
        if len(row) < len(self._tasks):
            return None
        name = f"{method}-{position + 1:02d}{'' if space == 'task' else '-union'}.parquet"
        write_rows(self._config.run_folder / "results" / name, self._rows(unit))
        self._log(method, space, position)
        self._export(method, space, position)
        return method if space == "task" else f"{method} ∪", position, self._accuracy(method, space, position)

    def _accuracy(self, method: str, space: Space, position: int) -> list[float]:
        row = self._found[method, space, position]
        return [100 * row[task.name]["correct"] / row[task.name]["images"] for task in self._tasks]

    def _rows(self, unit: Unit) -> list[dict[str, Any]]:
        entry, found = unit.entry, self._found[unit.method, unit.space, unit.entry.position]
        accuracy = self._accuracy(unit.method, unit.space, entry.position)
        return [
            {
                "method": unit.method,
                "seed": self._config.seed,
                "session": entry.position,
                "learned_task": entry.task,
                "task": task.name,
                "task_position": index,
                "seen": index <= entry.position,
                "label_space": unit.space,
                "accuracy": accuracy[index],
                "state": entry.state,
                "expert": entry.expert,
            }
            | {key: value for key, value in found[task.name].items() if key != "seconds"}
            for index, task in enumerate(self._tasks)
        ]

    def _metrics(self, method: str, space: Space, sessions: int) -> dict[str, float | None]:
        """The metrics of the first `sessions` sessions on their own tasks."""
        matrix = [self._accuracy(method, space, position)[:sessions] for position in range(sessions)]
        found = continual_metrics(matrix)
        names = ("transfer", "average", "last", "backward_transfer", "forgetting")
        return {name: _plain(getattr(found, name)) for name in names}

    def _log(self, method: str, space: Space, position: int) -> None:
        """Logs a session to MLflow; sessions may be completed out of order, their metrics need all before."""
        accuracy = self._accuracy(method, space, position)
        values: dict[str, float | None] = {}
        # Last comes first: MLflow's plots of several runs open with the metric that was logged first.
        if all(len(self._found.get((method, space, before), {})) == len(self._tasks) for before in range(position)):
            metrics = self._metrics(method, space, position + 1)
            values |= {"last": metrics["last"]} | metrics
        values["mean_accuracy"] = sum(accuracy) / len(accuracy)
        values |= {f"task_accuracy/{task.name}": value for task, value in zip(self._tasks, accuracy, strict=True)}
        row = self._found[method, space, position]
        values["evaluation_seconds"] = sum(found["seconds"] for found in row.values())
        if space == "union":
            values = {f"union/{key}": value for key, value in values.items()}
        else:
            values |= {f"reconstruction/{name}": found.get("relative_l2") for name, found in row.items()}
            values["merge_seconds"] = self._entries[method, position].seconds
        self._tracker.metrics(method, position + 1, {k: v for k, v in values.items() if v is not None})

    def _export(self, method: str, space: Space, position: int) -> None:
        """Exports a session's accuracies; sessions may be completed out of order, the latest is shown."""
        tags = {"run": self._config.run_name, "method": method}
        telemetry.inc("condu_sessions_measured_total", space=space, **tags)
        complete = [
            p for (m, s, p), row in self._found.items() if (m, s, len(row)) == (method, space, len(self._tasks))
        ]
        if position < max(complete):
            return
        for task, value in zip(self._tasks, self._accuracy(method, space, position), strict=True):
            telemetry.gauge("condu_accuracy_ratio", value / 100, task=task.name, space=space, **tags)
            error = self._found[method, space, position][task.name].get("relative_l2")
            if error is not None:
                telemetry.gauge("condu_reconstruction_error_ratio", error, task=task.name, **tags)

    def _seconds(self, plan: MethodPlan) -> float:
        """What the method costs on its own: its experts, merges and distinct measurements, whoever paid for them."""
        total = sum(self._measured[plan.method.name].values())
        for step in plan.steps:
            if step.item is not None:
                meta = artifacts.read_meta(expert_folder(self._config.storage, step.item.key))
                total += meta["seconds"]
            total += self._entries[plan.method.name, step.position].seconds
        return total

    def _matrix(self, method: str, space: Space) -> dict[str, Any]:
        size = len(self._tasks)
        accuracy = [self._accuracy(method, space, position) for position in range(size)]
        return {"accuracy": accuracy, **self._metrics(method, space, size)}

    def report(self, seconds: float, *, reused: int, trained: int, pictures: bool = True) -> dict[str, Any]:
        """Writes `<run>/report` and closes the MLflow runs.

        Args:
            seconds: wall time of the run.
            reused: measurements taken from storage.
            trained: experts fine-tuned now.
            pictures: whether to draw them; a trial of a sweep has its sweep's.

        Returns:
            The results as in `results.json`.
        """
        size = len(self._tasks)
        methods: dict[str, Any] = {}
        for plan in self._plans:
            name = plan.method.name
            methods[name] = self._matrix(name, "task") | {"seconds": self._seconds(plan)}
            if "union" in label_spaces(self._config, plan.method):
                methods[name]["union"] = self._matrix(name, "union")
            if plan.method.keeps_model:
                methods[name]["reconstruction"] = [
                    [
                        {
                            "task": task.name,
                            "relative_l2": found["relative_l2"],
                            "sign_agreement": found["sign_agreement"],
                        }
                        for task in self._tasks[: position + 1]
                        if (found := self._found[name, "task", position][task.name])
                    ]
                    for position in range(size)
                ]
        results = {
            "tasks": [task.name for task in self._tasks],
            "methods": methods,
            "run": self._config.run_name,
            "recipe": self._config.recipe,
            "seed": self._config.seed,
            "config": self._config.model_dump(mode="json", exclude={"tracking": {"uri"}}),  # it may hold a password
            "versions": artifacts.provenance(),
            "command": artifacts.command(),
            "wall_seconds": seconds,
            "experts_trained": trained,
            "measurements_reused": reused,
        }
        folder = self._config.run_folder / "report"
        write_report(results, folder, pictures=pictures)
        for plan in self._plans:
            last = self._metrics(plan.method.name, "task", size)
            self._tracker.metrics(plan.method.name, size, {k: v for k, v in last.items() if v is not None})
            self._tracker.finish(plan.method.name, folder)
        return results
