"""What Ray writes beside a run, in a bucket: by pyarrow, as Train and Tune do."""

import pickle
import shutil

import cloudpickle
import pytest
from pyarrow.fs import FileSelector

from condu_ray.orchestration.cluster.ray_storage import ray_storage
from condu_ray.store.location import Location
from jobs.faults.object_server import ObjectServer
from jobs.faults.servers import azurite


@pytest.fixture
def server(monkeypatch):
    with ObjectServer() as found:
        for name, value in found.environment().items():
            monkeypatch.setenv(name, value)
        yield found


@pytest.mark.parametrize("scheme", ["s3", "gs"])
def test_what_ray_writes_on_one_node_is_read_on_another(server, scheme):
    given = ray_storage(Location(f"{scheme}://bucket/sweeps/s"))
    assert given["storage_path"] == "bucket/sweeps/s"
    here, there = given["storage_filesystem"], cloudpickle.loads(cloudpickle.dumps(given["storage_filesystem"]))
    path, trials = f"{given['storage_path']}/tune-1/tuner.pkl", {"trial": list(range(10**5))}
    with here.open_output_stream(path) as file:
        file.write(pickle.dumps(trials))  # a buffer of pyarrow's
        file.write(b"end")
    assert list(server.objects) == ["sweeps/s/tune-1/tuner.pkl"]
    with there.open_input_stream(path) as file:
        content = file.read()
    assert pickle.loads(content) == trials
    assert content.endswith(b"end")


@pytest.mark.skipif(shutil.which("azurite-blob") is None, reason="azurite-blob is not in PATH: npm install azurite")
def test_what_ray_writes_to_azure_is_read_on_another_node(tmp_path, monkeypatch):
    with azurite(tmp_path) as environment:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        given = ray_storage(Location("az://condu/sweeps/s"))
        here, there = given["storage_filesystem"], cloudpickle.loads(cloudpickle.dumps(given["storage_filesystem"]))
        with here.open_output_stream(f"{given['storage_path']}/tuner.pkl") as file:
            file.write(b"trials")
        assert [one.base_name for one in there.get_file_info(FileSelector(given["storage_path"]))] == ["tuner.pkl"]
        with there.open_input_stream(f"{given['storage_path']}/tuner.pkl") as file:
            assert file.read() == b"trials"


def test_on_disk_ray_is_given_an_absolute_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    given = ray_storage(Location("here"))
    assert given == {"storage_path": str(tmp_path / "here"), "storage_filesystem": None}
