"""A local cluster runs without the processes that a run asks nothing of, and with them where that is wanted."""

import time
from pathlib import Path

import psutil
import pytest
from ray._private import services, worker
from ray._private.node import Node
from ray._private.ray_constants import DEFAULT_DASHBOARD_AGENT_LISTEN_PORT

from condu_ray.orchestration.cluster import local_head
from condu_ray.orchestration.cluster.local_head import INSTEAD, SWITCH, lean

GET_NODE = services.get_node
PROGRAMS = ("dashboard.py", "monitor.py", "log_monitor.py")


def programs():
    """The Python files that Ray's processes below this one run, by name."""
    found = set()
    for process in psutil.Process().children(recursive=True):
        found |= {Path(word).name for word in process.cmdline() if word.endswith(".py")}
    return found


@pytest.mark.ray
def test_a_local_cluster_is_up_without_them_and_nobody_misses_them(local_cluster):
    import ray

    assert changed() == set()  # a node that is started later is Ray's own
    assert ray.get(ray.remote(num_cpus=0)(lambda: 2).remote()) == 2
    assert not programs() & set(PROGRAMS)
    (node,) = ray.nodes()
    assert node["MetricsExportPort"] > 0
    said = Path(node["RayletSocketName"]).parents[1] / "logs" / "dashboard_agent.log"
    deadline = time.monotonic() + 60
    while not (said.exists() and "agent grpc address" in said.read_text()) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert "agent grpc address" in said.read_text()
    time.sleep(2.5)
    assert "address failed" not in said.read_text()  # which it would say each second
    assert worker._global_node._ray_params.dashboard_agent_listen_port not in (0, DEFAULT_DASHBOARD_AGENT_LISTEN_PORT)
    assert "Failed to bind" not in said.read_text()


def changed():
    """The methods of Ray's node that are not its own, of which its services are another's too."""
    found = {name for name, instead in INSTEAD.items() if getattr(Node, name) is instead}
    assert (services.get_node is not GET_NODE) == bool(found)
    return found


@pytest.mark.parametrize("comes", [True, False])
def test_a_node_is_asked_for_once_it_is_there_or_after_some_seconds(monkeypatch, comes):
    looks = iter([[], [{"NodeID": "other"}], *([[{"NodeID": "other"}, {"NodeID": "this"}]] * comes)])

    def looked(_):
        return next(looks)  # and at last an error, as of a GCS that is gone

    monkeypatch.setattr("ray._private.state.GlobalState._initialize_global_state", lambda *_: None)
    monkeypatch.setattr("ray._private.state.GlobalState.node_table", looked)
    asked = []
    monkeypatch.setattr(services, "get_node", lambda *given: asked.append((given, list(looks))) or "found")
    with lean("local"):
        assert services.get_node("127.0.0.1:1", "this") == "found"
    assert asked == [(("127.0.0.1:1", "this"), [])]


@pytest.mark.parametrize(
    ("address", "switch", "wanted"),
    [("local", None, set(INSTEAD)), ("local", "1", set(INSTEAD)), ("local", "0", set()), ("auto", None, set())],
)
def test_when_they_are_left_out(monkeypatch, address, switch, wanted):
    monkeypatch.delenv(SWITCH, raising=False)
    if switch is not None:
        monkeypatch.setenv(SWITCH, switch)
    with lean(address):
        assert changed() == wanted
    assert changed() == set()


def test_a_ray_that_starts_them_otherwise_starts_them_all(monkeypatch):
    monkeypatch.delenv(SWITCH, raising=False)
    monkeypatch.setattr(local_head, "INSTEAD", INSTEAD | {"start_another": INSTEAD["start_monitor"]})
    with lean("local"):
        assert changed() == set()


def test_they_are_back_after_an_error(monkeypatch):
    monkeypatch.delenv(SWITCH, raising=False)
    with pytest.raises(RuntimeError, match="no cluster"), lean("local"):
        raise RuntimeError("no cluster")
    assert changed() == set()
