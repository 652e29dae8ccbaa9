import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import with_room


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["--gpus", "1"], "no command"),
        (["--", "ls"], "at least one CPU or GPU"),
        (["--gpus", "-1", "--", "ls"], "at least one CPU or GPU"),
        (["--gpus", "one", "--", "ls"], "invalid int"),
    ],
)
def test_wrong_arguments_are_refused(capsys, given, words):
    with pytest.raises(SystemExit) as ended:
        with_room.arguments(given)
    assert ended.value.code == 2
    assert words in capsys.readouterr().err


def test_the_command_keeps_its_own_flags():
    found = with_room.arguments(["--gpus", "2", "--", "python", "job.py", "--gpus", "3", "--", "x"])
    assert (found.gpus, found.command) == (2, ["python", "job.py", "--gpus", "3", "--", "x"])
    assert with_room.arguments(["--release"]).release


@pytest.mark.parametrize(("code", "seen"), [(0, 0), (7, 7), ("kill", 137)])
def test_the_exit_code_is_the_commands(code, seen):
    act = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)" if code == "kill" else f"raise SystemExit({code})"
    assert with_room.run([sys.executable, "-c", act]) == seen


@pytest.fixture(scope="module")
def cluster():
    """A head without CPUs, to which the tests add nodes in the autoscaler's place."""
    ray_cluster = pytest.importorskip("ray.cluster_utils")
    started = ray_cluster.Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    yield started
    started.shutdown()


def wanted(cluster):
    """What the autoscaler is asked to provide at least, as it reads it from the head."""
    from ray._raylet import GcsClient
    from ray.core.generated.autoscaler_pb2 import GetClusterResourceStateReply

    reply = GetClusterResourceStateReply()
    reply.ParseFromString(GcsClient(cluster.address).get_cluster_resource_state())
    found: dict[str, float] = {}
    for constraint in reply.cluster_resource_state.cluster_resource_constraints:
        for entry in constraint.resource_requests:
            for name, amount in entry.request.resources_bundle.items():
                found[name] = found.get(name, 0) + amount * entry.count
    return found


def start(cluster, *given):
    script = Path(with_room.__file__)
    return subprocess.Popen(
        [sys.executable, str(script), *given],
        env=os.environ | {"RAY_ADDRESS": cluster.address, "RAY_enable_autoscaler_v2": "1"},  # as KubeRay sets it
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.ray
@pytest.mark.slow
def test_it_asks_waits_runs_and_lets_go(cluster):
    process = start(cluster, "--gpus", "1", "--cpus", "2", "--timeout", "120", "--", "sh", "-c", "echo ran; exit 5")
    deadline = time.monotonic() + 60
    while wanted(cluster) != {"GPU": 1, "CPU": 2} and time.monotonic() < deadline:
        time.sleep(0.2)
    assert wanted(cluster) == {"GPU": 1, "CPU": 2}
    assert process.poll() is None, "it did not wait"
    node = cluster.add_node(num_cpus=2, num_gpus=1)
    out, _ = process.communicate(timeout=90)
    assert (out.strip().splitlines()[-1], process.returncode) == ("ran", 5)
    assert wanted(cluster) == {}
    cluster.remove_node(node)


@pytest.mark.ray
@pytest.mark.slow
def test_nodes_that_do_not_come_end_it_and_the_request(cluster):
    process = start(cluster, "--gpus", "9", "--timeout", "1", "--", "echo", "ran")
    out, err = process.communicate(timeout=90)
    assert process.returncode == with_room.NO_ROOM
    assert "did not grow to 9 GPUs" in err
    assert "ran" not in out
    assert wanted(cluster) == {}
