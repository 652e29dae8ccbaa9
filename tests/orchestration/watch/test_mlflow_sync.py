import json
from contextlib import nullcontext
from types import SimpleNamespace
from unittest.mock import MagicMock

import pytest

from condu_ray.config import Experiment
from condu_ray.orchestration.watch import mlflow_sync
from condu_ray.orchestration.watch.mlflow_address import TrackingError
from condu_ray.orchestration.watch.mlflow_sync import sync
from condu_ray.report.run_report import write_report
from condu_ray.store.artifacts import read_text
from condu_ray.store.layout import report_folder, results_path


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


def test_no_trial_is_sent_without_its_sweep(tmp_path, monkeypatch):
    """It would be nobody's, and there a second time once the server takes the sweep."""
    config = Experiment(storage=tmp_path, run="s")
    trial = SimpleNamespace(id="t", method="condu", order=("walls",))
    one = SimpleNamespace(name="s", kind="sweep", records=[{"trial": "t", "seconds": 1.0}], trials=[trial],
                          experiment=lambda storage: config)  # fmt: skip
    parent = MagicMock(run=None, complete=False)
    parent.__enter__.return_value = parent
    monkeypatch.setattr(mlflow_sync, "check", lambda config: SimpleNamespace(config=config, read={}))
    monkeypatch.setattr(mlflow_sync, "Parent", lambda *what: parent)
    send = MagicMock()
    monkeypatch.setattr(mlflow_sync, "_send", send)
    with pytest.raises(TrackingError, match="did not take all of s"):
        sync(tmp_path, one, f"sqlite:///{tmp_path}/mlflow.db")
    send.assert_not_called()


@pytest.mark.parametrize(("accuracy", "command"), [(50.0, "run"), (60.0, "report")])
def test_a_run_keeps_what_it_said_of_its_own_work(tmp_path, monkeypatch, accuracy, command):
    """Such as by which command; where storage has other accuracies than it says, all is written anew."""
    one = stored(tmp_path)
    config = one.experiment(tmp_path)

    def numbers(accuracy, command):
        methods = {"condu": {"accuracy": [[accuracy]], "transfer": float("nan"), "seconds": 1.0}}
        return {"tasks": ["walls"], "methods": methods, "command": command}

    write_report(numbers(50.0, "run"), report_folder(config.run_folder), pictures=False)
    monkeypatch.setattr(mlflow_sync, "check", lambda config: SimpleNamespace(config=config))
    monkeypatch.setattr(mlflow_sync, "finished_run", lambda checked: SimpleNamespace(plan=None, measured=()))
    monkeypatch.setattr(mlflow_sync, "Results", MagicMock())
    recorder = MagicMock(tracker=SimpleNamespace(complete=True))
    recorder.results.summary.return_value = numbers(accuracy, "report")
    monkeypatch.setattr(mlflow_sync, "Recorder", lambda *what: nullcontext(recorder))
    sync(tmp_path, one, f"sqlite:///{tmp_path}/mlflow.db")
    assert json.loads(read_text(results_path(config.run_folder)))["command"] == command
