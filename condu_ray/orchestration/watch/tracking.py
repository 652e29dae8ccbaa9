"""MLflow: one run a (method, order, seed), written by a thread so that no tracking server ever delays a run."""

from __future__ import annotations

import logging
import math
import queue
import sqlite3
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from condu_ray.config import Experiment
from condu_ray.orchestration.watch.mlflow_address import (
    TrackingError,
    own_folder,
    own_uri,
    shown_uri,
    tracking_uri,
    unreachable,
)
from condu_ray.orchestration.watch.mlflow_tables import make_tables
from condu_ray.settings import content_hash, flatten
from condu_ray.store import artifacts
from condu_ray.store.layout import mlflow_artifacts_folder, mlflow_database
from condu_ray.store.location import Place
from condu_ray.store.passwords import without_passwords
from condu_ray.store.provenance import provenance

if TYPE_CHECKING:
    from mlflow import MlflowClient

log = logging.getLogger(__name__)

IDENTITY = "condu_ray.identity"
"""Tag by which a run is found again, so that a repeated command makes no second one."""
STORAGE = "storage"
"""Tag of the storage folder that a run is in."""
LOOK_SECONDS, AGAIN_SECONDS = 5.0, 5.0
"""When who waits for the last entries looks whether the server answers, and how often one is tried that does not."""
CLOSE_SECONDS = 60.0
"""How long a run's end waits for a server that answers, at most."""
SENT_BY = "by `condu-ray report NAME --sync-mlflow`"
"""How what a server missed reaches it."""


def open_experiment(config: Experiment) -> tuple[Any, str]:
    """Returns an MlflowClient and the id of the configuration's experiment, which is made where there is none.

    Raises:
        TrackingError: nobody answers at the address, or the experiment was deleted.
    """
    uri = tracking_uri(config)
    if why := unreachable(uri):
        raise TrackingError(why)
    from mlflow import MlflowClient

    for noisy in ("alembic", "mlflow"):  # each prints how it sets up a new SQLite file
        logging.getLogger(noisy).setLevel(logging.WARNING)
    # It warns of each retry; what came of them is told of once.
    logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)
    name = config.tracking.experiment
    make_tables(uri)
    client = MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name(name)
    local = uri.startswith("sqlite")
    place = mlflow_artifacts_folder(own_folder(config)).absolute().as_uri() if local else None
    if experiment is not None:
        if experiment.lifecycle_stage != "active":
            raise TrackingError(
                f"experiment {name!r} was deleted there; restore it (MLFLOW_TRACKING_URI='{shown_uri(config)}' mlflow "
                f"experiments restore --experiment-id {experiment.experiment_id}), or name another by "
                "--tracking.experiment"
            )
        if uri == own_uri(config) and place is not None and experiment.artifact_location != place:
            _move(mlflow_database(own_folder(config)), experiment.experiment_id, experiment.artifact_location, place)
        return client, experiment.experiment_id
    try:
        tags = {"mlflow.experimentKind": "custom_model_development"}  # or the pages open as those of a chat model
        return client, client.create_experiment(name, artifact_location=place, tags=tags)
    except Exception:  # another trial made it at the same time
        experiment = client.get_experiment_by_name(name)
        if experiment is None:
            raise
        return client, experiment.experiment_id


def _move(database: Path, experiment: str, before: str, now: str) -> None:
    """Tells a store that its artifacts have moved with it: it holds the place as it was, and MLflow cannot change it.

    Args:
        database: the storage folder's own SQLite file.
        experiment: its id.
        before: where the store has them; another kind of place than a folder stays.
        now: where they are.
    """
    if not before.startswith("file:"):
        return
    with closing(sqlite3.connect(database, timeout=30.0)) as store, store:
        store.execute(
            "UPDATE runs SET artifact_uri = ? || substr(artifact_uri, ?) "
            "WHERE experiment_id = ? AND substr(artifact_uri, 1, ?) = ?",
            (now, len(before) + 1, int(experiment), len(before) + 1, f"{before}/"),
        )
        store.execute("UPDATE experiments SET artifact_location = ? WHERE experiment_id = ?", (now, int(experiment)))


def ended(error: BaseException) -> str:
    """Returns as what an MLflow run ends that is left by an exception: KILLED by a signal, else FAILED."""
    return "KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED"


def log_params(client: MlflowClient, run: str, params: Mapping[str, object]) -> None:
    """Logs parameters in their order, a hundred at a time: each alone is a commit of the database, 5 ms in SQLite.

    Args:
        client: of the server or database.
        run: the run's identifier.
        params: values by name; cut where MLflow would refuse them.
    """
    from mlflow.entities import Param

    listed = [Param(key, str(value)[:6000]) for key, value in params.items()]
    for begin in range(0, len(listed), 100):  # MLflow takes no more at once
        client.log_batch(run, params=listed[begin : begin + 100])


def create_run(client: MlflowClient, experiment: str, name: str, tags: Mapping[str, str]) -> str:
    """Makes a run and returns its id; where the answer is lost, MLflow's client asks again, and there are two.

    Args:
        client: of the server or database.
        experiment: its id.
        name: the run's, for people.
        tags: `IDENTITY` among them, which no other run that is at work in the same storage has.
    """
    run = client.create_run(experiment, run_name=name, tags=dict(tags)).info.run_id
    same = f"tags.`{IDENTITY}` = '{tags[IDENTITY]}' and attributes.status = 'RUNNING'"
    for other in client.search_runs([experiment], same):
        if other.info.run_id != run and other.data.tags.get(STORAGE) == tags.get(STORAGE):
            client.delete_run(other.info.run_id)
    return str(run)


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
        self._thread = threading.Thread(target=self._work, name="mlflow", daemon=True)
        if config.tracking.enabled:
            self._thread.start()

    def _work(self) -> None:
        while (job := self._queue.get()) is not None:
            while not self._broken and self._reached():
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

    def _reached(self) -> bool:
        """Waits until a server answers that does not; returns whether one does before nobody waits for it any more."""
        while not self._given_up.is_set() and (why := unreachable(tracking_uri(self._config))):
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

    def start(self, method: str, final_state: str) -> None:
        """Opens a method's run, or finds the one that an earlier call of the same command made."""
        self._put(lambda: self._start(method, final_state))

    def _start(self, method: str, final_state: str) -> None:
        self._client, identity = open_experiment(self._config)
        relevant = self._config.identity(exclude={"method", "tracking", "cluster", "storage"})
        tag, *others = self._tags(method, final_state, relevant)
        asked = [f"tags.`{IDENTITY}` = '{one}'" for one in (tag, *others)]
        found = [run for one in asked for run in self._client.search_runs([identity], one)]
        if finished := [run for run in found if run.info.status == "FINISHED"]:
            self._finished.add(method)
            self._runs[method] = finished[0].info.run_id
            return
        here = without_passwords(str(self._config.storage.absolute()))
        for run in found:
            # It was interrupted: its points would be logged a second time. One that runs in another storage folder is
            # somebody else's, of the same settings, who shares the server.
            if run.info.status != "RUNNING" or run.data.tags.get(STORAGE, here) == here:
                self._client.delete_run(run.info.run_id)
        name = self._name(method)
        tags = {IDENTITY: tag, "method": method, "seed": str(self._config.seed), **provenance()}
        tags |= {"order": ",".join(self._tasks), "run": self._config.run_name}
        tags[STORAGE] = here
        tags["measured_on"] = self._config.measure_on
        if self._parent:
            tags["mlflow.parentRunId"] = self._parent
        self._runs[method] = run = create_run(self._client, identity, name, tags)
        if self._given_up.is_set():  # nobody waits any more: who sends it later makes another, and this one never ends
            self._client.delete_run(run)
            return
        # MLflow's plots of several runs open with the first parameters that differ: in a sweep, what it varies.
        own = self._labels or {"order": tags["order"], "run": self._config.run_name}
        settings = {key: value for key, value in flatten(relevant).items() if key not in ("run", "tasks")}
        settings |= {"method": method} | own
        log_params(self._client, run, settings)

    def _tags(self, method: str, final_state: str, relevant: dict[str, Any]) -> list[str]:
        """A run's `IDENTITY`, and what it is where its tasks are named or not: storage names them, its command may not.

        Args:
            method: the method's name.
            final_state: of its last session.
            relevant: the settings, as they are given.
        """
        parent = [self._parent] if self._parent else []
        spelt = [relevant, relevant | {"tasks": None}, relevant | {"tasks": self._tasks}]
        return list(dict.fromkeys(content_hash([method, final_state, self._tasks, one, *parent])[:24] for one in spelt))

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
            self._client.log_artifacts(self._runs[method], str(artifacts.local(report)), "report")
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
        own = where.startswith("sqlite")  # a file that is on this machine is only slow
        self._thread.join(0.0 if self._down else min(timeout, LOOK_SECONDS))
        if self._thread.is_alive() and (why := unreachable(tracking_uri(self._config))) is None:
            if (left := max(0.0, timeout - (time.monotonic() - begin))) > LOOK_SECONDS and not own:
                log.warning("MLflow at %s: is slow, and is waited for, up to %.0f s", where, left)
            self._thread.join(left)
            why = "is slow, or fails at what it is to write, as its own log says"
        if self._thread.is_alive():
            with self._saying:
                self._given_up.set()
                if not self._down:  # else it was said
                    log.warning(
                        "MLflow at %s: %s; the last entries may be missing: they are sent %s", where, why, SENT_BY
                    )
