"""Runs and sweeps with storage and data in a bucket of SeaweedFS: the same as on disk, and the same after kills."""

import json
import shutil
import subprocess
import sys

import pytest

from condu_ray.store import layout
from condu_ray.store.artifacts import names, read_meta, read_text
from condu_ray.store.bucket import CONNECTED, bucket_of
from condu_ray.store.ledger import read_entries
from condu_ray.store.location import Location
from condu_ray.store.results import read_rows
from jobs.faults.servers import azurite, seaweed
from tests.orchestration.job import ROOT, Job

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.long]
METHODS = "condu,condu-svd,pam,sequential"


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    folder = tmp_path_factory.mktemp("seaweed")
    with seaweed(folder / "data") as found, pytest.MonkeyPatch.context() as patch:
        found |= {"CONDU_RAY_CACHE": str(folder / "copies"), "XDG_DATA_HOME": str(folder / "home")}
        for name, value in found.items():
            patch.setenv(name, value)
        yield found
        CONNECTED.pop("s3://condu", None)


@pytest.fixture(scope="module")
def data(environment, task_data):
    place = Location("s3://condu/tasks")
    for path in task_data.rglob("*.*"):
        bucket_of(place).put((place / path.relative_to(task_data)).key, path.read_bytes())
    return place


class BucketJob(Job):
    """A job whose storage is in a bucket."""

    def __init__(self, log_folder, place, data, small_backbone, *flags, **more):
        self.place = Location(place)
        super().__init__(log_folder / "storage", data, small_backbone, *flags, "--storage", place, **more)

    def finish(self, timeout=600):
        assert self.process.wait(timeout) == 0, self.log.read_text()


def made(storage, methods=METHODS):
    """What a run left: rows, and the checksums of every expert's and session's files."""
    run = layout.run_folder(storage, "r")
    rows = read_rows(layout.results_folder(run))
    found = {key: read_meta(layout.expert_folder(storage, key))["files"] for key in names(storage / "experts")}
    for method in methods.split(","):
        folder = layout.sessions_folder(run, method)
        found |= {f"{method} {name}": read_meta(folder / name)["files"] for name in names(folder)}
        found[method] = [entry.state for entry in read_entries(layout.ledger_path(run, method))[0]]
    return rows, found


def test_a_run_in_a_bucket_that_is_killed_is_the_one_on_disk(tmp_path, environment, data, task_data, small_backbone):
    disk = Job(tmp_path / "disk", task_data, small_backbone, method=METHODS, environment=environment)
    disk.finish(600)
    expected = made(disk.storage)
    job = BucketJob(tmp_path, "s3://condu/whole", data, small_backbone, method=METHODS, environment=environment)
    try:
        job.wait_for(lambda: len(names(job.place / "experts")) > 1)
        job.kill("machine")
        again = BucketJob(tmp_path, "s3://condu/whole", data, small_backbone, method=METHODS, environment=environment)
        again.finish()
    finally:
        job.clear()
    assert made(job.place) == expected
    said = again.log.read_text()
    assert "MLflow logs to sqlite:///" in said
    assert "its database cannot lie in a bucket" in said
    assert not (ROOT / "s3:").exists()
    assert not list(tmp_path.glob("**/s3:*"))
    report = [sys.executable, str(ROOT / "jobs" / "report.py"), "r", "--storage", "s3://condu/whole"]
    subprocess.run(report, check=True, capture_output=True)
    results = json.loads(read_text(layout.results_path(layout.run_folder(job.place, "r"))))
    assert list(results["methods"]) == METHODS.split(",")


def test_a_sweep_in_a_bucket(tmp_path, environment, data, small_backbone):
    place = Location("s3://condu/sweep")
    command = [
        sys.executable, str(ROOT / "jobs" / "sweep_orders.py"), "--data", str(data),
        "--pretrained", str(small_backbone),
        "--method", "condu", "--orders", "2", "--training.steps", "4", "--training.batch_size", "8", "--training.lanes",
        "1", "--run", "s", "--storage", str(place),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    folder = layout.sweep_folder(place, "s")
    assert len(names(layout.trials_folder(folder))) == 2
    assert "report.md" in names(layout.report_folder(folder))


@pytest.mark.skipif(shutil.which("azurite-blob") is None, reason="azurite-blob is not in PATH: npm install azurite")
def test_a_run_in_azure_is_the_one_on_disk(tmp_path, task_data, small_backbone, monkeypatch):
    methods = "condu,pam"
    disk = Job(tmp_path / "disk", task_data, small_backbone, method=methods)
    disk.finish(600)
    expected = made(disk.storage, methods)
    with azurite(tmp_path / "azurite") as found:
        found |= {"CONDU_RAY_CACHE": str(tmp_path / "copies"), "XDG_DATA_HOME": str(tmp_path / "home")}
        for name, value in found.items():
            monkeypatch.setenv(name, value)
        job = BucketJob(tmp_path, "az://condu/whole", task_data, small_backbone, method=methods, environment=found)
        job.finish()
        assert made(job.place, methods) == expected
    CONNECTED.pop("az://condu", None)
