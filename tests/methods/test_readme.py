"""The page "Add a method" is true: its code adds a method that plans, trains, merges and serves."""

import re
import sys
import types
from pathlib import Path

import pytest
import torch

import condu_ray.methods
from condu_ray.benchmark import load_task, load_tasks
from condu_ray.config import Experiment, Training
from condu_ray.learn.chunks import ChunkReader, batches, training_chunks
from condu_ray.learn.lesson import Lesson
from condu_ray.learn.loop import fine_tune
from condu_ray.learn.objective import ClipClassifier
from condu_ray.methods import METHODS, ModelState, get
from condu_ray.plan.sessions import plan_method
from condu_ray.vlm.model import backbone_spec, load_backbone

PAGE = Path(condu_ray.methods.__file__).with_name("README.md")


@pytest.fixture
def median():
    """The page's class, registered while a test runs."""
    code = re.search(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.S).group(1)
    module = types.ModuleType("median_of_the_page")
    sys.modules[module.__name__] = module
    exec(compile(code, str(PAGE), "exec"), module.__dict__)
    yield get("median")
    del METHODS["median"], sys.modules[module.__name__]


def test_the_page_is_short():
    assert len(PAGE.read_text(encoding="utf-8").splitlines()) <= 60


def test_it_is_planned_with_experts_of_its_own(median, task_data):
    tasks = load_tasks(task_data)
    own = plan_method(median, Experiment(), tasks, "theta0", "fp32").items
    plain = plan_method(get("individual"), Experiment(), tasks, "theta0", "fp32").items
    assert {item.key for item in own}.isdisjoint({item.key for item in plain})


def test_it_trains_nearer_to_theta0_than_plain_fine_tuning(median, task_data, small_backbone):
    task, away = load_task(task_data / "walls"), {}
    for method in (median, get("individual")):
        backbone = load_backbone(backbone_spec(pretrained=str(small_backbone)))
        theta0, settings = backbone.snapshot(), Training(steps=8, lr=1e-2)
        lesson = Lesson(
            task=task, position=0, backbone=backbone, theta0=theta0, parameters=backbone.trainable,
            settings=settings, config=Experiment(), precision="fp32", seed=0,
        )  # fmt: skip
        reader = ChunkReader(backbone.spec.preprocess, augment=False)
        chunks = training_chunks(str(task.train), seed=0, steps=8, batch_size=8)
        fine_tune(ClipClassifier(backbone.model), batches(reader, chunks, 8), method.objective(lesson))
        after = backbone.snapshot()
        away[method.name] = sum(float((after[name] - theta0[name]).square().sum()) for name in theta0)
    assert 0 < away["median"] < away["individual"]


def test_it_serves_the_median(median):
    deltas = {
        key: {"w": torch.tensor(values)} for key, values in {"a": [1.0, 5.0], "b": [2.0, 0.0], "c": [9.0, 1.0]}.items()
    }
    state = ModelState()
    for key in deltas:
        state = state.after(key, key, key, median.merge(state, key, key, deltas.__getitem__))
    assert median.delta(state, "a", deltas.__getitem__)["w"].tolist() == [2.0, 1.0]
