"""What a local cluster is started without: three of Ray's own processes, of which a run asks nothing.

Each is a Python program, half a CPU second to a whole one, and `ray.init` waits until the first is up. The API server
(`dashboard.py`) serves nothing without the dashboard; the monitor is the autoscaler's, and speaks with providers of
nodes; the log monitor sends what workers print to drivers that want it. Metrics are the agents', which stay.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

SWITCH = "CONDU_RAY_LEAN"
"""The environment variable that, when 0, has Ray start all of its processes."""

NOBODY = b"127.0.0.1:9"
"""An address where nobody answers, as at the API server's: the agents ask for one each second, and log that in vain."""


def _api_server(node: Any, **_: Any) -> None:
    """Leaves what Ray's own leaves in a node and its store, where the dashboard is not wanted."""
    from ray._private import ray_constants

    node._webui_url = ""
    address = ray_constants.DASHBOARD_ADDRESS.encode()
    node.get_gcs_client().internal_kv_put(address, NOBODY, True, ray_constants.KV_NAMESPACE_DASHBOARD)


def _nothing(_: Any) -> None:
    """No process."""


INSTEAD = {"start_api_server": _api_server, "start_monitor": _nothing, "start_log_monitor": _nothing}
"""What is done instead of starting each process, by the name of the method of Ray's node that starts it."""


@contextmanager
def lean(address: str) -> Iterator[None]:
    """Has the cluster that Ray starts in the block be without the processes; where Ray starts them otherwise, with.

    Args:
        address: of the cluster; one that is joined is what it is.
    """
    from ray._private.node import Node

    before = {name: getattr(Node, name, None) for name in INSTEAD}
    if address != "local" or os.environ.get(SWITCH) == "0" or not all(before.values()):
        yield
        return
    try:
        for name, instead in INSTEAD.items():
            setattr(Node, name, instead)
        yield
    finally:
        for name, own in before.items():
            setattr(Node, name, own)
