"""MLflow's parent run of a sweep: its trials are its children, and it carries the aggregate table and figures."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType, TracebackType
from typing import Any

from condu_ray.config import Experiment
from condu_ray.orchestration.watch.mlflow_address import shown_uri, tracking_uri
from condu_ray.orchestration.watch.mlflow_experiment import (
    IDENTITY,
    create_run,
    ended,
    log_params,
    log_report,
    open_experiment,
)
from condu_ray.orchestration.watch.mlflow_patience import Patience
from condu_ray.plan.sweep_name import ELSEWHERE
from condu_ray.plan.trials import Trial
from condu_ray.settings import content_hash
from condu_ray.store.artifacts import local
from condu_ray.store.location import Place
from condu_ray.store.passwords import without_passwords
from condu_ray.store.provenance import provenance

log = logging.getLogger(__name__)

OPEN_SECONDS, CLOSE_SECONDS, FAIL_SECONDS = 60.0, 60.0, 10.0
"""How long the sweep waits for MLflow: before it begins, at its end, and where it was stopped."""
MLFLOW_COMPLETE = "mlflow_complete"
"""In a trial's record: whether MLflow has heard all of it."""


class Parent:
    """The sweep's run: a block that opens it, or finds the one of an earlier call, and closes it as what came of it.

    Faults of MLflow's server or its store are warned of, and cost the sweep seconds at most.

    Args:
        config: the sweep's base configuration; `run` is its name, by which its run is found again, with what it is.
        params: what the run's page shows.
        trials: its trials.
        read: what they are of, as `Checked.read`: the same trials of other images are another sweep.
    """

    def __init__(
        self,
        config: Experiment,
        params: Mapping[str, str],
        trials: Sequence[Trial],
        read: Mapping[str, Any] = MappingProxyType({}),
    ) -> None:
        self._config, self._params, self._trials, self._read = config, params, trials, dict(read)
        self._patience = Patience(tracking_uri(config) if config.tracking.enabled else "")
        self.run: str | None = None
        """The run's id; None while it is not open, when MLflow is off, and when it cannot be reached."""
        self.complete = True
        """Whether MLflow has heard all that it was told."""

    def __enter__(self) -> Parent:
        if self._config.tracking.enabled:
            self._try(self._open, OPEN_SECONDS, "its trials are sent when they are finished, if it answers then; ")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self._try(lambda: self._fail(ended(error)), FAIL_SECONDS)

    def _open(self) -> None:
        client, experiment = open_experiment(self._config, self._patience)
        self._patience.asks()
        before = f"sweep/{self._config.run_name}"  # all that early releases knew it by
        identity, *earlier = (f"{before}/{content}" for content in self._contents())
        asked = (f"tags.`{IDENTITY}` = '{one}'" for one in (identity, *earlier))
        found: list[Any] = next(
            (ones for one in asked if (ones := client.search_runs([experiment], one, max_results=1))), []
        )
        found = found or [
            one
            for one in client.search_runs([experiment], f"tags.`{IDENTITY}` = '{before}'", max_results=1)
            if one.data.params == self._params
        ]
        self._patience.asks()
        if found:
            run, there = found[0].info.run_id, found[0].data.params
            client.set_tag(run, IDENTITY, identity)
            client.update_run(run, status="RUNNING")
        else:
            tags, there = {IDENTITY: identity, "kind": "sweep", **provenance()}, {}
            run = create_run(client, experiment, self._config.run_name, tags)
        self._patience.asks()
        if lacking := {key: value for key, value in self._params.items() if key not in there}:
            log_params(client, run, lacking)  # of one that is found only where its maker was killed in between
        self.run = run  # not before: trials tell a server nothing that fails at what it is to write

    def _contents(self) -> list[str]:
        """What tells the sweep from another of its name, for a server may have those of many storage folders.

        And what told them apart in earlier releases.
        """
        kept = self._config.identity(exclude={"method": True, "tasks": True, "keep_sessions": True} | ELSEWHERE)
        known = [kept, [trial.record() for trial in self._trials]]
        return [content_hash(one)[:24] for one in ([*known, *([self._read] if self._read else [])], known)]

    def heard(self, records: Iterable[Mapping[str, object]], send: Callable[[], None]) -> None:
        """Sends trials of which MLflow has not heard all, where it answers now, and tells of them where it does not.

        Args:
            records: of the trials.
            send: sends what is missing, from storage; raises TrackingError where it is not taken.
        """
        lacking = sum(not record.get(MLFLOW_COMPLETE, True) for record in records)
        if not lacking or not self._config.tracking.enabled:
            return
        try:
            send()
        except (RuntimeError, ValueError, OSError) as error:
            self.complete = False
            log.warning(
                "MLflow at %s: has not heard all of %d trials, as when it was down; `condu-ray report %s "
                "--sync-mlflow` sends what is missing, and the report is in the sweep's folder all the same (%s)",
                *(shown_uri(self._config), lacking, self._config.run_name, without_passwords(str(error))),
            )
        else:
            self.complete = True

    def finish(self, metrics: Mapping[str, float], report: Place) -> None:
        """Attaches the sweep's report and its aggregate metrics, and closes the run."""
        self._try(lambda: self._finish(metrics, report), CLOSE_SECONDS)

    def _finish(self, metrics: Mapping[str, float], report: Place) -> None:
        if self.run is not None:
            from mlflow.entities import Metric

            client, _ = open_experiment(self._config)
            there, now = client.get_run(self.run).data.metrics, time.time_ns() // 1_000_000
            new = []
            for key, value in metrics.items():
                if there.get(key) != value:  # the latest counts, by a clock that may have been set back
                    points = client.get_metric_history(self.run, key) if key in there else []
                    new.append(Metric(key, value, max([now, *(one.timestamp + 1 for one in points)]), 0))
            for begin in range(0, len(new), 1000):  # MLflow takes no more at once; what is there would be there twice
                client.log_batch(self.run, metrics=new[begin : begin + 1000])
            log_report(client, self.run, local(report), self._patience)
            self._patience.asks()
            self._close("FINISHED")
            self._patience.has_all()

    def _fail(self, status: str) -> None:
        """Closes the run as `ended` says, and so its children whose trials ended with the cluster."""
        if self.run is not None:
            client, experiment = open_experiment(self._config)
            open_children = f"tags.mlflow.parentRunId = '{self.run}' and attributes.status = 'RUNNING'"
            for child in client.search_runs([experiment], open_children):
                client.set_terminated(child.info.run_id, status)
            self._close(status)

    def _close(self, status: str) -> None:
        if self.run is not None:
            open_experiment(self._config)[0].set_terminated(self.run, status)

    def _try(self, job: Callable[[], None], seconds: float, more: str = "") -> None:
        """Does something in a thread, for MLflow's client tries a server that hangs for a quarter of an hour.

        Args:
            job: what.
            seconds: how long that is waited for, at most.
            more: what follows from it where it is not done by then.
        """
        failed: list[Exception] = []

        def work() -> None:
            try:
                job()
            except Exception as error:
                failed.append(error)

        thread = threading.Thread(target=work, name="mlflow", daemon=True)
        self._patience.asks()
        thread.start()
        self._patience.wait(thread, seconds)
        if thread.is_alive():
            self._patience.gives_up()
        if failed or thread.is_alive():
            self.complete = False
            where, why = shown_uri(self._config), without_passwords(str(failed[0])) if failed else "is slow"
            log.warning("MLflow at %s: %s; %sthe report is in the sweep's folder all the same", where, why, more)
