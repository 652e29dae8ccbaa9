"""What a run leans on beside its own processes: nodes of its cluster and MLflow's server, which it loses; a bucket."""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from email.utils import formatdate
from pathlib import Path
from typing import Any

import psutil

START_SECONDS = 120.0


class Nodes:
    """A cluster whose head has no CPUs, with one node that works; on this machine, by `ray.cluster_utils`."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster

        self._cluster: Any = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
        self.address = str(self._cluster.address)
        self._working = self._cluster.add_node(num_cpus=1)

    def lose(self) -> None:
        """SIGKILLs the node that works, with all that runs on it; another one joins, as a spot node would."""
        lost, self._working = self._working, self._cluster.add_node(num_cpus=1)
        self._cluster.remove_node(lost, allow_graceful=False)

    def close(self) -> None:
        """Stops all nodes."""
        self._cluster.shutdown()


class MlflowServer:
    """An MLflow server on this machine, on an SQLite file.

    Args:
        folder: where its data are.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.uri, self._folder = f"http://127.0.0.1:{port}", folder
        self._command = [
            sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1",
            "--backend-store-uri", f"sqlite:///{folder}/mlflow.db", "--artifacts-destination", str(folder / "files"),
        ]  # fmt: skip
        self.start()

    def start(self) -> None:
        """Starts it on the data that there are, without waiting for it."""
        with (self._folder / "server.log").open("a", encoding="utf-8") as log:
            self._process = subprocess.Popen(self._command, stdout=log, stderr=subprocess.STDOUT)

    def wait(self) -> None:
        """Waits until it answers.

        Raises:
            TimeoutError: it does not.
        """
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            with suppress(OSError), urllib.request.urlopen(f"{self.uri}/health", timeout=5):
                return
            time.sleep(0.2)
        raise TimeoutError(f"no MLflow server at {self.uri}; see {self._folder / 'server.log'}")

    def kill(self) -> None:
        """SIGKILLs the server and its workers."""
        with suppress(psutil.NoSuchProcess):
            family = psutil.Process(self._process.pid).children(recursive=True)
            self._process.send_signal(signal.SIGKILL)
            for child in family:
                with suppress(psutil.NoSuchProcess):
                    child.kill()
            psutil.wait_procs(family, timeout=20)
        self._process.wait()

    def lose(self) -> None:
        """Kills it and starts it again: it is away for the seconds that its start takes."""
        self.kill()
        self.start()


@contextmanager
def mlflow_server(folder: Path) -> Iterator[MlflowServer]:
    """Holds a server for a block, which begins when it answers."""
    found = MlflowServer(folder)
    try:
        found.wait()
        yield found
    finally:
        found.kill()


@contextmanager
def seaweed(folder: Path) -> Iterator[dict[str, str]]:
    """Holds a SeaweedFS with S3's protocol and a bucket `condu` for a block.

    Args:
        folder: where its data are; made.

    Yields:
        What the environment of whoever uses it says.

    Raises:
        TimeoutError: it does not answer.
    """
    folder.mkdir(parents=True)
    master, volume, filer, s3 = _ports(4)
    command = [
        str(Path(sys.executable).with_name("weed")), "server", f"-dir={folder}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1",
        f"-master.port={master}", f"-volume.port={volume}", f"-filer.port={filer}", f"-s3.port={s3}", "-filer", "-s3",
        "-s3.port.iceberg=0", "-s3.port.lance=0", "-master.volumeSizeLimitMB=64", "-volume.max=100",
    ]  # fmt: skip
    with (folder / "server.log").open("w", encoding="utf-8") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
    try:
        made, deadline = urllib.request.Request(f"http://127.0.0.1:{s3}/condu", method="PUT"), time.monotonic() + 60
        while True:
            with suppress(OSError), urllib.request.urlopen(made, timeout=5):
                break
            if process.poll() is not None or time.monotonic() > deadline:
                raise TimeoutError(f"SeaweedFS does not answer; see {folder / 'server.log'}")
            time.sleep(0.2)
        yield {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{s3}", "AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b",
            "AWS_REGION": "us-east-1",
        }  # fmt: skip
    finally:
        process.kill()  # it would take half a minute to end, and its data go anyway
        process.wait()


@contextmanager
def azurite(folder: Path) -> Iterator[dict[str, str]]:
    """Holds an Azurite (npm's `azurite`) with Azure's blob protocol and a container `condu` for a block.

    Args:
        folder: where its data are.

    Yields:
        What the environment of whoever uses it says.

    Raises:
        FileNotFoundError: `azurite-blob` is not in PATH.
        TimeoutError: it does not answer.
    """
    if (program := shutil.which("azurite-blob")) is None:
        raise FileNotFoundError("azurite-blob is not in PATH: npm install azurite")
    account, key = "condu", base64.b64encode(b"of no account anywhere elsewhere").decode()
    (port,) = _ports(1)
    address = f"http://127.0.0.1:{port}/{account}"
    command = [program, "--blobHost", "127.0.0.1", "--blobPort", str(port), "--location", str(folder), "--silent",
               "--disableTelemetry", "--skipApiVersionCheck"]  # fmt: skip
    process = subprocess.Popen(command, env=os.environ | {"AZURITE_ACCOUNTS": f"{account}:{key}"})
    try:
        made, deadline = _container(address, account, key, "condu"), time.monotonic() + 60
        while True:
            with suppress(OSError), urllib.request.urlopen(made, timeout=5):
                break
            if process.poll() is not None or time.monotonic() > deadline:
                raise TimeoutError("Azurite does not answer")
            time.sleep(0.2)
        yield {
            "AZURE_STORAGE_ACCOUNT_NAME": account, "AZURE_STORAGE_ACCOUNT_KEY": key, "AZURE_STORAGE_ENDPOINT": address,
        }  # fmt: skip
    finally:
        process.terminate()
        process.wait()


def _container(address: str, account: str, key: str, name: str) -> urllib.request.Request:
    """A request that makes a container, signed by "Authorize with Shared Key" of learn.microsoft.com."""
    own = {"x-ms-date": formatdate(usegmt=True), "x-ms-version": "2021-08-06"}
    headers = "".join(f"{one}:{value}\n" for one, value in own.items())
    text = "PUT" + "\n" * 12 + f"{headers}/{account}/{account}/{name}\nrestype:container"
    signed = hmac.new(base64.b64decode(key), text.encode(), hashlib.sha256).digest()
    own["Authorization"] = f"SharedKey {account}:{base64.b64encode(signed).decode()}"
    own |= {"Content-Length": "0", "Content-Type": ""}  # none, where urllib has one for all
    return urllib.request.Request(f"{address}/{name}?restype=container", method="PUT", data=b"", headers=own)


def _ports(count: int) -> list[int]:
    """Returns free ports of which those 10,000 above are free too: it listens there as well."""
    found: list[int] = []
    while len(found) < count:
        with socket.socket() as probe, socket.socket() as above:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1] - 20000
            if port < 1024:
                continue
            with suppress(OSError):
                above.bind(("127.0.0.1", port + 10000))
                found.append(port)
    return found
