"""Tells MLflow and Prometheus of a run's sessions, and sees that its MLflow runs end as what they are."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from types import TracebackType

from condu_ray.config import Protocol
from condu_ray.orchestration.watch import telemetry
from condu_ray.orchestration.watch.mlflow_experiment import ended
from condu_ray.orchestration.watch.tracking import CLOSE_SECONDS, Tracker
from condu_ray.plan.measurement import Measurement, protocols
from condu_ray.plan.results import Results, SessionResult
from condu_ray.store.location import Place
from condu_ray.store.measurements import Accuracy


class Recorder:
    """A run's record; a block that opens its MLflow runs, and closes as failed or killed what an exception leaves.

    Args:
        results: the run's results, as they fill.
        parent: MLflow run that its own are children of.
        labels: what tells this trial of a sweep from others.
        patience: seconds that its end waits for MLflow, at most.
    """

    def __init__(
        self,
        results: Results,
        parent: str | None = None,
        labels: Mapping[str, str] | None = None,
        patience: float = CLOSE_SECONDS,
    ) -> None:
        self.results, self._patience, plan = results, patience, results.plan
        self.tracker = Tracker(plan.config, [task.name for task in plan.tasks], parent, labels)

    def __enter__(self) -> Recorder:
        for plan in self.results.plan.methods:
            self.tracker.start(plan.method.name, plan.sessions[-1].state, self.results.measured(plan))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.tracker.close(self._patience)
        else:
            self.tracker.fail(ended(error))

    def replay(self, rows: Iterable[tuple[Measurement, Accuracy]]) -> Iterator[SessionResult]:
        """Adds what was measured before to the results, and records and yields each session that it completes."""
        for measurement, accuracy in rows:
            session = self.results.add(measurement, accuracy)
            if session is not None:
                self.session(session)
                yield session

    def session(self, session: SessionResult) -> None:
        """Logs and exports a session; they may be completed out of order, their metrics need all before."""
        self._log(session)
        self._export(session)

    def _log(self, session: SessionResult) -> None:
        position = session.entry.position
        values: dict[str, float | None] = {}
        # Last comes first: MLflow's plots of several runs open with the metric that was logged first.
        metrics = self.results.metrics(session.method, session.protocol, position + 1)
        if metrics is not None:
            values |= {"last": metrics["last"]} | metrics
        values["mean_accuracy"] = sum(session.percent) / len(session.percent)
        values |= {f"task_accuracy/{task}": accuracy.percent for task, accuracy in session.found.items()}
        values |= {f"probe/{probe}": accuracy.percent for probe, accuracy in session.probes.items()}
        values["evaluation_seconds"] = sum(accuracy.seconds for accuracy in session.found.values())
        if session.protocol == "task":
            values |= {f"reconstruction/{task}": accuracy.relative_l2 for task, accuracy in session.found.items()}
            values["merge_seconds"] = session.entry.seconds
        self.tracker.metrics(session.method, position + 1, _named(session.protocol, values))

    def _export(self, session: SessionResult) -> None:
        """Exports a session's accuracies; the latest session is shown."""
        method, protocol, position = session.method, session.protocol, session.entry.position
        tags = {"run": self.results.plan.config.run_name, "method": method}
        telemetry.inc("condu_sessions_measured_total", space=protocol, **tags)
        later = range(position + 1, len(session.found))
        if any(self.results.session(method, protocol, one) is not None for one in later):
            return
        for task, accuracy in session.found.items():
            telemetry.gauge("condu_accuracy_ratio", accuracy.percent / 100, task=task, space=protocol, **tags)
            if accuracy.relative_l2 is not None:
                telemetry.gauge("condu_reconstruction_error_ratio", accuracy.relative_l2, task=task, **tags)

    def finish(self, report: Place) -> None:
        """Logs the metrics of the whole run, attaches its report, and closes its MLflow runs.

        Args:
            report: folder of the report.
        """
        for plan in self.results.plan.methods:
            size = len(plan.sessions)
            for protocol in protocols(self.results.plan.config, plan.method):
                found = self.results.metrics(plan.method.name, protocol, size) or {}
                self.tracker.metrics(plan.method.name, size, _named(protocol, found))
            self.tracker.metrics(plan.method.name, size, self.results.kept(plan))
            self.tracker.finish(plan.method.name, report)


def _named(protocol: Protocol, values: Mapping[str, float | None]) -> dict[str, float | None]:
    """Metrics under their names in MLflow: those of `task` are plain, others begin with their protocol."""
    return {key if protocol == "task" else f"{protocol}/{key}": value for key, value in values.items()}
