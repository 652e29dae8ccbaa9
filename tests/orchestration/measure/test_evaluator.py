"""What an evaluator refuses to measure, and reads once for all that it measures."""

import shutil
from dataclasses import replace

import pytest
import torch

from condu_ray import open_run
from condu_ray.benchmark.content import ChangedError
from condu_ray.config import Experiment
from condu_ray.learn.routing import prototypes_of
from condu_ray.methods.base import ModelState
from condu_ray.orchestration.measure.evaluator import Measurer
from condu_ray.plan.claim import BEFORE
from condu_ray.plan.measurement import Measurement
from condu_ray.plan.preflight import check
from condu_ray.plan.run_plan import plan_run
from condu_ray.plan.stored_run import StoredRun
from condu_ray.store.experts import save_expert
from condu_ray.use.served import served_run
from condu_ray.vlm.mixture import Mixture
from condu_ray.vlm.model import backbone_spec, load_backbone
from tests.learnt import learn_here


def test_images_that_were_written_anew_are_measured_by_nobody(task_data, small_backbone, tmp_path, monkeypatch):
    data = shutil.copytree(task_data, tmp_path / "data")
    checked = check(Experiment(storage=tmp_path / "storage", data=data, pretrained=str(small_backbone)))
    folders = {task.name: task.folder for task in checked.tasks}
    measurer = Measurer(checked.spec, checked.config, "fp32", folders, False, contents=checked.contents)
    unseen = Measurement(checked.config, "zero-shot", BEFORE, "cars", False, "task", "key")
    assert measurer.measure(unseen).images > 0
    shutil.copy(data / "walls" / "test.parquet", data / "cars" / "test.parquet")
    with pytest.raises(ChangedError, match=r"cars/test\.parquet: is not what it was"):
        measurer.measure(unseen)
    routed = Measurement(checked.config, "condu", BEFORE, "walls", False, "task", "key")
    monkeypatch.setattr(measurer, "_state", lambda method, entry: ModelState("state", ("walls",), ("expert",)))
    shutil.copy(data / "cars" / "train.parquet", data / "walls" / "train.parquet")
    with pytest.raises(ChangedError, match=r"walls/train\.parquet: is not what it was"):
        measurer.measure(routed)


def test_prototypes_are_read_once_for_all_sessions_and_protocols(task_data, small_backbone, tmp_path, monkeypatch):
    read = []

    def counted(storage, backbone, task, options):
        read.append(task.name)
        return prototypes_of(storage, backbone, task, options)

    monkeypatch.setattr("condu_ray.orchestration.measure.evaluator.prototypes_of", counted)
    settings = {"storage": tmp_path / "storage", "data": task_data, "pretrained": str(small_backbone)}
    learn_here(Experiment(**settings, method=("condu", "average"), protocol=("task", "union")))
    assert sorted(read) == ["cars", "doors", "walls"]


def test_theta0_in_a_triggers_place_says_nothing_of_the_expert(task_data, small_backbone, tmp_path):
    """Its measurement is `zero-shot`'s, and that of every run: whoever comes first, the same is kept."""
    settings = {"storage": tmp_path / "storage", "data": task_data, "pretrained": str(small_backbone)}
    settings |= {"tasks": ("walls", "doors"), "validation_share": 0.25, "evaluation": {"first_session": "pretrained"}}
    results = learn_here(Experiment(**settings, method=("condu", "zero-shot")))
    first, later = (results.session("condu", "task", place).found["walls"] for place in (0, 1))
    assert first == results.session("zero-shot", "task", 0).found["walls"]
    assert (first.relative_l2, first.rescaler, first.temperature, first.calibration_before) == (None,) * 4
    assert None not in (later.temperature, later.relative_l2)


def test_the_first_expert_is_as_calibrated_whoever_asks_first(task_data, small_backbone, tmp_path):
    """`sequential` has the same weights after its first session, so that it is the same measurement."""
    found = []
    for methods in (("sequential", "individual"), ("individual", "sequential")):
        settings = {"storage": tmp_path / methods[0], "data": task_data, "pretrained": str(small_backbone)}
        settings |= {"tasks": ("walls", "doors"), "validation_share": 0.25, "run": "both"}
        results = learn_here(Experiment(**settings, method=methods))
        found.append(replace(results.session("individual", "task", 1).found["walls"], seconds=0.0))
        shown = results.summary(1.0, reused=0, trained=0)["methods"]
        assert [one["task"] for one in shown["individual"]["calibration"]] == ["walls", "doors"]
        assert "calibration" not in shown["sequential"]
        run = open_run(tmp_path / methods[0], "both")
        assert "temperatures" not in served_run(run, "sequential").about
        assert served_run(run, "individual").about["temperatures"].keys() == {"walls", "doors"}
    assert found[0] == found[1]
    assert None not in (found[0].temperature, found[0].calibration_before, found[0].calibration_after)


def test_an_expert_of_two_tasks_has_a_temperature_of_each(task_data, small_backbone, tmp_path):
    """As of a checkpoint that was imported for both: which is measured first does not count."""
    backbone, found = load_backbone(backbone_spec(pretrained=str(small_backbone))), dict[str, float]()
    seed = torch.Generator().manual_seed(4)  # for which both temperatures are within their bounds
    delta = {name: 0.2 * torch.randn(one.shape, generator=seed) for name, one in backbone.snapshot().items()}
    for tasks in (("walls",), ("doors",), ("walls", "doors")):
        storage = tmp_path / "-".join(tasks)
        save_expert(storage, "both", delta, {"task": "walls", "backbone": backbone.fingerprint, "seconds": 0.0})
        settings = {"storage": storage, "data": task_data, "pretrained": str(small_backbone), "tasks": tasks}
        settings |= {"imported": dict.fromkeys(tasks, "both"), "validation_share": 0.25, "method": ("individual",)}
        last = learn_here(Experiment(**settings)).session("individual", "task", len(tasks) - 1).found
        found |= {f"{task}, one of {len(tasks)}": last[task].temperature for task in tasks}
    assert found["walls, one of 1"] != found["doors, one of 1"]
    assert all(found[f"{task}, one of 1"] == found[f"{task}, one of 2"] for task in ("walls", "doors"))


def test_a_sweeps_evaluator_measures_by_the_trials_own_order(task_data, small_backbone, tmp_path, monkeypatch):
    """White is of cars and doors, which nobody has learned yet: the prompt of the first of them stands for it."""
    chances = []
    monkeypatch.setattr(Mixture, "predicted", lambda self: chances.append(self.chance) or self.chance.argmax(dim=1))
    config = Experiment(
        storage=tmp_path, data=task_data, pretrained=str(small_backbone), tasks=("walls", "cars", "doors"),
        method=("condu-sign",), protocol=("union",),
    )  # fmt: skip
    learn_here(config)
    checked = check(config)
    wanted = next(one for one in StoredRun(plan_run(checked, "fp32")).wanted if one.task == "cars")
    for names in (("walls", "cars", "doors"), ("walls", "doors", "cars")):
        folders = {name: task_data / name for name in names}
        Measurer(checked.spec, config.absolute(), "fp32", folders, False, contents=checked.contents).measure(wanted)
    assert torch.equal(*chances[-2:])
