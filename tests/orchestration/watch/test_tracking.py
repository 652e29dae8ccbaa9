import logging
import time

from condu_ray.config import Experiment, Tracking
from condu_ray.orchestration.watch.tracking import Tracker, flatten, tracking_uri


def test_the_default_store_is_an_absolute_file_below_storage(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    assert tracking_uri(Experiment()) == f"sqlite:///{tmp_path}/storage/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    assert tracking_uri(Experiment()) == "http://127.0.0.1:1"
    assert tracking_uri(Experiment(tracking=Tracking(uri="sqlite:///x"))) == "sqlite:///x"


def test_settings_get_dotted_names():
    assert flatten({"a": 1, "b": {"c": 2, "d": {"e": 3}}, "f": {}}) == {"a": 1, "b.c": 2, "b.d.e": 3, "f": {}}


def test_a_dead_server_costs_a_warning_and_no_waiting(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "2")
    settings = Tracking(uri="http://user:secret@127.0.0.1:9")
    tracker = Tracker(Experiment(storage=tmp_path, tracking=settings), ["a"])
    begin = time.perf_counter()
    tracker.start("condu", "state")
    for session in range(1000):
        tracker.metrics("condu", session, {"last": 1.0})
    assert time.perf_counter() - begin < 0.5  # queueing alone
    with caplog.at_level(logging.WARNING):
        tracker.close(timeout=60)
    ours = [record.getMessage() for record in caplog.records if record.name.startswith("condu_ray")]
    assert len(ours) == 1
    assert "MLflow at http://127.0.0.1:9" in ours[0]
    assert "secret" not in ours[0]


def test_tracking_switched_off_makes_no_store(tmp_path):
    tracker = Tracker(Experiment(storage=tmp_path, tracking=Tracking(enabled=False)), ["a"])
    tracker.start("condu", "state")
    tracker.close()
    assert list(tmp_path.iterdir()) == []


def logged(tmp_path, *, labels=None, end="close"):
    """The runs that MLflow shows after one method was logged and ended in a way."""
    from mlflow import MlflowClient

    config = Experiment(storage=tmp_path, run="r")
    tracker = Tracker(config, ["a", "b"], labels=labels)
    tracker.start("condu", "state")
    tracker.metrics("condu", 1, {"last": 1.0})
    if end == "finish":
        (tmp_path / "report").mkdir(exist_ok=True)
        tracker.finish("condu", tmp_path / "report")
    (tracker.fail if end == "fail" else tracker.close)()
    client = MlflowClient(tracking_uri(config))
    return client.search_runs([client.get_experiment_by_name("condu_ray").experiment_id])


def test_a_run_that_failed_says_so_and_is_replaced_by_the_next(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (failed,) = logged(tmp_path, end="fail")
    assert failed.info.status == "FAILED"
    (done,) = logged(tmp_path, end="finish")
    assert done.info.status == "FINISHED"
    assert done.info.run_id != failed.info.run_id
    (still,) = logged(tmp_path, end="fail")  # found finished: nothing of it changes
    assert (still.info.run_id, still.info.status) == (done.info.run_id, "FINISHED")


def test_trials_of_a_sweep_differ_only_in_what_it_varies(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    labels = {"method": "condu", "order_name": "random-01", "seed": "0", "training.lr": "0.001"}
    (run,) = logged(tmp_path, labels=labels, end="finish")
    assert run.info.run_name == "condu, random-01, seed 0, training.lr=0.001"
    assert labels.items() <= run.data.params.items()
    assert not {"order", "tasks", "run"} & set(run.data.params)
    assert (run.data.tags["order"], run.data.tags["run"]) == ("a,b", "r")
