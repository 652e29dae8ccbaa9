"""SIGTERM and Ctrl-C on a real run and a real sweep, while they start and while they train."""

import signal
import time

import pytest

from tests.orchestration.job import Job

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.long]
SENTENCE = "the same command goes on from there"


class Sweep(Job):
    script = "sweep_orders.py"


def statuses(storage):
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{storage}/mlflow.db")
    experiments = [found.experiment_id for found in client.search_experiments()]
    return [run.info.status for run in client.search_runs(experiments)]


@pytest.mark.parametrize(
    ("kind", "number", "moment"),
    [
        (Job, signal.SIGTERM, "trains"),
        (Job, signal.SIGINT, "starts"),
        (Sweep, signal.SIGTERM, "trains"),
    ],
)
def test_a_signal_ends_a_run_or_sweep_and_the_same_command_goes_on(
    kind, number, moment, tmp_path, task_data, small_backbone
):
    flags = ("--orders", "2") if kind is Sweep else ()
    job = kind(tmp_path / "s", task_data, small_backbone, *flags, steps=100)
    try:
        job.wait_for(lambda: "lanes" in job.log.read_text() if moment == "starts" else len(job.experts) == 1)
        begin = time.monotonic()
        job.process.send_signal(number)
        assert job.process.wait(20) == 128 + number
        assert time.monotonic() - begin < 15
        text = job.log.read_text()
        assert text.count(SENTENCE) == 1
        assert text.splitlines()[-1].endswith(SENTENCE)
        assert "Traceback" not in text
        assert "logging.cc" not in text
        assert set(statuses(job.storage)) <= {"KILLED", "FINISHED"}
        assert statuses(job.storage) or moment == "starts"  # of which MLflow may not have heard by then
    finally:
        job.stop()
    kept = job.experts
    again = kind(job.storage, task_data, small_backbone, *flags, steps=100)
    try:
        assert again.process.wait(240) == 0, again.log.read_text()
    finally:
        again.stop()
    assert set(kept) <= set(again.experts)
    assert set(statuses(job.storage)) == {"FINISHED"}
