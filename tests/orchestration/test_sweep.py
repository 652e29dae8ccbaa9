"""Sweeps on local Ray clusters: counted experts, two at once on one storage, a killed driver, the report alone."""

import json
import shutil
from contextlib import nullcontext
from unittest.mock import MagicMock

import pytest

from condu_ray.command_line import parse
from condu_ray.commands import report, sweep
from condu_ray.config import Sweep
from condu_ray.orchestration import sweep as sweep_module
from condu_ray.orchestration.again import sweep_again
from condu_ray.orchestration.cluster import env
from tests.orchestration.job import Called, Job

pytestmark = [pytest.mark.ray, pytest.mark.slow]
METHODS = ("condu", "pam-full")  # one whose experts all orders share, one that starts from merged states


class Swept:
    """What a sweep leaves."""

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


class SweepJob(Swept, Job):
    """A sweep in a process of its own."""

    script = "sweep_orders.py"

    def __init__(self, storage, task_data, small_backbone, name, *flags, **more):
        self.name = name
        super().__init__(storage, task_data, small_backbone, name, *flags, **more)

    @staticmethod
    def flags(storage, task_data, small_backbone, name, *flags, steps=4, **more):
        flags = ("--run", name, "--trials", "2", *flags)
        flags += () if "--tracking.enabled" in flags else ("--tracking.enabled", "false")
        return Job.flags(storage, task_data, small_backbone, *flags, method=",".join(METHODS), steps=steps, **more)

    def finish(self, timeout=300):
        code = self.process.wait(timeout)
        assert code == 0, self.log.read_text()
        return self.report


class SweepCalled(Swept, Called):
    """A sweep in this process."""

    def __init__(self, storage, task_data, small_backbone, name, *flags):
        self.name = name
        super().__init__(sweep.main, SweepJob.flags(storage, task_data, small_backbone, name, *flags), storage)


def swept(*jobs):
    try:
        return [job.finish() for job in jobs]
    finally:
        for job in jobs:
            if job.process.poll() is None:
                job.stop()


@pytest.fixture(scope="module")
def done(tmp_path_factory, task_data, small_backbone, local_cluster):
    """A sweep of two orders."""
    job = SweepCalled(tmp_path_factory.mktemp("sweep") / "s", task_data, small_backbone, "one", "--orders", "2")
    job.finish()
    return job


@pytest.fixture(scope="module")
def both(tmp_path_factory, task_data, small_backbone):
    """A sweep of one order and one of two, at once on one storage."""
    storage = tmp_path_factory.mktemp("sweeps") / "s"
    wanted = (("one", "1"), ("two", "2"))
    jobs = [SweepJob(storage, task_data, small_backbone, name, "--orders", count) for name, count in wanted]
    return jobs, swept(*jobs)


def test_order_free_experts_are_trained_once_for_all_orders(done):
    keys, used = {}, dict.fromkeys(METHODS, 0)
    for record in done.records.values():
        keys.setdefault(record["method"], set()).update(record["experts"])
        used[record["method"]] += len(record["experts"])
    assert used == dict.fromkeys(METHODS, 2 * 3)
    assert len(keys["condu"]) == 3  # as many as there are tasks
    assert len(keys["pam-full"]) > 3  # an order's own are three
    costs = done.report["extra"]["costs"]
    assert costs["experts_trained_by_this_sweep"] == len(set().union(*keys.values())) == len(done.experts)
    assert not list(done.storage.glob("experts/.claims/*.json"))


@pytest.mark.long  # two more sweeps
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
    job = SweepJob(tmp_path / "s", task_data, small_backbone, "two", "--orders", "2")
    job.wait_for(lambda: len(list(job.folder.glob("trials/*.json"))) >= 1, timeout=200)
    job.kill("machine")
    before = {path: path.stat().st_mtime_ns for path in job.folder.glob("trials/*.json")}
    experts = {key: (job.storage / "experts" / key / "meta.json").stat().st_mtime_ns for key in job.experts}
    assert len(before) < 4
    again = SweepJob(tmp_path / "s", task_data, small_backbone, "two", "--orders", "2")
    again.finish()
    assert again.records == both[0][1].records
    costs = again.report["extra"]["costs"]
    assert costs["measurements"] == len(list((job.storage / "evaluations").glob("*.json")))  # by both processes
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in before.items())
    for key, stamp in experts.items():
        assert (job.storage / "experts" / key / "meta.json").stat().st_mtime_ns == stamp


@pytest.mark.long
def test_trials_that_merge_in_shards_make_the_same_bits(both, tmp_path, task_data, small_backbone):
    job = SweepJob(tmp_path / "s", task_data, small_backbone, "two", "--orders", "2", "--merging.shards", "2")
    job.finish()
    states = []
    for one in (both[0][0], job):
        found = sorted((one.storage / "runs").glob("two.*/condu/sessions/*/unified.safetensors"))
        states.append({path.relative_to(one.storage): path.read_bytes() for path in found})
    assert len(states[0]) == 6
    assert states[0] == states[1]
    assert job.records == both[0][1].records


@pytest.mark.long
def test_a_sweep_that_fails_is_failed_in_mlflow_with_its_trials(tmp_path, task_data, small_backbone):
    from mlflow import MlflowClient

    flags = ("--orders", "2", "--tracking.enabled", "true", "--training.lr_by_task", '{"cars": 1e30}')
    job = SweepJob(tmp_path / "s", task_data, small_backbone, "wild", *flags, steps=1600)  # trials begin meanwhile
    try:
        assert job.process.wait(240) == 1
    finally:
        if job.process.poll() is None:
            job.stop()
    text = " ".join(job.log.read_text().split())
    assert "the loss became" in text
    assert "Nothing that was committed is lost" in text
    assert "Traceback" not in text  # Tune has one for each trial that ends with the sweep
    client = MlflowClient(f"sqlite:///{tmp_path}/s/mlflow.db")
    runs = client.search_runs([client.get_experiment_by_name("condu_ray").experiment_id])
    assert {run.info.status for run in runs} == {"FAILED"}
    assert sum(run.data.tags.get("kind") == "sweep" for run in runs) == 1
    assert len(runs) > 1


def test_the_same_command_makes_the_report_from_storage_alone(done, task_data, small_backbone, capsys, monkeypatch):
    monkeypatch.setattr(env, "ray_cluster", lambda *_: pytest.fail("Ray starts"))
    (done.folder / "report" / "sweep.json").unlink()
    sweep.main(SweepJob.flags(done.storage, task_data, small_backbone, "one", "--orders", "2"))
    assert "4 finished before, 0 to run" in capsys.readouterr().out
    assert done.report["name"] == "one"


def test_the_same_command_ends_at_once_where_nothing_has_changed(done, task_data, small_backbone, capsys):
    flags = SweepJob.flags(done.storage, task_data, small_backbone, "one", "--orders", "2")
    numbers = done.folder / "report" / "sweep.json"
    sweep.main(flags)  # it may have something to do, after what other tests did
    at = numbers.stat().st_mtime_ns
    capsys.readouterr()
    sweep.main(flags)
    shown = " ".join(capsys.readouterr().out.split())
    assert "sweep one: 4 trials, finished before" in shown
    assert "trained by this sweep" in shown
    assert "report.md" in shown
    config = parse(flags, Sweep)
    assert sweep_again(config) == sorted(numbers.parent.iterdir())
    assert sweep_again(config.model_copy(update={"cache_report": True})) is None
    assert sweep_again(config.model_copy(update={"published": True})) is None
    assert numbers.stat().st_mtime_ns == at
    gone = next((done.storage / "prototypes").glob("[!.]*"))
    kept = gone.rename(done.storage / "kept")
    assert sweep_again(config) is None
    kept.rename(gone)
    assert sweep_again(config) is not None
    next(done.folder.glob("trials/*.json")).touch()
    assert sweep_again(config) is None


def test_a_finished_sweep_makes_the_prototypes_that_its_storage_lacks(done, task_data, small_backbone, monkeypatch):
    looked, encoded, begun = [], iter((False, True)), []
    engine = type("Engine", (MagicMock,), {"encoded": property(lambda _: next(encoded))})(look=looked.append)
    monkeypatch.setattr(sweep_module, "Engine", lambda *given: begun.append(given) or engine)
    for name, put in {"_report": MagicMock(), "require_alike": MagicMock(), "remember_sweep": MagicMock()}.items():
        monkeypatch.setattr(sweep_module, name, put)
    monkeypatch.setattr(env, "ray_cluster", lambda *_: nullcontext())
    gone = next((done.storage / "prototypes").glob("[!.]*"))
    kept = gone.rename(done.storage / "kept")
    try:
        sweep.main(SweepJob.flags(done.storage, task_data, small_backbone, "one", "--orders", "2"))
    finally:
        kept.rename(gone)
    ((_, _, trials),) = begun
    assert len(trials) == len(looked) == 1  # all of them route by the same


def test_what_mlflow_missed_is_sent_later_and_only_once(done, tmp_path, task_data, small_backbone, capsys):
    from mlflow import MlflowClient

    uri = f"sqlite:///{tmp_path}/mlflow.db"
    flags = ["one", "--storage", str(done.storage), "--sync-mlflow", "--tracking-uri", uri]
    said = []
    for _ in range(2):  # nothing of the first time is remembered but by MLflow
        report.main(flags)
        said.append(capsys.readouterr().out)
    tracked = ("--orders", "2", "--tracking.enabled", "true", "--tracking.uri", uri)
    sweep.main(SweepJob.flags(done.storage, task_data, small_backbone, "one", *tracked))  # its own command knows them
    assert ["4 trials are in MLflow" in one for one in said] == [True, True]
    client = MlflowClient(uri)
    runs = client.search_runs([client.get_experiment_by_name("condu_ray").experiment_id])
    assert [run.info.status for run in runs] == ["FINISHED"] * 5
    (parent,) = (run for run in runs if run.data.tags.get("kind") == "sweep")
    children = {run.info.run_id: run for run in runs if run is not parent}
    assert {run.data.tags["mlflow.parentRunId"] for run in children.values()} == {parent.info.run_id}
    last = {}
    for record in done.records.values():
        value = sum(record["accuracy"][-1]) / 3
        last.setdefault(record["method"], []).append(value)
        assert value in [pytest.approx(run.data.metrics["last"]) for run in children.values()]
    for method, values in last.items():
        assert parent.data.metrics[f"last/{method}"] == pytest.approx(sum(values) / len(values))


@pytest.mark.long
def test_trials_have_their_parent_where_mlflow_comes_up_after_the_sweep_began(tmp_path, task_data, small_backbone):
    from mlflow import MlflowClient

    place, uri = tmp_path / "db", f"sqlite:///{tmp_path}/db/mlflow.db"
    place.write_text("no folder yet")  # as a server that is not there yet
    flags = ("--orders", "1", "--tracking.enabled", "true", "--tracking.uri", uri, "--tracking.experiment", "late")
    job = SweepJob(tmp_path / "s", task_data, small_backbone, "one", *flags)
    try:
        job.wait_for(lambda: "its trials are sent when they are finished" in job.log.read_text(), timeout=200)
        place.unlink()
        place.mkdir()
        job.finish()
    finally:
        if job.process.poll() is None:
            job.stop()
    assert "MLflow answers again: 2 trials are in MLflow" in job.log.read_text()
    client = MlflowClient(uri)

    def runs():
        return client.search_runs([client.get_experiment_by_name("late").experiment_id])

    before = runs()
    (parent,) = (run for run in before if run.data.tags.get("kind") == "sweep")
    children = [run.data.tags.get("mlflow.parentRunId") for run in before if run is not parent]
    assert children == [parent.info.run_id] * 2
    assert {run.info.status for run in before} == {"FINISHED"}
    report.main(["one", "--storage", str(job.storage), "--sync-mlflow", "--tracking-uri", uri])
    assert len(runs()) == 3  # in the experiment that the sweep was given, and known there


def test_two_sweeps_make_one_report(done, tmp_path, capsys):
    storage = str(done.storage)
    other = shutil.copytree(done.folder, done.folder.with_name("other"))
    for record in sorted((other / "trials").glob("*.json"))[::2]:  # what is left is in both
        record.unlink()
    report.main(["one", "other", "--storage", storage, "--out", str(tmp_path), "--published"])
    found = json.loads((tmp_path / "sweep.json").read_text())
    assert {group["group"]: group["trials"] for group in found["groups"]} == dict.fromkeys(METHODS, 2)
    capsys.readouterr()
    report.main(["--storage", storage])
    assert "one" in capsys.readouterr().out


def test_another_sweep_under_the_same_name_is_refused(done, task_data, small_backbone, capsys):
    with pytest.raises(SystemExit) as end:
        sweep.main(SweepJob.flags(done.storage, task_data, small_backbone, "one", "--orders", "3"))
    assert end.value.code == 2
    assert "holds a sweep with other settings" in capsys.readouterr().err
