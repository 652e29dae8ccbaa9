"""What a run claims of a paper's figures, and what storage has measured of it."""

from dataclasses import replace

import pytest

from condu_ray.benchmark import load_tasks
from condu_ray.config import Evaluation, Experiment
from condu_ray.methods import ModelState, get
from condu_ray.plan.claim import claim
from condu_ray.plan.measurement import measurement_key
from condu_ray.plan.preflight import Checked
from condu_ray.report import published
from condu_ray.store.ledger import ROOT
from condu_ray.store.measurements import Accuracy, write_measurement
from condu_ray.vlm.model import backbone_spec

ROW = {"source": "a paper", "order": ("walls", "boats", "cars"), "accuracy": [[50.0, 20.0, 75.0]] * 3, "model": "tiny"}


@pytest.fixture
def checked(task_data, tmp_path, small_backbone, monkeypatch):
    monkeypatch.setattr("condu_ray.plan.claim.zero_shot", lambda paper: ROW if paper else None)
    config = Experiment(paper="mtil", model="tiny", storage=tmp_path)
    return Checked(config, tuple(load_tasks(task_data)), backbone_spec(pretrained=str(small_backbone)), "theta0")


def changed(checked, **change):
    return replace(checked, config=checked.config.model_copy(update=change))


def test_theta0_is_measured_as_the_method_zero_shot_is(checked):
    found = claim(checked, "fp32")
    assert found.published == {"walls": 50.0, "cars": 75.0}  # no other set has both
    assert [one.task for one in found.measurements] == ["walls", "cars"]
    method, after = get("zero-shot"), ModelState("later", ("walls",), (None,))
    for one, task in zip(found.measurements, (checked.tasks[0], checked.tasks[2]), strict=True):
        assert one.entry.state == ROOT
        assert one.key == measurement_key(checked.config, "theta0", "fp32", method, after, task, True)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model": "ViT-L-14"}, ["of tiny", "ViT-L-14"]),
        ({"evaluation": Evaluation(max_images=100)}, ["all test images", "100"]),
        ({"measure_on": "validation"}, ["over test images", "validation images"]),
    ],
)
def test_what_cannot_be_compared_says_why(checked, change, words):
    found = claim(changed(checked, **change), "fp32")
    assert found.measurements == ()
    assert found.measured() is None
    for word in words:
        assert word in found.why_not


def test_other_data_sets_cannot_be_compared(checked):
    assert "none of these" in claim(replace(checked, tasks=checked.tasks[1:2]), "fp32").why_not


def test_the_activation_is_no_part_of_what_is_compared(checked):
    assert len(claim(changed(checked, model="tiny-quickgelu"), "fp32").measurements) == 2


def test_a_run_that_claims_nothing_has_nothing_to_show(checked):
    assert claim(changed(checked, paper=None), "fp32") is None


def test_what_storage_has(checked):
    found = claim(checked, "fp32")
    for one, correct in zip(found.measurements, (30, 70), strict=True):
        assert found.measured() is None
        write_measurement(checked.config.storage, one.key, Accuracy(correct, 100, 1.0))
    assert found.measured() == {
        "source": "a paper", "published": {"walls": 50.0, "cars": 75.0}, "measured": {"walls": 30.0, "cars": 70.0},
    }  # fmt: skip


def test_what_is_published_of_mtil():
    row = published.zero_shot("mtil")
    found = dict(zip(row["order"], row["accuracy"][0], strict=True))
    assert (found["aircraft"], found["oxford_pets"], found["sun397"]) == (24.3, 89.0, 65.2)
    assert sum(found.values()) / len(found) == pytest.approx(65.3, abs=0.05)
    assert row["model"] == "ViT-B-16"
