"""MLflow's parent run of a sweep: its trials are its children, and it carries the aggregate table and figures."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from condu_ray.config import Experiment
from condu_ray.orchestration.watch.tracking import IDENTITY, open_experiment, shown_uri
from condu_ray.store.artifacts import local, provenance
from condu_ray.store.location import Place
from condu_ray.store.passwords import without_passwords

log = logging.getLogger(__name__)


def open_parent(config: Experiment, sweep: str, params: Mapping[str, str]) -> str | None:
    """Opens the sweep's run, or finds the one that an earlier call of the same command made.

    Args:
        config: the sweep's base configuration.
        sweep: its name, by which its run is found again.
        params: what the run's page shows.

    Returns:
        The run's id; None when MLflow is off or cannot be reached, which is warned of.
    """
    if not config.tracking.enabled:
        return None
    try:
        client, experiment = open_experiment(config)
        found = client.search_runs([experiment], f"tags.`{IDENTITY}` = 'sweep/{sweep}'", max_results=1)
        if found:
            identity: str = found[0].info.run_id
            client.update_run(identity, status="RUNNING")
            return identity
        tags = {IDENTITY: f"sweep/{sweep}", "kind": "sweep", **provenance()}
        identity = client.create_run(experiment, run_name=sweep, tags=tags).info.run_id
        for key, value in params.items():
            client.log_param(identity, key, value[:6000])
        return identity
    except Exception as error:  # any fault of the server or its store; the sweep must not feel it
        _warn(config, error)
        return None


def finish_parent(config: Experiment, parent: str | None, metrics: Mapping[str, float], report: Place) -> None:
    """Attaches the sweep's report and its aggregate metrics, and closes the run."""
    if parent is None:
        return
    try:
        client, _ = open_experiment(config)
        for key, value in metrics.items():
            client.log_metric(parent, key, value)
        client.log_artifacts(parent, str(local(report)), "report")
        client.set_terminated(parent)
    except Exception as error:
        _warn(config, error)


def _warn(config: Experiment, error: Exception) -> None:
    where, why = shown_uri(config), without_passwords(str(error))
    log.warning("MLflow at %s: %s; the report is in the sweep's folder all the same", where, why)
