"""`ray job submit` on a real head with token authentication: refusal, logs, stop, and the same command again."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.orchestration.job import ROOT

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.long]
RAY = Path(sys.executable).with_name("ray")
TOKEN = "0123456789abcdef0123456789abcdef"


def free_ports(count):
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def environment(token=TOKEN):
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("RAY_", "MLFLOW_"))}
    own = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token, "PATH": f"{RAY.parent}:{kept['PATH']}"}
    return kept | own | {"RAY_USAGE_STATS_ENABLED": "0"}


@pytest.fixture(scope="module")
def head(tmp_path_factory):
    port, dashboard, agent, client = free_ports(4)
    command = [
        RAY, "start", "--head", "--block", "--num-cpus=2", "--node-ip-address=127.0.0.1", f"--port={port}",
        "--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}", f"--dashboard-agent-listen-port={agent}",
        f"--ray-client-server-port={client}",
    ]  # fmt: skip
    log = tmp_path_factory.mktemp("head") / "log"
    with log.open("w") as out:
        process = subprocess.Popen(command, env=environment(), stdout=out, stderr=subprocess.STDOUT, cwd=log.parent)
    address = f"http://127.0.0.1:{dashboard}"
    deadline = time.monotonic() + 90
    while ray_job(address, "list").returncode:
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(1)
    yield address
    family = [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]
    process.send_signal(signal.SIGTERM)
    _, alive = psutil.wait_procs(family, timeout=30)
    for one in alive:
        one.kill()


def ray_job(address, verb, *arguments, token=TOKEN, timeout=300):
    command = [RAY, "job", verb, "--address", address, *map(str, arguments)]
    return subprocess.run(
        command, env=environment(token), capture_output=True, text=True, timeout=timeout, check=False, cwd=ROOT
    )


def run_mtil(storage, task_data, small_backbone, *flags):
    """The command of a run, as it stands behind `--`."""
    return [
        "--", "python", "jobs/run_mtil.py", "--data", task_data, "--pretrained", small_backbone, "--method", "condu",
        "--training.steps", 200, "--training.batch_size", 8, "--training.lanes", 1, "--storage", storage, "--run", "r",
        "--tracking.enabled", "false", *flags,
    ]  # fmt: skip


def test_a_wrong_token_is_refused(head):
    done = ray_job(head, "list", token="f" * 32)
    assert done.returncode != 0
    assert "Unauthenticated" in done.stdout + done.stderr or "nvalid" in done.stdout + done.stderr


def test_bad_settings_end_the_job_with_their_message(head, tmp_path, task_data, small_backbone):
    command = run_mtil(tmp_path / "s", task_data, small_backbone, "--trainign.lr", 1)
    done = ray_job(head, "submit", "--submission-id", "bad", "--working-dir", ".", *command)
    assert done.returncode == 1
    assert "unknown flag --trainign.lr (did you mean training.lr?)" in done.stdout + done.stderr
    assert "FAILED" in ray_job(head, "status", "bad").stdout.upper()
    assert not (tmp_path / "s").exists()


def test_a_stopped_job_goes_on_when_it_is_submitted_again(head, tmp_path, task_data, small_backbone):
    storage = tmp_path / "s"
    command = run_mtil(storage, task_data, small_backbone)
    begun = ray_job(head, "submit", "--no-wait", "--submission-id", "first", "--working-dir", ".", *command)
    assert begun.returncode == 0, begun.stdout + begun.stderr
    deadline = time.monotonic() + 300
    while not (experts := sorted(storage.glob("experts/[!.]*/meta.json"))):
        assert time.monotonic() < deadline, ray_job(head, "logs", "first").stdout
        time.sleep(0.1)
    assert ray_job(head, "stop", "first").returncode == 0
    assert "STOPPED" in ray_job(head, "status", "first").stdout.upper()
    before = {path: path.stat().st_mtime_ns for path in experts}
    given = json.dumps({"env_vars": {"RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.3"}})  # which the driver sets, too
    done = ray_job(head, "submit", "--working-dir", ".", "--runtime-env-json", given, *command)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "\r" not in done.stdout  # lines that a log can hold, no bars
    assert [line for line in done.stdout.splitlines() if "after 3/3 cars" in line]
    assert "Transfer" in done.stdout
    results = json.loads((storage / "runs" / "r" / "report" / "results.json").read_text())
    assert results["experts_trained"] <= 3 - len(before)
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in before.items())
