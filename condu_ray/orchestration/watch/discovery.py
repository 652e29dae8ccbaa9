"""Where Prometheus finds a local cluster: a file for its service discovery, there for as long as the run is.

Ray's dashboard writes such a file, but a local run starts without the dashboard: its process costs seconds and memory,
and has nothing to show that the run does not print. The metrics agents, one a node, are there all the same.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from condu_ray.store.artifacts import write_text

log = logging.getLogger(__name__)

PATTERN = "condu_ray_*.json"
"""Name of the file in Ray's temporary folder; the star is the driver's process. See dashboards/prometheus."""


def targets(nodes: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Returns what Prometheus' `file_sd_configs` reads.

    Args:
        nodes: as `ray.nodes()` gives them; those that are gone, or export nothing, are left out.
    """
    addresses = [
        f"{node['NodeManagerAddress']}:{node['MetricsExportPort']}"
        for node in nodes
        if node["Alive"] and node["MetricsExportPort"] > 0
    ]
    return [{"labels": {"job": "ray"}, "targets": sorted(addresses)}]


@contextmanager
def announced() -> Iterator[Path | None]:
    """Writes the file for the cluster that is up, and removes it at the end; never raises by itself.

    Yields:
        Its path; None when it could not be written, which is warned of.
    """
    path: Path | None = None
    try:
        import ray

        nodes = ray.nodes()
        # <temporary folder>/session_.../sockets/raylet
        folder = Path(nodes[0]["RayletSocketName"]).parents[2]
        _remove_dead(folder)
        path = folder / PATTERN.replace("*", str(os.getpid()))
        write_text(path, json.dumps(targets(nodes)))  # Prometheus must not read half a file
    except Exception as error:
        path = None
        log.warning("Prometheus will not find this run by itself: %s", error)
    try:
        yield path
    finally:
        if path is not None:
            path.unlink(missing_ok=True)


def _remove_dead(folder: Path) -> None:
    """Removes the files of drivers that were killed: their targets would count as down for ever."""
    for path in folder.glob(PATTERN):
        number = path.stem.rpartition("_")[2]
        if number.isdigit() and not Path("/proc", number).exists() and Path("/proc").is_dir():
            path.unlink(missing_ok=True)
