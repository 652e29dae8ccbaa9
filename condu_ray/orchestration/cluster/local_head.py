"""What a local cluster is started without: three of Ray's own processes, of which a run asks nothing, and waiting.

Each is a Python program, half a CPU second to a whole one, and `ray.init` waits until the first is up. The API server
(`dashboard.py`) serves nothing without the dashboard; the monitor is the autoscaler's, and speaks with providers of
nodes; the log monitor sends what workers print to drivers that want it. Metrics are the agents', which stay.

A node is there once its agent listens at a port. Ray's own is one for all: where another cluster of the machine has it,
or one that has just ended, the agent tries again for 3.5 s. And Ray asks for the node once a second.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

SWITCH = "CONDU_RAY_LEAN"
"""The environment variable that, when 0, has Ray start all of its processes."""

WAIT_SECONDS = 10
"""How long a node is looked for; then Ray asks for it itself, and says what is wrong."""

NOBODY = b"127.0.0.1:9"
"""An address where nobody answers, as at the API server's: the agents ask for one each second, and log that in vain."""


def _api_server(node: Any, **_: Any) -> None:
    """Leaves what Ray's own leaves in a node and its store without the dashboard; and has its agent take any port."""
    from ray._private import ray_constants

    node._webui_url = ""
    node._ray_params.dashboard_agent_listen_port = 0
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
    from ray._private import services
    from ray._private.node import Node

    before = {name: getattr(Node, name, None) for name in INSTEAD}
    get_node = getattr(services, "get_node", None)
    if address != "local" or os.environ.get(SWITCH) == "0" or not all(before.values()) or get_node is None:
        yield
        return

    def there(gcs: str, node: str) -> Any:
        _wait_for(gcs, node)
        return get_node(gcs, node)

    try:
        for name, instead in INSTEAD.items():
            setattr(Node, name, instead)
        services.get_node = there
        yield
    finally:
        services.get_node = get_node
        for name, own in before.items():
            setattr(Node, name, own)


def _wait_for(gcs: str, node: str) -> None:
    """Waits until a node is in the GCS's table, or for `WAIT_SECONDS`, or a GCS that does not answer."""
    from ray._private import services
    from ray._private.state import GlobalState

    state, end = GlobalState(), time.monotonic() + WAIT_SECONDS
    with suppress(Exception):
        state._initialize_global_state(services._get_gcs_client_options(gcs))
        while time.monotonic() < end and not any(one["NodeID"] == node for one in state.node_table()):
            time.sleep(0.02)
