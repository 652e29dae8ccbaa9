"""The main job on a local Ray cluster: the whole way, the same command again, and kills."""

import json
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.torch import load_file

from condu_ray.benchmark import load_task
from condu_ray.benchmark.check import known_verdict
from condu_ray.commands.run import main
from condu_ray.config import Experiment, Training
from condu_ray.learn.lesson import Lesson
from condu_ray.learn.loop import DivergedError, fine_tune
from condu_ray.learn.objective import ClipClassifier, Objective
from condu_ray.learn.retry import local_stream
from condu_ray.store.layout import receipt_path, run_folder
from condu_ray.store.results import read_rows
from condu_ray.vlm.model import backbone_spec, load_backbone
from tests.orchestration.job import Called, Job

pytestmark = [pytest.mark.ray, pytest.mark.slow]
ROOT = Path(__file__).parents[2]
METHODS = "condu,sequential,individual,zero-shot"
TASKS = ["walls", "doors", "cars"]
BY_CLUSTER = ("--cluster.check_above", "0")
"""Has the cluster check the images."""


def called(storage, *given, **more):
    """A run in this process."""
    return Called(main, Job.flags(storage, *given, **more), storage)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, task_data, small_backbone, local_cluster):
    storage = tmp_path_factory.mktemp("run") / "s"
    job = called(storage, task_data, small_backbone, *BY_CLUSTER, method=METHODS, lanes=2)
    return job, job.finish()


@pytest.mark.long  # a run more; that the cluster looks at images is in the undisturbed one
def test_an_image_that_cannot_be_used_ends_a_run_that_has_begun_and_loses_nothing(
    undisturbed, tmp_path, task_data, small_backbone
):
    data = shutil.copytree(task_data, tmp_path / "data")
    test = data / "cars" / "test.parquet"
    table = pq.read_table(test)
    pq.write_table(table.set_column(0, "image", pa.array([*table["image"].to_pylist()[:-1], b"no picture"])), test)
    job = Job(tmp_path / "s", data, small_backbone, *BY_CLUSTER, "--tracking.enabled", "false")
    assert job.process.wait(240) != 0
    assert "images are checked, once" not in job.log.read_text()  # as the driver says before anything starts
    assert f"cars/test.parquet: 1 of {len(table)} images cannot be used: row {len(table) - 1}" in job.log.read_text()
    assert known_verdict(load_task(data / "cars"), tmp_path / "s" / "checked") is None
    assert known_verdict(load_task(task_data / "cars"), undisturbed[0].storage / "checked") == []


def runs_in_mlflow(storage):
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{storage}/mlflow.db")
    experiment = client.get_experiment_by_name("condu_ray")
    return client, client.search_runs([experiment.experiment_id])


def test_results_have_the_form_that_others_rely_on(undisturbed):
    job, results = undisturbed
    assert results["tasks"] == TASKS
    assert list(results["methods"]) == METHODS.split(",")
    for found in results["methods"].values():
        assert [len(row) for row in found["accuracy"]] == [3, 3, 3]
        assert all(0 <= value <= 100 for row in found["accuracy"] for value in row)
        assert {"transfer", "average", "last", "seconds"} <= set(found)
    assert (job.storage / "runs" / "r" / "report" / "report.md").exists()
    assert len(list((job.storage / "runs" / "r" / "report").glob("*.png"))) >= 5
    assert "condu" in job.log.read_text()


def test_each_expert_was_trained_once(undisturbed):
    job, results = undisturbed
    assert len(job.experts) == results["experts_trained"] == 5  # three from theta0, two more of the chain


def test_the_matrix_is_what_the_methods_are(undisturbed):
    matrix = {name: found["accuracy"] for name, found in undisturbed[1]["methods"].items()}
    zero = matrix["zero-shot"][0]
    assert matrix["zero-shot"] == [zero] * 3
    for session in range(3):
        for task in range(3):
            learned = task <= session
            assert matrix["individual"][session][task] == (matrix["individual"][2][task] if learned else zero[task])
    assert matrix["sequential"][0][0] == matrix["individual"][0][0] == matrix["condu"][0][0]
    assert matrix["individual"][2] != zero


def test_rows_say_where_they_come_from(undisturbed):
    job, results = undisturbed
    rows = read_rows(job.storage / "runs" / "r" / "results")
    assert len(rows) == 4 * 9
    for row in rows:
        expected = results["methods"][row["method"]]["accuracy"][row["session"]][row["task_position"]]
        assert row["accuracy"] == expected == pytest.approx(100 * row["correct"] / row["images"])
        assert row["protocol"] == "task"
        assert (row["relative_l2"] is not None) == (row["method"] == "condu" and row["seen"])
    first = next(row for row in rows if row["relative_l2"] is not None)
    assert first["relative_l2"] < 1e-6  # one task alone is brought back whole


def test_mlflow_has_one_run_a_method(undisturbed):
    job, results = undisturbed
    client, runs = runs_in_mlflow(job.storage)
    assert sorted(run.data.tags["method"] for run in runs) == sorted(METHODS.split(","))
    for run in runs:
        found = results["methods"][run.data.tags["method"]]
        assert run.info.status == "FINISHED"
        assert run.data.metrics["last"] == pytest.approx(found["last"])
        assert run.data.params["order"] == ",".join(TASKS)
        assert [m.value for m in client.get_metric_history(run.info.run_id, "task_accuracy/cars")] == [
            row[2] for row in found["accuracy"]
        ]
        assert "results.json" in {Path(f.path).name for f in client.list_artifacts(run.info.run_id, "report")}


def test_the_same_command_ends_at_once_and_changes_nothing(undisturbed, task_data, small_backbone):
    job, results = undisturbed
    before = job.final
    again = called(job.storage, task_data, small_backbone, *BY_CLUSTER, method=METHODS, lanes=2)
    assert again.finish() == results  # the report is as it was written
    assert "finished before" in again.log.read_text()
    assert job.final == before
    Path(receipt_path(run_folder(job.storage, "r"))).unlink()
    looked = called(job.storage, task_data, small_backbone, method=METHODS, lanes=2).finish()
    assert looked["experts_trained"] == 0
    assert looked["measurements_reused"] == 4 * 9
    assert {n: m["accuracy"] for n, m in looked["methods"].items()} == {
        n: m["accuracy"] for n, m in results["methods"].items()
    }
    assert job.final == before
    assert len(runs_in_mlflow(job.storage)[1]) == 4


@pytest.mark.long  # a whole run; that a sweep trains an expert once for all orders is in make test
def test_another_order_and_inference_train_nothing_anew(undisturbed, task_data, small_backbone):
    job, results = undisturbed
    flags = ("--tasks", "cars,walls,doors", "--inference.top_k", "1")
    other = Job(job.storage, task_data, small_backbone, *flags, method="condu,individual").finish()
    assert other["experts_trained"] == 0
    last = {name: dict(zip(other["tasks"], m["accuracy"][2], strict=True)) for name, m in other["methods"].items()}
    assert last["individual"] == dict(zip(TASKS, results["methods"]["individual"]["accuracy"][2], strict=True))


@pytest.mark.long  # two runs; keys and rows are tested without Ray in tests/plan
def test_a_run_on_validation_images_says_so_and_its_experts_are_tested_as_they_are(tmp_path, task_data, small_backbone):
    flags = ("--validation_share", "0.25", "--measure_on")
    job = Job(tmp_path / "s", task_data, small_backbone, *flags, "validation", steps=3)
    results = job.finish()
    assert results["measured_on"] == "validation"
    assert {(row["measured_on"], row["images"]) for row in read_rows(job.storage / "runs" / "r" / "results")} == {
        ("validation", count) for count in (6, 4, 8)
    }
    assert {run.data.tags["measured_on"] for run in runs_in_mlflow(job.storage)[1]} == {"validation"}
    assert "validation images" in (job.storage / "runs" / "r" / "report" / "report.md").read_text()
    tested = Job(job.storage, task_data, small_backbone, *flags, "test", steps=3).finish()
    assert (tested["measured_on"], tested["experts_trained"]) == ("test", 0)
    assert {row["images"] for row in read_rows(job.storage / "runs" / "r" / "results")} == {24, 16, 32}


@pytest.fixture
def job(tmp_path, task_data, small_backbone):
    found = Job(tmp_path / "s", task_data, small_backbone, "--tracking.enabled", "false")
    yield found
    if found.process.poll() is None:
        found.stop()


def test_worker_state_actor_and_driver_killed_in_turn_change_no_bit(undisturbed, job, task_data, small_backbone):
    job.wait_for(lambda: len(job.experts) == 1)
    assert job.kill("train worker") == 1
    assert len(job.experts) < 3
    job.wait_for(lambda: len(job.merges) == 1)
    assert job.kill("state actor") == 1
    job.wait_for(lambda: len(job.experts) == 2)
    assert len(job.merges) < 3
    assert job.kill("machine") > 1  # the driver, and all that it started
    kept = {key: (job.storage / "experts" / key / "delta.safetensors").stat().st_mtime_ns for key in job.experts}
    merged = job.merges
    again = Job(job.storage, task_data, small_backbone, "--tracking.enabled", "false")
    results = again.finish()
    assert results["experts_trained"] == 3 - len(kept)
    assert [entry["task"] for entry in again.merges] == TASKS  # each merged once
    assert again.merges[: len(merged)] == merged  # to the second
    unified, experts = again.final
    assert unified == undisturbed[0].final[0]
    assert experts.items() <= undisturbed[0].final[1].items()
    for key, written in kept.items():
        assert (job.storage / "experts" / key / "delta.safetensors").stat().st_mtime_ns == written


def test_a_loss_that_is_not_a_number_stops_the_run_with_task_and_step(
    tmp_path, task_data, small_backbone, local_cluster
):
    flags = ("--tracking.enabled", "false", "--training.lr", "1e30")
    job = called(tmp_path / "s", task_data, small_backbone, *flags)
    text = " ".join(job.code.split())  # which Python prints, and ends with 1
    assert "the loss became" in text
    assert "at step" in text
    assert "Nothing that was committed is lost" in text
    assert job.experts == []
    assert job.merges == []


@pytest.fixture
def too_high(task_data, small_backbone):
    """A learning rate at which training on doors loses its numbers, and at a quarter of which it does not."""
    spec = backbone_spec(pretrained=str(small_backbone))
    task, low, high = load_task(task_data / "doors"), 1.0, 1e9
    while high > 1.05 * low:
        rate = (low * high) ** 0.5
        training = Training(steps=40, batch_size=8, lr=rate)
        backbone = load_backbone(spec)
        settings = {"settings": training, "config": Experiment(training=training), "precision": "fp32", "seed": 0}
        lesson = Lesson(task, 0, backbone, backbone.snapshot(), backbone.trainable, **settings)
        stream = local_stream(lesson.config, task, spec.preprocess)
        try:
            fine_tune(ClipClassifier(backbone.model), stream, Objective(lesson))
        except DivergedError:
            high = rate
        else:
            low = rate
    return 3 * high  # half of it is too high as well, a quarter is not


@pytest.mark.long
def test_a_rate_that_is_too_high_is_lowered_for_its_expert_alone(tmp_path, task_data, small_backbone, too_high):
    flags = ("--training.precision", "fp32", "--training.lr_by_task", json.dumps({"doors": too_high}))
    flags += ("--tracking.enabled", "false", "--training.on_nan")
    stopped = Job(tmp_path / "s", task_data, small_backbone, *flags, "stop")
    try:
        assert stopped.process.wait(240) == 1
    finally:
        stopped.stop()
    assert "task doors: the loss became" in " ".join(stopped.log.read_text().split())
    before = [entry["task"] for entry in stopped.merges]
    assert before in ([], ["walls"])
    kept = stopped.experts
    assert len(kept) <= 1
    job = Job(tmp_path / "s", task_data, small_backbone, *flags, "retry-lower-lr")
    results = job.finish()
    assert [entry["task"] for entry in job.merges] == [*before, *TASKS]  # of experts that may be tried again
    assert results["experts_trained"] == 3 - len(kept)  # what did not diverge is not trained again
    assert len(job.experts) == 3 + len(kept)
    for key in job.experts:
        for name, tensor in load_file(job.storage / "experts" / key / "delta.safetensors").items():
            assert tensor.isfinite().all(), (key, name)
