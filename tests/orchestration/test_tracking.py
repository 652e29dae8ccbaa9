import logging
import time

from condu_ray.config import Experiment, Tracking
from condu_ray.orchestration.tracking import Tracker, flatten, tracking_uri


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
