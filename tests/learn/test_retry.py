"""A diverged expert begun again: lower rates, the same batches, and an end."""

from types import SimpleNamespace

import numpy as np
import pytest
import ray.train.torch

from condu_ray.benchmark import load_task
from condu_ray.config import Experiment
from condu_ray.learn.agreement import Agreement, Difference
from condu_ray.learn.loop import DivergedError, WorkersDifferError
from condu_ray.learn.retry import ATTEMPTS, local_stream, with_lower_rates
from condu_ray.methods import get
from condu_ray.orchestration.lanes import trainer as module
from condu_ray.orchestration.lanes.work import _train
from condu_ray.plan.expert import PlannedExpert
from condu_ray.vlm.model import backbone_spec


def planned(config):
    return PlannedExpert(config, "condu", "walls", 0, "key")


def settings(on_nan="retry-lower-lr", **training):
    rates = {"steps": 3, "batch_size": 8, "lr": 8.0, "lr_by_task": {"walls": 4.0}, "on_nan": on_nan}
    return Experiment(training=rates | training, lora={"lr": 2.0})


class Trainer:
    """Takes all batches, and diverges as long as the learning rate is too high; from an attempt on, workers differ."""

    def __init__(self, spec, limit, differ=99):
        self.backbone = SimpleNamespace(spec=spec)
        self.limit, self.differ, self.rates, self.batches = limit, differ, [], []

    def train(self, expert, stream, report, checkpoints=None, done=0):
        config = expert.config
        self.rates.append(config.training.lr_by_task["walls"])
        self.batches.append([next(stream)["image"] for _ in range(config.training.steps - 1)])
        if len(self.rates) >= self.differ:
            raise WorkersDifferError("task walls: rank 1 differs")
        if self.rates[-1] > self.limit:
            raise DivergedError("task walls: the loss became nan at step 2; lower the learning rate (4)")


@pytest.fixture
def task(task_data):
    return load_task(task_data / "walls")


@pytest.fixture
def spec(small_backbone):
    return backbone_spec(str(small_backbone))


def streams(config, task, spec, experts=2):
    """A lane's stream over some experts of the same batches."""
    for _ in range(experts):
        yield from local_stream(config, task, spec.preprocess)


def test_all_rates_are_lowered():
    lower = with_lower_rates(settings(), 0.25)
    assert (lower.training.lr, lower.training.lr_by_task, lower.lora.lr) == (2.0, {"walls": 1.0}, 0.5)
    assert with_lower_rates(Experiment(), 0.5).lora.lr is None  # it follows training.lr


@pytest.mark.parametrize(("limit", "rates"), [(4.0, [4.0]), (2.0, [4.0, 2.0]), (0.5, [4.0, 2.0, 1.0, 0.5])])
def test_it_is_tried_with_half_the_rate_on_the_same_batches(task, spec, limit, rates):
    config, trainer = settings(), Trainer(spec, limit)
    stream = streams(config, task, spec)
    _train(trainer, planned(config), stream, task, lambda progress: None)
    assert trainer.rates == rates
    for batches in trainer.batches[1:]:
        assert all(np.array_equal(a, b) for a, b in zip(batches, trainer.batches[0], strict=True))
    if len(rates) > 1:  # the next expert's batches are whole
        assert len(list(stream)) == config.training.steps


@pytest.mark.parametrize(("on_nan", "tries"), [("stop", 1), ("retry-lower-lr", 1 + ATTEMPTS)])
def test_it_ends_with_what_went_wrong_first(task, spec, on_nan, tries):
    config, trainer = settings(on_nan), Trainer(spec, 0.0)
    with pytest.raises(DivergedError, match="task walls: the loss became nan at step 2"):
        _train(trainer, planned(config), streams(config, task, spec), task, lambda progress: None)
    assert len(trainer.rates) == tries


@pytest.mark.parametrize("attempt", [1, 2])
def test_workers_that_differ_are_no_matter_of_the_rate(task, spec, attempt):
    config, trainer = settings(), Trainer(spec, 0.0, differ=attempt)
    with pytest.raises(WorkersDifferError, match="rank 1 differs"):
        _train(trainer, planned(config), streams(config, task, spec), task, lambda progress: None)
    assert len(trainer.rates) == attempt


@pytest.mark.parametrize("rank", [0, 1])
def test_workers_that_differ_publish_nothing(task, spec, tmp_path, monkeypatch, rank):
    monkeypatch.setattr(ray.train.torch, "prepare_model", lambda model: model)
    monkeypatch.setattr(Agreement, "difference", lambda self: Difference((1,), (0,), ("visual.proj",)))
    config = settings().model_copy(update={"storage": tmp_path / "storage"})
    trainer = module.Trainer(spec, {"walls": task}, precision="fp32", rank=rank, world=2, device="cpu")
    with pytest.raises(
        WorkersDifferError, match=r"task walls: .* at step 3, .* rank 1 differs from rank 0 in visual\.proj"
    ):
        _train(trainer, planned(config), streams(config, task, spec), task, lambda progress: None)
    assert not (tmp_path / "storage").exists()


def test_an_expert_that_may_have_been_begun_again_is_another_one():
    keys = [str(get("condu", settings(on_nan)).training.identity_for("walls")) for on_nan in ("stop", "retry-lower-lr")]
    assert keys[0] != keys[1]
    assert "on_nan" not in keys[0]  # experts of before this setting keep their keys


def test_several_workers_cannot_begin_anew():
    with pytest.raises(ValueError, match="needs workers 1"):
        settings(workers=2)
