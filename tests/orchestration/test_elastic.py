"""Nodes that come and go under a run or a sweep: what comes is used, what goes is survived, the bits are the same."""

import pytest

from tests.orchestration.job import Job
from tests.orchestration.test_sweep import SweepJob

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.long]
FLAGS = ("--tracking.enabled", "false", "--evaluation.evaluators", "1", "--cluster.experts_at_once", "1")
TASKS = 3


@pytest.fixture
def cluster(monkeypatch):
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)  # which a local cluster that was here leaves behind
    from ray.cluster_utils import Cluster

    found = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    yield found
    found.shutdown()


def test_a_run_loses_and_gains_nodes_and_makes_the_same_bits(tmp_path, task_data, small_backbone, cluster):
    cluster.add_node(num_cpus=1)
    address = ("--cluster.address", cluster.address)
    job = Job(tmp_path / "s", task_data, small_backbone, *FLAGS, *address, steps=2500, lanes=0)
    try:
        job.wait_for(lambda: "0/3 experts" in job.log.read_text(), timeout=180)
        assert "in 1 lanes" in job.log.read_text()
        second = cluster.add_node(num_cpus=1)  # not the driver's, which is there already
        job.wait_for(lambda: "more lanes: the cluster has grown" in job.log.read_text())
        job.wait_for(lambda: job.log.read_text().splitlines()[-1].count("/2500") == 2, timeout=180)  # both lanes train
        cluster.remove_node(second, allow_graceful=False)
        results = job.finish(timeout=400)
    finally:
        if job.process.poll() is None:
            job.stop()
    still = Job(tmp_path / "t", task_data, small_backbone, *FLAGS, steps=2500, lanes=1)
    assert results["methods"]["condu"]["accuracy"] == still.finish()["methods"]["condu"]["accuracy"]
    assert job.final == still.final
    assert len(job.experts) == TASKS


def test_a_node_that_joins_while_a_sweep_runs_gets_a_lane(tmp_path, task_data, small_backbone, cluster):
    cluster.add_node(num_cpus=1)
    flags = ("--orders", "2", *FLAGS, "--cluster.address", cluster.address)
    job = SweepJob(tmp_path / "s", task_data, small_backbone, "grown", *flags, steps=1500, lanes=0)
    try:
        job.wait_for(lambda: " 0/7 experts trained; walls " in job.log.read_text(), timeout=180)
        cluster.add_node(num_cpus=1)
        job.wait_for(lambda: "more lanes: the cluster has grown" in job.log.read_text())
        job.wait_for(lambda: job.log.read_text().splitlines()[-1].count("/1500") == 2, timeout=180)  # both lanes train
        assert len(job.finish(timeout=400)["groups"]) == 2
    finally:
        if job.process.poll() is None:
            job.stop()
