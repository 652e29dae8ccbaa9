"""The MLflow server by the manifest's own arguments: it starts, takes a run, and refuses strangers."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
import yaml
from places import KUBERNETES

pytestmark = pytest.mark.slow


def free_port():
    with socket.socket() as connection:
        connection.bind(("127.0.0.1", 0))
        return connection.getsockname()[1]


def status(url, host):
    request = urllib.request.Request(url, headers={"Host": host})
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """(URL, folder of its data) of a server that the Deployment's command started, with one worker."""
    documents = yaml.safe_load_all((KUBERNETES / "services" / "mlflow.yaml").read_text())
    deployment = next(thing for thing in documents if thing["kind"] == "Deployment")
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    folder, port = tmp_path_factory.mktemp("mlflow"), free_port()
    given = [
        argument.replace("/mlflow/", f"{folder}/").replace("port=5000", f"port={port}")
        for argument in container["args"]
    ]
    environment = {entry["name"]: entry["value"] for entry in container["env"] if entry["name"] != "HOME"}
    program = Path(sys.executable).with_name("mlflow")
    command = [str(program) if program.exists() else shutil.which("mlflow"), "server", *given, "--workers=1"]
    log = (folder / "log").open("w")
    process = subprocess.Popen(
        command, env=os.environ | environment, stdout=log, stderr=log, start_new_session=True, cwd=folder
    )
    try:
        for _ in range(600):
            try:
                if status(f"http://127.0.0.1:{port}/health", "localhost") == 200:
                    break
            except OSError:
                assert process.poll() is None, (folder / "log").read_text()
                time.sleep(0.2)
        yield f"http://127.0.0.1:{port}", folder
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(timeout=30)


@pytest.mark.parametrize(
    ("path", "host", "code"),
    [
        ("/health", "10.1.2.3:5000", 200),  # a probe asks by the pod's address
        ("/api/2.0/mlflow/experiments/search?max_results=1", "mlflow:5000", 200),  # a driver
        ("/api/2.0/mlflow/experiments/search?max_results=1", "localhost:5000", 200),  # kubectl port-forward
        ("/api/2.0/mlflow/experiments/search?max_results=1", "evil.example", 403),
    ],
)
def test_hosts(server, path, host, code):
    assert status(server[0] + path, host) == code


def test_a_run_is_logged_with_its_report(server, tmp_path):
    from mlflow import MlflowClient

    url, folder = server
    (tmp_path / "report.md").write_text("a report")
    client = MlflowClient(tracking_uri=url)
    run = client.create_run(client.create_experiment("condu_ray"), run_name="a/condu")
    client.log_artifacts(run.info.run_id, str(tmp_path), "report")
    client.set_terminated(run.info.run_id)
    assert client.get_run(run.info.run_id).info.artifact_uri.startswith("mlflow-artifacts:")
    assert [path.read_text() for path in folder.glob("artifacts/**/report.md")] == ["a report"]
    assert (folder / "mlflow.db").is_file()
