"""MLflow: one run a (method, order, seed), written by a thread so that no tracking server ever delays a run."""

from __future__ import annotations

import logging
import math
import queue
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from condu_ray.config import Experiment
from condu_ray.orchestration.watch.mlflow_address import shown_uri, tracking_uri, unreachable
from condu_ray.orchestration.watch.mlflow_experiment import (
    IDENTITY,
    STORAGE,
    create_run,
    log_params,
    log_report,
    open_experiment,
)
from condu_ray.orchestration.watch.mlflow_patience import Patience
from condu_ray.plan.sweep_name import ELSEWHERE, as_begun
from condu_ray.settings import content_hash, flatten
from condu_ray.store import artifacts
from condu_ray.store.location import Place
from condu_ray.store.passwords import without_passwords
from condu_ray.store.provenance import provenance

log = logging.getLogger(__name__)

WIDTH = ("workers", "threads")
"""Settings of `training` by which the same expert has other bits, and that its key does not know."""
LOOK_SECONDS, AGAIN_SECONDS = 5.0, 5.0
"""When who waits for the last entries looks whether the server answers, and how often one is tried that does not."""
CLOSE_SECONDS = 60.0
"""How long a run's end waits for a server that answers, at most."""
SENT_BY = "by `condu-ray report NAME --sync-mlflow`"
"""How what a server missed reaches it."""


class Tracker:
    """Queues what shall be logged; a thread sends it. Failures are warned of once and cost nothing but the log.

    A server that goes away is waited for, while the run goes on: what it missed is sent when it answers again.

    Args:
        config: the run's configuration.
        tasks: task names in order.
        parent: MLflow run that the runs are children of.
        labels: what tells this trial of a sweep from others; they become the run's name and parameters.
    """

    def __init__(
        self,
        config: Experiment,
        tasks: list[str],
        parent: str | None = None,
        labels: Mapping[str, str] | None = None,
    ) -> None:
        self._config, self._tasks, self._parent, self._labels = config, tasks, parent, dict(labels or {})
        self._queue: queue.Queue[Callable[[], None] | None] = queue.Queue()
        self._runs: dict[str, str] = {}
        self._finished: set[str] = set()
        self._client: Any = None
        self._broken = self._closed = self._down = False
        self._given_up, self._saying = threading.Event(), threading.Lock()
        self._patience = Patience(tracking_uri(config) if config.tracking.enabled else "")
        self._thread = threading.Thread(target=self._work, name="mlflow", daemon=True)
        if config.tracking.enabled:
            self._thread.start()

    def _work(self) -> None:
        while (job := self._queue.get()) is not None:
            self._patience.asks()
            while not self._broken and self._reached():
                self._patience.asks()
                try:
                    job()
                    break
                except Exception as error:  # any fault of the server or its store; training must not feel it
                    if unreachable(tracking_uri(self._config)):
                        continue  # jobs can be done twice: the server may have gone in the midst of one
                    self._broken = True
                    self._warn(f"{without_passwords(str(error))}; what is missing is sent {SENT_BY}")
                    with suppress(Exception):  # or its runs would seem to be at work for ever
                        self._fail("FAILED")
            self._patience.rests()

    def _reached(self) -> bool:
        """Waits until a server answers that does not; returns whether one does before nobody waits for it any more."""
        while not self._given_up.is_set() and (why := unreachable(tracking_uri(self._config))):
            self._patience.rests()  # who waits sees whether it is there again, and how long it takes from then on
            with self._saying:  # either this or `close` says it: not both, nor each that the other does
                if not self._down and not self._given_up.is_set():
                    self._down = True
                    self._warn(f"{why}. What is to be logged is sent when it answers again, or later {SENT_BY}")
            self._given_up.wait(AGAIN_SECONDS)
        self._down = self._given_up.is_set()
        return not self._given_up.is_set()

    def _warn(self, why: str) -> None:
        log.warning("MLflow at %s: %s; results are in the run's folder all the same", shown_uri(self._config), why)

    def _put(self, job: Callable[[], None]) -> None:
        if self._config.tracking.enabled:
            self._queue.put(job)

    def start(self, method: str, final_state: str, measured: str = "") -> None:
        """Opens a method's run, or finds the one that an earlier call of the same command made.

        Args:
            method: the method's name.
            final_state: of its last session.
            measured: of what its numbers are: the same weights on other test images are another run.
        """
        self._put(lambda: self._start(method, final_state, measured))

    def _start(self, method: str, final_state: str, measured: str) -> None:
        self._client, identity = open_experiment(self._config, self._patience)
        self._patience.asks()
        settings = self._config.identity(exclude={"method", "tracking", "cluster", "storage"})
        tag, *others = self._tags(method, final_state, measured, settings)
        asked = [f"tags.`{IDENTITY}` = '{one}'" for one in (tag, *others)]
        found = [run for one in asked for run in self._client.search_runs([identity], one) if self._is_own(run)]
        self._patience.asks()
        if finished := [run for run in found if run.info.status == "FINISHED"]:
            self._finished.add(method)
            self._runs[method] = finished[0].info.run_id
            return
        here = self._here
        for run in found:
            # It was interrupted: its points would be logged a second time. One that runs in another storage folder is
            # somebody else's, of the same settings, who shares the server.
            if run.info.status != "RUNNING" or run.data.tags.get(STORAGE, here) == here:
                self._client.delete_run(run.info.run_id)
        tags = {IDENTITY: tag, "method": method, "seed": str(self._config.seed), **provenance()}
        tags |= {"order": ",".join(self._tasks), "run": self._config.run_name}
        tags[STORAGE] = here
        tags["measured_on"] = self._config.measure_on
        if self._parent:
            tags["mlflow.parentRunId"] = self._parent
        alike = ("method", "run", STORAGE, "mlflow.parentRunId")
        runs = self._client.search_runs([identity], f"tags.run = '{self._config.run_name}'")
        earlier = [one for one in runs if all(one.data.tags.get(key) == tags.get(key) for key in alike)]
        self._patience.asks()
        name = self._name(method) + (f" ({len(earlier) + 1})" if earlier else "")  # of other numbers, or settings
        self._runs[method] = run = create_run(self._client, identity, name, tags)
        if self._given_up.is_set():  # nobody waits any more: who sends it later makes another, and this one never ends
            self._client.delete_run(run)
            return
        # MLflow's plots of several runs open with the first parameters that differ: in a sweep, what it varies.
        own = self._labels or {"order": tags["order"], "run": self._config.run_name}
        self._patience.asks()
        params = {key: value for key, value in flatten(settings).items() if key not in ("run", "tasks")}
        log_params(self._client, run, params | {"method": method} | own)

    def _tags(self, method: str, final_state: str, measured: str, settings: dict[str, Any]) -> list[str]:
        """A run's `IDENTITY`, by what its results depend on, and those that earlier releases made, of less or of more.

        Args:
            method: the method's name.
            final_state: of its last session.
            measured: as of `start`.
            settings: as they are given; tasks may be named or not: storage names them, its command may not.
        """
        parent = [self._parent] if self._parent else []
        free = ELSEWHERE | {"method": True, "tasks": True, "training": dict.fromkeys(WIDTH, True)}
        kept = as_begun(self._config, {}).identity(exclude=free)
        spelt = [kept, settings, settings | {"tasks": None}, settings | {"tasks": self._tasks}]
        before = [content_hash([method, final_state, self._tasks, one, *parent])[:24] for one in spelt]
        own = content_hash([method, final_state, self._tasks, kept, *parent, {"measured": measured}])[:24]
        return list(dict.fromkeys([own, *before]))

    def _is_own(self, run: Any) -> bool:
        """Whether a run of this `IDENTITY` is this one: one of another storage folder may have been trained otherwise.

        Experts are in a storage folder once, by whatever `WIDTH`, of which other bits come where they are trained anew.
        """
        training, here = self._config.training, self._here
        width = {f"training.{name}": str(getattr(training, name)) for name in WIDTH}
        return run.data.tags.get(STORAGE, here) == here or width.items() <= run.data.params.items()

    @property
    def _here(self) -> str:
        return without_passwords(str(self._config.storage.absolute()))

    def _name(self, method: str) -> str:
        """A run's name in MLflow's lists: run and method, or what tells a trial of a sweep from others."""
        if not self._labels:
            return f"{self._config.run_name}/{method}"
        spelt = {"method": "", "order_name": "", "seed": "seed "}
        return ", ".join(spelt.get(key, f"{key}=") + value for key, value in self._labels.items())

    def metrics(self, method: str, session: int, values: Mapping[str, float | None]) -> None:
        """Logs numbers of a session (1-based step); NaN and None are left out."""
        kept = {key: float(value) for key, value in values.items() if value is not None and math.isfinite(value)}
        self._put(lambda: self._metrics(method, session, kept))

    def _metrics(self, method: str, session: int, values: Mapping[str, float]) -> None:
        from mlflow.entities import Metric

        if method not in self._finished:
            points = [Metric(key, value, 0, session) for key, value in values.items()]
            self._client.log_batch(self._runs[method], metrics=points)

    def finish(self, method: str, report: Place) -> None:
        """Attaches the report and closes a method's run."""
        self._put(lambda: self._finish(method, report))

    def _finish(self, method: str, report: Place) -> None:
        if method not in self._finished:
            log_report(self._client, self._runs[method], artifacts.local(report), self._patience)
            self._patience.asks()
            self._client.set_terminated(self._runs[method])
            self._finished.add(method)

    def fail(self, status: str) -> None:
        """Closes the runs that are open as `ended` says, and waits for it but briefly: the user waits for the end."""
        self._put(lambda: self._fail(status))
        self.close(timeout=10.0)

    def _fail(self, status: str) -> None:
        for method, run in self._runs.items():
            # A sweep that was stopped has said of its trials how they end, before they hear of it.
            if method not in self._finished and self._client.get_run(run).info.status == "RUNNING":
                self._client.set_terminated(run, status)

    def run_id(self, method: str) -> str | None:
        """Returns a method's MLflow run, known when `close` has returned; None when MLflow could not be reached."""
        return self._runs.get(method)

    @property
    def complete(self) -> bool:
        """Whether all was sent that was to be sent, and it was closed."""
        return not self._config.tracking.enabled or (
            self._closed
            and not self._broken
            and not self._given_up.is_set()
            and not self._thread.is_alive()
            and self._finished >= set(self._runs)
        )

    def close(self, timeout: float = CLOSE_SECONDS) -> None:
        """Waits until all is sent, but no longer than `timeout` seconds, and not for a server that does not answer."""
        self._closed = True
        if not self._config.tracking.enabled:
            return
        self._queue.put(None)
        begin, where = time.monotonic(), shown_uri(self._config)
        why: str | None = None
        own = where.startswith("sqlite")  # a file that is on this machine is only slow
        before = self._patience.short  # and nobody asks again whether it is there, which may take its time, too
        self._patience.wait(self._thread, 0.0 if self._down else timeout if before else min(timeout, LOOK_SECONDS))
        if self._thread.is_alive() and not before and (why := unreachable(tracking_uri(self._config))) is None:
            if (left := max(0.0, timeout - (time.monotonic() - begin))) > LOOK_SECONDS and not own:
                log.warning("MLflow at %s: is slow, and is waited for, up to %.0f s", where, left)
            self._patience.wait(self._thread, left)
        if self._thread.is_alive():
            self._patience.gives_up()
            why = why or "is slow, or fails at what it is to write, as its own log says"
            with self._saying:
                self._given_up.set()
                if not self._down and not self._broken:  # else it was said
                    log.warning(
                        "MLflow at %s: %s; the last entries may be missing: they are sent %s", where, why, SENT_BY
                    )
        elif self.complete:
            self._patience.has_all()
