import builtins
import logging

import pytest
from mlflow import MlflowClient

from condu_ray.config import Experiment
from condu_ray.orchestration.watch.mlflow_experiment import log_params, log_report, open_experiment
from condu_ray.orchestration.watch.mlflow_patience import Patience


@pytest.mark.usefixtures("own_store")
def test_each_retry_of_a_request_is_no_word_of_its_own(tmp_path, monkeypatch):
    retries = logging.getLogger("urllib3.connectionpool")
    monkeypatch.setattr(retries, "level", logging.NOTSET)
    retries.manager._clear_cache()
    assert retries.isEnabledFor(logging.WARNING)
    open_experiment(Experiment(storage=tmp_path))
    assert not retries.isEnabledFor(logging.WARNING)


def test_more_parameters_than_mlflow_takes_at_once_keep_their_order_and_are_cut(tmp_path):
    client = MlflowClient(tracking_uri=f"sqlite:///{tmp_path / 'm.db'}")
    run = client.create_run(client.create_experiment("e")).info.run_id
    params = {f"k{(37 * number) % 250}": number for number in range(250)} | {"long": "x" * 9000}
    log_params(client, run, params)
    found = client.get_run(run).data.params
    assert found == {name: str(value)[:6000] for name, value in params.items()}
    assert list(found) == list(params)


@pytest.mark.usefixtures("own_store")
def test_the_import_of_mlflow_is_nothing_that_a_server_does(tmp_path, monkeypatch):
    """It takes a minute on a busy machine: no server is given up for it."""
    patience, asked = Patience("http://127.0.0.1:9"), []

    def imported(name, *rest):
        if name == "mlflow":
            asked.append(patience._asked)
        return original(name, *rest)

    original = builtins.__import__
    patience.asks()
    with monkeypatch.context() as patched:
        patched.setattr(builtins, "__import__", imported)
        open_experiment(Experiment(storage=tmp_path), patience)
    assert asked[0] is None
    assert patience._asked is not None


def test_a_report_is_attached_file_by_file_and_each_is_something_that_the_server_takes(tmp_path, monkeypatch):
    """The end of a run gives up a server that takes nothing, and not one that takes many pictures slowly."""
    (tmp_path / "out" / "plots").mkdir(parents=True)
    for name in ("report.md", "plots/a.png", "plots/b.png"):
        (tmp_path / "out" / name).write_text(name)
    client = MlflowClient(tracking_uri=f"sqlite:///{tmp_path / 'm.db'}")
    run = client.create_run(client.create_experiment("e", (tmp_path / "kept").as_uri())).info.run_id
    patience, asked = Patience("http://127.0.0.1:9"), []
    monkeypatch.setattr(patience, "asks", lambda: asked.append(len(list((tmp_path / "kept").rglob("*.*")))))
    log_report(client, run, tmp_path / "out", patience)
    assert asked == [0, 1, 2]
    found = (tmp_path / "kept" / run / "artifacts" / "report").rglob("*.*")
    assert {path.read_text() for path in found} == {"report.md", "plots/a.png", "plots/b.png"}
    assert (tmp_path / "kept" / run / "artifacts" / "report" / "plots" / "b.png").is_file()
