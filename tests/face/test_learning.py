"""Learning and measuring without Ray: against what a lane's trainer publishes, and refusals."""

import ast
import math
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

import condu_ray
from condu_ray import Experiment, evaluate, fine_tune, load_backbone, load_tasks
from condu_ray.benchmark import TaskError
from condu_ray.face import learning
from condu_ray.learn.retry import local_stream
from condu_ray.methods import get
from condu_ray.methods.registry import MethodError
from condu_ray.orchestration.lanes.trainer import Trainer
from condu_ray.plan.sessions import plan_method
from condu_ray.store.experts import load_expert
from tests.conftest import TASKS, give_label, write_task


@pytest.fixture
def backbone(small_backbone):
    return load_backbone(pretrained=str(small_backbone))


@pytest.fixture
def tasks(task_data):
    return load_tasks(task_data)


def settings(storage, **changes):
    training = {"steps": 3, "batch_size": 8, "lr": 1e-3, "precision": "fp32"}
    return Experiment.model_validate(
        {"training": training, "lora": {"rank": 4, "lr": 1e-2}, "storage": storage} | changes
    )


def test_prompts_that_are_cut_or_are_one_text_are_refused(tmp_path, backbone, tasks):
    walls, doors, _ = tasks
    long = replace(doors, templates=("a photo that somebody took of one of the many {}",))
    same = replace(doors, classes=("salt & pepper", "salt &amp; pepper"))
    for task, words in ((long, "2 of 2 prompts have more tokens"), (same, "are the same tokens")):
        with pytest.raises(TaskError, match=words):
            fine_tune(backbone, task, config=settings(tmp_path))
        with pytest.raises(TaskError, match=words):
            evaluate(backbone, walls, among=(walls, task))
    cut = replace(doors, templates=("a {} door, one of an old house in the town",))
    fine_tune(backbone, cut, config=settings(tmp_path, long_prompts="cut"))
    assert evaluate(backbone, cut, long_prompts="cut").images == doors.test_rows


@pytest.mark.parametrize("label", [-100, -1, 2, None])
def test_labels_that_are_no_class_are_refused(tmp_path, backbone, label):
    write_task(tmp_path / "doors", TASKS["doors"], 1)
    give_label(tmp_path / "doors" / "train.parquet", 3, label)
    give_label(tmp_path / "doors" / "test.parquet", 5, label)
    (task,) = load_tasks(tmp_path)
    with pytest.raises(TaskError, match=rf"train.parquet: row 3 has label {label}; write labels from 0 to 1"):
        fine_tune(backbone, task, config=settings(tmp_path / "storage"))
    with pytest.raises(TaskError, match=rf"test.parquet: row 5 has label {label}; write labels from 0 to 1"):
        evaluate(backbone, task)


def equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(
    ("name", "position", "arguments"),
    [
        ("condu", 0, {}),
        ("condu-lora", 0, {"lora": 4}),
        ("lwf", 0, {"method": "lwf"}),
        ("sequential", 1, {"method": "sequential"}),
        ("condu", 2, {"seed": 3, "lr": 1e-2, "steps": 2}),
    ],
)
def test_it_is_the_expert_that_a_lane_publishes(tmp_path, backbone, tasks, monkeypatch, name, position, arguments):
    monkeypatch.setattr("ray.train.torch.prepare_model", lambda model: model)
    base, start, theta0 = settings(tmp_path), None, backbone.snapshot()
    given = dict(arguments)
    changes = {key: given.pop(key) for key in ("steps", "lr") if key in given}
    config = settings(tmp_path, seed=arguments.get("seed", 0), training=base.training.model_dump() | changes)
    trainer = Trainer(
        backbone.spec, {task.name: task for task in tasks}, precision="fp32", rank=0, world=1, device="cpu"
    )
    experts = plan_method(get(name, config), config, tasks, backbone.fingerprint, "fp32").experts[: position + 1]
    for expert in experts if experts[-1].start else experts[-1:]:
        task = next(task for task in tasks if task.name == expert.task)
        trainer.train(expert, local_stream(config, task, backbone.spec.preprocess), lambda progress: None)
        start = load_expert(tmp_path, expert.start) if expert.start else None
    found = fine_tune(backbone, tasks[position], start=start, config=base, **arguments)
    assert equal(found, load_expert(tmp_path, experts[-1].key))
    assert equal(backbone.snapshot(), theta0)


def test_a_rate_that_is_given_wins_over_the_tasks_own(tmp_path, backbone, tasks):
    own = settings(tmp_path, training={"steps": 2, "precision": "fp32", "lr_by_task": {"walls": 1e-30}})
    assert equal(
        fine_tune(backbone, tasks[0], lr=1e-3, config=own),
        fine_tune(backbone, tasks[0], steps=2, lr=1e-3, config=settings(tmp_path, training={"precision": "fp32"})),
    )


def test_accuracy_is_counted_over_the_classes_asked_for(backbone, tasks):
    theta0 = backbone.snapshot()
    generator = torch.Generator().manual_seed(1)
    delta = {name: 0.3 * torch.randn(tensor.shape, generator=generator) for name, tensor in theta0.items()}
    own, zero = evaluate(backbone, tasks[0], delta), evaluate(backbone, tasks[0])
    others = [replace(task, classes=tuple(f"{name} {task.name}" for name in task.classes)) for task in tasks[1:]]
    among = evaluate(backbone, tasks[0], delta, among=[tasks[0], *others])  # no class of the same name, which counts
    assert own.images == among.images == zero.images == tasks[0].test_rows
    assert own.percent == 100 * own.correct / own.images
    assert among.correct <= own.correct
    assert evaluate(backbone, tasks[0], delta, max_images=3).images == 3
    assert equal(backbone.snapshot(), theta0)
    assert evaluate(backbone, tasks[0]).correct == zero.correct


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"method": "lwv"}, "did you mean lwf"),
        ({"method": "sequential", "lora": 4}, "leave out lora"),
        ({"method": "pam", "start": {}}, "leave out start"),
        ({"method": "zero-shot"}, "trains nothing"),
        ({"method": "icarl", "start": {}}, "exemplars"),
    ],
)
def test_what_cannot_be_trained_is_refused(backbone, tasks, arguments, message):
    with pytest.raises(MethodError, match=message):
        fine_tune(backbone, tasks[0], **arguments)


def test_a_delta_of_another_model_is_refused(backbone, tasks):
    with pytest.raises(ValueError, match="'other' is no parameter"):
        evaluate(backbone, tasks[0], {"other": torch.zeros(1)})
    with pytest.raises(ValueError, match="'other' is no parameter"):
        fine_tune(backbone, tasks[0], start={"other": torch.zeros(1)})
    with pytest.raises(ValueError, match="has no task walls"):
        evaluate(backbone, tasks[0], among=tasks[1:])


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (lambda tensor: tensor[:1], r"'visual.proj' has shape \(1, 16\), in backbone .* \(\d+, 16\)"),
        (lambda tensor: torch.ones(()), r"'visual.proj' has shape \(\)"),
        (lambda tensor: tensor * math.nan, "'visual.proj' holds nan"),
        (lambda tensor: tensor.numpy(), "'visual.proj' is a ndarray"),
    ],
)
def test_a_delta_that_torch_would_stretch_or_that_is_no_number_is_refused(backbone, tasks, changed, message):
    delta = {"visual.proj": changed(backbone.snapshot()["visual.proj"])}
    with pytest.raises(ValueError, match=message):
        evaluate(backbone, tasks[0], delta)
    with pytest.raises(ValueError, match=message):
        fine_tune(backbone, tasks[0], steps=1, method="sequential", start=delta)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"precision": "fp16"}, "precision 'fp16': expected one of auto, fp32, bf16"),
        ({"max_images": -1}, "max_images -1: give"),
    ],
)
def test_what_cannot_be_measured_is_refused(backbone, tasks, arguments, message):
    with pytest.raises(ValueError, match=message):
        evaluate(backbone, tasks[0], **arguments)


@pytest.mark.parametrize("given", [{"folder": ""}, {"folder": " "}, {"cache": ""}])
def test_an_empty_name_is_not_the_folder_one_is_in(given):
    (name,) = given
    with pytest.raises(TaskError, match=f"{name}: is empty; give the name of a folder"):
        load_tasks(**given)


def test_a_folder_below_home_is_one(task_data, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "mine").symlink_to(task_data)
    assert [task.name for task in load_tasks("~/mine")] == [*TASKS]
    drawn = []
    monkeypatch.setattr("condu_ray.face.learning.mini_mtil", lambda folder, tasks: drawn.append(folder))
    monkeypatch.setattr("condu_ray.benchmark.load_tasks", lambda folder, names: [])
    load_tasks(names=["faces"], cache="~/cache")
    assert drawn[0].parent == tmp_path / "cache"


def test_mini_mtil_is_drawn_into_the_cache_once(tmp_path, monkeypatch):
    few = partial(learning.mini_mtil, train_per_class=4, test_per_class=2)
    monkeypatch.setattr(learning, "mini_mtil", few)
    (task,) = load_tasks(names=["faces"], cache=tmp_path)
    drawn = task.train.stat()
    assert load_tasks(names=["faces"], cache=tmp_path)[0].train.stat() == drawn
    assert Path(task.folder).is_relative_to(tmp_path)
    assert task.classes


class TestNames:
    """What `condu_ray` itself offers; that it loads nothing heavy for its names: test_readme.py."""

    def test_type_checkers_see_the_same(self):
        tree = ast.parse(Path(condu_ray.__file__).read_text())
        (seen,) = [node for node in tree.body if isinstance(node, ast.If)]
        imported = {(node.module, alias.name) for node in seen.body for alias in node.names}
        assert {name for _, name in imported} == set(condu_ray.__all__)
        for module, name in imported:
            assert getattr(condu_ray, name) is getattr(sys.modules[module], name)

    def test_another_name_is_no_attribute(self):
        with pytest.raises(AttributeError, match="has no attribute 'load_backbon'"):
            condu_ray.load_backbon  # noqa: B018
