"""The page "Add a method" is true: its code, in files of its own, plans, trains, merges and serves."""

import importlib
import re
import sys
from pathlib import Path

import pytest
import torch

import condu_ray.methods
from condu_ray import fine_tune, load_backbone, load_tasks
from condu_ray.config import Experiment, Training
from condu_ray.methods import METHODS, ModelState, get
from condu_ray.plan.sessions import plan_method

PAGE = Path(condu_ray.methods.__file__).with_name("README.md")


@pytest.fixture
def page(tmp_path, monkeypatch):
    """The page's two files, importable while a test runs."""
    rules, methods = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.S)
    (tmp_path / "my_rules.py").write_text(rules)
    (tmp_path / "my_methods.py").write_text(methods)
    monkeypatch.syspath_prepend(tmp_path)
    yield
    for name in ("median", "near-median"):
        METHODS.pop(name, None)
    for name in ("my_rules", "my_methods"):
        sys.modules.pop(name, None)
    importlib.invalidate_caches()


def test_they_are_planned_with_experts_of_their_own_or_shared_ones(page, task_data):
    tasks, experts = load_tasks(task_data), {}
    for name in ("my_rules:median", "my_methods:NearMedian", "average"):
        plan = plan_method(get(name), Experiment(), tasks, "theta0", "fp32")
        experts[plan.method.name] = {expert.key for expert in plan.experts}
    assert experts["median"] == experts["average"]
    assert experts["near-median"].isdisjoint(experts["average"])


def test_it_trains_nearer_to_theta0_than_plain_fine_tuning(page, task_data, small_backbone):
    backbone, away = load_backbone(pretrained=str(small_backbone)), {}
    config = Experiment(training=Training(steps=8, lr=1e-2, batch_size=8, augment=False, precision="fp32"))
    for method in ("my_methods:NearMedian", "individual"):
        delta = fine_tune(backbone, load_tasks(task_data)[0], method=method, config=config)
        away[method] = sum(float(tensor.square().sum()) for tensor in delta.values())
    assert 0 < away["my_methods:NearMedian"] < away["individual"]


@pytest.mark.parametrize("name", ["my_rules:median", "my_methods:NearMedian"])
def test_they_serve_the_median(page, name):
    deltas = {
        key: {"w": torch.tensor(values)} for key, values in {"a": [1.0, 5.0], "b": [2.0, 0.0], "c": [9.0, 1.0]}.items()
    }
    method, state = get(name), ModelState()
    for key in deltas:
        state = state.after(key, key, key, method.merge(state, key, key, deltas.__getitem__))
    assert method.delta(state, "a", deltas.__getitem__)["w"].tolist() == [2.0, 1.0]
    assert sys.modules["my_rules"].median(deltas)["w"].tolist() == [2.0, 1.0]
