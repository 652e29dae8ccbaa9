"""A local cluster runs without the processes that a run asks nothing of, and with them where that is wanted."""

import time
from pathlib import Path

import psutil
import pytest
from ray._private.node import Node

from condu_ray.orchestration.cluster import local_head
from condu_ray.orchestration.cluster.local_head import INSTEAD, SWITCH, lean

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


def changed():
    """The methods of Ray's node that are not its own."""
    return {name for name, instead in INSTEAD.items() if getattr(Node, name) is instead}


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
