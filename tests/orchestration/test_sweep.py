"""Sweeps on local Ray clusters: counted experts, two at once on one storage, a killed driver, the report alone."""

import json
import signal

import pytest

from tests.orchestration.job import Job

pytestmark = [pytest.mark.ray, pytest.mark.slow]
METHODS = ("condu", "pam-full")  # one whose experts all orders share, one that starts from merged states


class SweepJob(Job):
    script = "sweep_orders.py"

    def __init__(self, storage, task_data, small_backbone, name, *flags):
        self.name = name
        flags = ("--run", name, "--trials", "2", *flags, "--tracking.enabled", "false")
        super().__init__(storage, task_data, small_backbone, *flags, method=",".join(METHODS), steps=4)

    def finish(self, timeout=300):
        code = self.process.wait(timeout)
        assert code == 0, self.log.read_text()
        return self.report

    @property
    def report(self):
        return json.loads((self.folder / "report" / "sweep.json").read_text())

    @property
    def folder(self):
        return self.storage / "sweeps" / self.name

    @property
    def records(self):
        """Every finished trial's record, without what depends on who was first."""
        found = {}
        for path in sorted(self.folder.glob("trials/*.json")):
            record = json.loads(path.read_text())
            found[path.stem] = {key: record[key] for key in ("method", "order", "seed", "accuracy", "experts")}
        return found


@pytest.fixture(scope="module")
def both(tmp_path_factory, task_data, small_backbone):
    """A sweep of two orders and one of three, at once on one storage."""
    storage = tmp_path_factory.mktemp("sweeps") / "s"
    wanted = (("two", "2"), ("three", "3"))
    jobs = [SweepJob(storage, task_data, small_backbone, name, "--orders", count) for name, count in wanted]
    try:
        return jobs, [job.finish() for job in jobs]
    finally:
        for job in jobs:
            if job.process.poll() is None:
                job.stop()


def test_order_free_experts_are_trained_once_for_all_orders(both):
    jobs, _ = both
    for job in jobs:
        keys = {method: set() for method in METHODS}
        for record in job.records.values():
            keys[record["method"]] |= set(record["experts"])
        assert len(keys["condu"]) == 3  # as many as there are tasks
        assert len(keys["pam-full"]) > 3


def test_two_sweeps_at_once_train_no_expert_twice_and_agree(both):
    jobs, reports = both
    used = {key for job in jobs for record in job.records.values() for key in record["experts"]}
    trained = [report["extra"]["costs"]["experts_trained_by_this_sweep"] for report in reports]
    assert sum(trained) == len(used) == len(jobs[0].experts)
    small, large = (job.records for job in jobs)
    assert set(small) < set(large)
    assert all(small[name] == large[name] for name in small)
    assert not list(jobs[0].storage.glob("experts/.claims/*.json"))


@pytest.mark.long
def test_a_killed_driver_goes_on_and_ends_with_the_same_table(both, tmp_path, task_data, small_backbone):
    job = SweepJob(tmp_path / "s", task_data, small_backbone, "three", "--orders", "3")
    job.wait_for(lambda: len(list(job.folder.glob("trials/*.json"))) >= 1, timeout=200)
    job.process.send_signal(signal.SIGKILL)
    job.process.wait()
    job.stop_children()
    before = {path: path.stat().st_mtime_ns for path in job.folder.glob("trials/*.json")}
    experts = {key: (job.storage / "experts" / key / "meta.json").stat().st_mtime_ns for key in job.experts}
    assert len(before) < 6
    again = SweepJob(tmp_path / "s", task_data, small_backbone, "three", "--orders", "3")
    again.finish()
    assert again.records == both[0][1].records
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in before.items())
    for key, stamp in experts.items():
        assert (job.storage / "experts" / key / "meta.json").stat().st_mtime_ns == stamp


def test_the_same_command_makes_the_report_from_storage_alone(both, task_data, small_backbone):
    done = both[0][0]
    (done.folder / "report" / "sweep.json").unlink()
    again = SweepJob(done.storage, task_data, small_backbone, "two", "--orders", "2")
    again.finish(timeout=60)
    assert "4 finished before, 0 to run" in again.log.read_text()
    assert again.report["name"] == "two"


def test_another_sweep_under_the_same_name_is_refused(both, task_data, small_backbone):
    job = SweepJob(both[0][0].storage, task_data, small_backbone, "two", "--orders", "3")
    assert job.process.wait(60) == 2
    assert "holds a sweep with other settings" in job.log.read_text()
