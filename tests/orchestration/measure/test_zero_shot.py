"""The check before the bill: go or stop, by theta0's accuracies, before anything is trained."""

from dataclasses import replace
from pathlib import Path

import pytest

from condu_ray.config import Experiment
from condu_ray.orchestration.cluster.room import Room
from condu_ray.orchestration.lanes.crew import RunError
from condu_ray.orchestration.measure.zero_shot import check_zero_shot
from condu_ray.orchestration.run import run
from condu_ray.plan.claim import claim
from condu_ray.plan.preflight import check
from condu_ray.store.layout import experts_folder, results_path
from condu_ray.store.measurements import Accuracy, write_measurement

NOWHERE = Room(*(None for _ in Room.__dataclass_fields__))  # type: ignore[arg-type]
"""No room for anything: what is in storage needs none."""


@pytest.fixture
def config(task_data, small_backbone, tmp_path, monkeypatch):
    row = {
        "source": "a paper",
        "order": ("walls", "doors", "cars"),
        "model": "tiny-clip",
        "accuracy": [[150.0] * 3] * 3,
    }
    monkeypatch.setattr("condu_ray.plan.claim.zero_shot", lambda paper: row if paper else None)
    return Experiment(
        data=task_data, pretrained=str(small_backbone), storage=tmp_path / "s", run="r", method="zero-shot,sequential",
        training={"steps": 2, "batch_size": 8}, paper="mtil",
    )  # fmt: skip


@pytest.fixture
def checked(config):
    checked = check(config)
    for one, correct in zip(claim(checked, "fp32").measurements, (150, 150, 148), strict=True):
        write_measurement(config.storage, one.key, Accuracy(correct, 200, 1.0))
    return checked


@pytest.fixture
def published(monkeypatch, config):
    def change(*accuracies, model="tiny-clip"):
        row = {"source": "a paper", "order": ("walls", "doors", "cars"), "accuracy": [list(accuracies)] * 3}
        monkeypatch.setattr("condu_ray.plan.claim.zero_shot", lambda paper: row | {"model": model} if paper else None)

    return change


def said(checked):
    lines = []
    check_zero_shot(checked, "fp32", NOWHERE, lines.append)
    return "\n".join(lines)


def test_go(checked, published):
    published(75.0, 75.5, 73.1)
    assert (
        said(checked) == "zero-shot accuracy is as published (a paper), the largest difference +0.9 points (cars): go"
    )


def test_stop(checked, published):
    published(75.0, 75.0, 80.0)
    with pytest.raises(RunError) as caught:
        said(checked)
    for words in (
        "cars is off by more than 1 point",
        "class names",
        "-6.0  off",
        "Nothing was trained",
        "--on_mismatch",
    ):
        assert words in str(caught.value)


def test_warn(checked, published):
    published(75.0, 75.0, 80.0)
    found = said(replace(checked, config=checked.config.model_copy(update={"on_mismatch": "warn"})))
    assert "cars is off by more than 1 point" in found
    assert "On it goes" in found


def test_what_cannot_be_compared_is_said_and_stops_nobody(checked, published):
    published(10.0, 10.0, 10.0, model="ViT-B-16")
    assert "not compared: they are of ViT-B-16, this run has tiny-clip" in said(checked)


def test_who_claims_nothing_is_not_checked(checked):
    assert said(replace(checked, config=checked.config.model_copy(update={"paper": None}))) == ""


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.long
def test_the_main_job_looks_before_it_trains(config, published, capsys):
    parts = {"tracking": config.tracking.model_copy(update={"enabled": False})}
    config = config.model_copy(update=parts | {"cluster": config.cluster.model_copy(update={"address": "local"})})
    with pytest.raises(RunError, match="not as published") as caught:
        run(config)
    assert all(f"{task} " in str(caught.value) for task in ("walls", "doors", "cars"))
    assert not list(Path(experts_folder(config.storage)).glob("*"))
    assert not Path(results_path(config.run_folder)).exists()
    found = run(config.model_copy(update={"on_mismatch": "warn"}))
    assert "On it goes" in capsys.readouterr().out
    assert found["experts_trained"] == 3
    zero = dict(zip(found["tasks"], found["methods"]["zero-shot"]["accuracy"][0], strict=True))
    assert found["zero_shot"]["measured"] == zero
    assert found["measurements_reused"] >= 9  # nine of zero-shot's are the three that were made before
    published(*zero.values())
    assert run(config)["experts_trained"] == 0  # from storage: nothing has to be measured to be compared
    assert "zero-shot accuracy is as published" in capsys.readouterr().out
