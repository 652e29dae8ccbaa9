from contextlib import nullcontext
from types import SimpleNamespace
from unittest.mock import MagicMock

import pytest

from condu_ray.config import Experiment
from condu_ray.orchestration.watch import mlflow_sync
from condu_ray.orchestration.watch.mlflow_address import TrackingError
from condu_ray.orchestration.watch.mlflow_sync import sync


def stored(tmp_path):
    config = Experiment(storage=tmp_path, run="r")
    return SimpleNamespace(name="r", kind="run", records=[{"seconds": 1.0}], experiment=lambda storage: config)


def test_nothing_is_said_to_be_in_mlflow_where_no_server_answers(tmp_path):
    with pytest.raises(TrackingError, match=r"127\.0\.0\.1:9: no server answers there"):
        sync(tmp_path, stored(tmp_path), "http://127.0.0.1:9")


def test_what_mlflow_did_not_take_is_not_said_to_be_there(tmp_path, monkeypatch):
    """The server goes away while it is told: a tracker warns of that, and costs a run nothing."""
    monkeypatch.setattr(mlflow_sync, "check", lambda config: SimpleNamespace(config=config))
    monkeypatch.setattr(mlflow_sync, "finished_run", lambda checked: SimpleNamespace(plan=None, measured=()))
    monkeypatch.setattr(mlflow_sync, "Results", MagicMock())
    monkeypatch.setattr(mlflow_sync, "write_report", MagicMock())
    recorder = MagicMock(tracker=SimpleNamespace(complete=False))
    monkeypatch.setattr(mlflow_sync, "Recorder", lambda *what: nullcontext(recorder))
    one = stored(tmp_path)
    with pytest.raises(TrackingError, match="did not take all of r"):
        sync(tmp_path, one, f"sqlite:///{tmp_path}/mlflow.db")
    recorder.tracker.complete = True
    assert sync(tmp_path, one, f"sqlite:///{tmp_path}/mlflow.db") == "is in MLflow"
