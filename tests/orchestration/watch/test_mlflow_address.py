"""MLflow's address: what is meant by it, in every working directory and with any sign, or why it is none."""

import os
import shutil
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from condu_ray.config import Experiment, Tracking
from condu_ray.orchestration.watch import mlflow_address
from condu_ray.orchestration.watch.mlflow_address import (
    TrackingError,
    check_tracking,
    elsewhere,
    sqlite_uri,
    tracking_uri,
    unreachable,
)

ADDRESSES = {
    None: "sqlite:///{here}/storage/mlflow.db",
    "": "sqlite:///{here}/storage/mlflow.db",
    "sqlite:///runs.db": "sqlite:///{here}/runs.db",
    "sqlite:///a/runs.db?timeout=3": "sqlite:///{here}/a/runs.db?timeout=3",
    "sqlite+pysqlite:///runs.db": "sqlite:///{here}/runs.db",
    "sqlite:///50%25/runs.db": "sqlite+pysqlite:///{here}/50%25/runs.db",
    "sqlite:////data/runs.db": "sqlite:////data/runs.db",
    "sqlite:///~/runs.db": "sqlite:////somebody/runs.db",
    " http://127.0.0.1:5000 ": "http://127.0.0.1:5000",
    "https://user:secret@host/mlflow": "https://user:secret@host/mlflow",
    "postgresql+psycopg2://user@host/runs": "postgresql+psycopg2://user@host/runs",
    "mysql://host/runs": "mysql://host/runs",
    "databricks": "databricks",
    "databricks://profile": "databricks://profile",
}


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("HOME", "/somebody")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("given", ADDRESSES)
@pytest.mark.parametrize("by", ["setting", "environment"])
def test_what_is_meant_by_an_address(here, monkeypatch, given, by):
    if by == "environment" and given is not None:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", given)
    config = Experiment(tracking=Tracking(uri=given if by == "setting" else None))
    assert tracking_uri(config) == ADDRESSES[given].format(here=here)


def test_a_file_that_a_copy_of_links_has_too_is_told_of(here):
    assert elsewhere(Experiment()) == []
    (here / "storage").mkdir()
    (here / "storage" / "mlflow.db").write_bytes(b"")
    assert elsewhere(Experiment()) == []
    (here / "copy.db").hardlink_to(here / "storage" / "mlflow.db")
    [words] = elsewhere(Experiment())
    assert "storage/mlflow.db, which has other names, of a copy by hard links (cp -al)" in words
    assert elsewhere(Experiment(tracking=Tracking(uri="http://host:5000"))) == []


NONE = {
    "127.0.0.1:5000": ["write http://127.0.0.1:5000"],
    "localhost:5000": ["write http://localhost:5000"],
    "mlflow:5000": ["write http://mlflow:5000"],
    "mlflow.example.com": ["write http://mlflow.example.com"],
    "mlflow.example.com:5000/x": ["write http://mlflow.example.com:5000/x"],
    "htp://host:5000": ["htp://", "did you mean http?"],
    "postgres://host/runs": ["postgres://", "did you mean postgresql?"],
    "s3://bucket/runs": ["s3://", "sqlite:///PATH"],
    "ftp://user:secret@host/x": ["ftp://host/x"],
    "http://": ["names no host"],
    "http://host:port": ["no port"],
    "http:/host:5000": ["http:/host:5000"],
    "runs": ["plain folder", "sqlite:///PATH/mlflow.db"],
    "/data/mlruns": ["plain folder", "sqlite:///PATH/mlflow.db"],
    "file:///data/mlruns": ["plain folder", "sqlite:///PATH/mlflow.db"],
    "mlflow.db": ["plain folder", "sqlite:///PATH/mlflow.db"],
    "sqlite://": ["names no file"],
    "sqlite:///:memory:": ["names no file"],
}


@pytest.mark.parametrize("given", NONE)
def test_what_is_no_address_says_what_to_give(here, given):
    with pytest.raises(TrackingError) as error:
        check_tracking(Experiment(tracking=Tracking(uri=given)))
    for word in ["--tracking.uri", "MLFLOW_TRACKING_URI", *NONE[given]]:
        assert word in str(error.value)
    assert "secret" not in str(error.value)
    check_tracking(Experiment(tracking=Tracking(uri=given, enabled=False)))  # nobody asks


def refuses(server, times):
    for _ in range(times):
        client, _ = server.accept()
        with client:
            if client.recv(1000).startswith(b"GET /x/api/2.0/mlflow/experiments/"):
                client.sendall(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n")


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_server_that_takes_requests_and_answers_none_is_told_in_seconds(scheme, monkeypatch):
    monkeypatch.setattr(mlflow_address, "ANSWER_SECONDS", 0.2)
    monkeypatch.setenv("no_proxy", "*")
    with socket.create_server(("127.0.0.1", 0)) as server:
        assert "hangs" in unreachable(f"{scheme}://127.0.0.1:{server.getsockname()[1]}")


def test_a_server_that_fails_at_all_it_is_asked_is_told_at_once(monkeypatch):
    """As one whose database has gone: MLflow's client tries for minutes."""
    monkeypatch.setenv("no_proxy", "*")

    def fails(server):
        for _ in range(2):
            client, _ = server.accept()
            with client:
                if client.recv(1000).startswith(b"GET /api"):  # and /health is well
                    client.sendall(b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\n\r\n")

    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=fails, args=[server], daemon=True).start()
        said = unreachable(f"http://127.0.0.1:{server.getsockname()[1]}")
    assert "the server there fails, with 500 Internal Server Error; its own log says why" in said


@pytest.mark.parametrize("scheme", ["http", "postgresql+psycopg2", "mysql"])
def test_a_server_that_is_not_there_is_told_from_one_that_is(scheme, monkeypatch):
    monkeypatch.delenv("http_proxy", raising=False)
    monkeypatch.delenv("HTTP_PROXY", raising=False)
    with socket.create_server(("127.0.0.1", 0)) as server:
        uri = f"{scheme}://user:secret@127.0.0.1:{server.getsockname()[1]}/x"
        asks = 2 if scheme == "http" else 1  # whether it is there, and for an answer
        (thread := threading.Thread(target=refuses, args=[server, asks], daemon=True)).start()
        assert unreachable(uri) is None
        thread.join(10)  # one that waits in accept() would keep the port open
    assert "no server answers there (Connection refused)" in unreachable(uri)


def test_nobody_is_asked_where_a_proxy_stands_between_or_where_there_is_no_server(monkeypatch):
    monkeypatch.setenv("http_proxy", "http://proxy.invalid:3128")
    monkeypatch.setenv("no_proxy", "")
    assert unreachable("http://no-such-host.invalid:5000") is None
    assert unreachable("sqlite:////data/runs.db") is None
    assert unreachable("databricks") is None


@pytest.mark.skipif(shutil.which("make") is None, reason="there is no make")
@pytest.mark.parametrize("name", ["storage", "my 100% #storage?"])
def test_make_shows_storage_of_any_name(name, tmp_path):
    root, folder = Path(__file__).parents[3], tmp_path / name
    asked = ["make", "--no-print-directory", "-n", "mlflow", f"STORAGE={folder}", f"PY={sys.executable}"]
    line = subprocess.run(asked, cwd=root, capture_output=True, text=True, check=True).stdout.splitlines()[-1]
    assert ".venv/bin/mlflow server" in line
    said = line.replace(".venv/bin/mlflow server", "printf '%s\\n'")
    paths = os.environ | {"PYTHONPATH": str(root)}
    words = subprocess.run(
        ["sh", "-c", said], capture_output=True, text=True, check=True, env=paths
    ).stdout.splitlines()
    assert words[words.index("--backend-store-uri") + 1 :] == [sqlite_uri(folder / "mlflow.db")]
