import logging

import pytest
from mlflow import MlflowClient

from condu_ray.config import Experiment
from condu_ray.orchestration.watch.mlflow_experiment import log_params, open_experiment


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
