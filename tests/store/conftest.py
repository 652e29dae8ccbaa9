import itertools
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

import pytest

from condu_ray.store.bucket import CONNECTED, Bucket
from condu_ray.store.location import Location
from jobs.faults import servers

numbers = itertools.count()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """Copies of what is in buckets go to a folder of the test."""
    monkeypatch.setenv("CONDU_RAY_CACHE", str(tmp_path / "copies"))
    return tmp_path / "copies"


@pytest.fixture
def memory():
    """A bucket that is a dictionary of this process."""
    from obstore.store import MemoryStore

    url = f"s3://memory{next(numbers)}"
    CONNECTED[url] = Bucket(MemoryStore(), url)
    yield Location(url)
    del CONNECTED[url]


@pytest.fixture(scope="session")
def moto_server():
    """The address of moto's S3."""
    address = f"http://127.0.0.1:{(port := free_port())}"
    command = [os.path.join(os.path.dirname(sys.executable), "moto_server"), "-H", "127.0.0.1", "-p", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 30
        while True:
            try:
                urllib.request.urlopen(f"{address}/moto-api/", timeout=1).close()
                break
            except OSError:
                assert process.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.05)
        yield address
    finally:
        process.terminate()
        process.wait()


def use(monkeypatch, address):
    """Says where S3 is, as a user would."""
    for name, value in {
        "AWS_ENDPOINT_URL": address, "AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_REGION": "us-east-1",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)


def folder_of(bucket, environment, monkeypatch):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    yield Location(f"{bucket}/{next(numbers)}")
    CONNECTED.pop(bucket, None)


@pytest.fixture(scope="session")
def seaweed_server(tmp_path_factory):
    with servers.seaweed(tmp_path_factory.mktemp("seaweed") / "data") as environment:
        yield environment


@pytest.fixture
def seaweedfs(seaweed_server, monkeypatch):
    """A new folder of a bucket of SeaweedFS."""
    yield from folder_of("s3://condu", seaweed_server, monkeypatch)


@pytest.fixture(scope="session")
def azurite_server(tmp_path_factory):
    if shutil.which("azurite-blob") is None:
        pytest.skip("azurite-blob is not in PATH: npm install azurite")
    with servers.azurite(tmp_path_factory.mktemp("azurite")) as environment:
        yield environment


@pytest.fixture
def azurite(azurite_server, monkeypatch):
    """A new folder of a container of Azurite."""
    yield from folder_of("az://condu", azurite_server, monkeypatch)


@pytest.fixture
def moto(moto_server, monkeypatch):
    """A new bucket of moto's."""
    use(monkeypatch, moto_server)
    place = Location(f"s3://moto{next(numbers)}")
    request = urllib.request.Request(f"{moto_server}/{place.bucket}", method="PUT")
    urllib.request.urlopen(request, timeout=10).close()
    yield place
    CONNECTED.pop(str(place), None)
