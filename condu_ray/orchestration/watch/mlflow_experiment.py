"""MLflow's experiment and what is in it: opened at its address, runs made there once, their parameters logged."""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Mapping
from contextlib import closing
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
from condu_ray.orchestration.watch.mlflow_patience import Patience
from condu_ray.orchestration.watch.mlflow_tables import make_tables
from condu_ray.store.layout import mlflow_artifacts_folder, mlflow_database

if TYPE_CHECKING:
    from mlflow import MlflowClient

IDENTITY = "condu_ray.identity"
"""Tag by which a run is found again, so that a repeated command makes no second one."""
STORAGE = "storage"
"""Tag of the storage folder that a run is in."""


def open_experiment(config: Experiment, patience: Patience | None = None) -> tuple[Any, str]:
    """Returns an MlflowClient and the id of the configuration's experiment, which is made where there is none.

    Args:
        config: says where, and the experiment's name.
        patience: of who waits for this; None: nobody does.

    Raises:
        TrackingError: nobody answers at the address, or the experiment was deleted.
    """
    uri = tracking_uri(config)
    if why := unreachable(uri):
        raise TrackingError(why)
    if patience is not None:
        patience.rests()  # the import takes its time on a busy machine, which is no fault of the server's
    from mlflow import MlflowClient

    if patience is not None:
        patience.asks()
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


def log_report(client: MlflowClient, run: str, folder: Path, patience: Patience) -> None:
    """Attaches a report's files one by one: a server that takes each slowly is not one that takes nothing.

    Args:
        client: of the server or database.
        run: the run's identifier.
        folder: of the report.
        patience: of who waits for this.
    """
    for path in sorted(one for one in folder.rglob("*") if one.is_file()):
        patience.asks()
        client.log_artifact(run, str(path), (Path("report") / path.relative_to(folder).parent).as_posix())


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
