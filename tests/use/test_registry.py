"""A bundle in MLflow's registry: each session a version, loaded and asked in a process that has no Ray."""

import io
import os
import subprocess
import sys
from contextlib import nullcontext
from types import SimpleNamespace

import mlflow
import numpy as np
import pandas as pd
import pytest
from mlflow import MlflowClient
from PIL import Image

from condu_ray import Experiment, Predictor
from condu_ray.orchestration.watch import registry
from condu_ray.orchestration.watch.mlflow_address import sqlite_uri
from condu_ray.orchestration.watch.registry import register_bundle
from condu_ray.use.bundle import write_bundle

LOADED = """
import sys
sys.modules["ray"] = None
import mlflow, pandas as pd
uri, rows, out = sys.argv[1:]
mlflow.set_tracking_uri(uri)
model = mlflow.pyfunc.load_model("models:/taught/2")
import condu_ray
assert "/code/condu_ray/" in condu_ray.__file__, condu_ray.__file__
model.predict(pd.read_pickle(rows)).to_pickle(out)
"""


def pictures(count):
    images = []
    for seed in range(count):
        buffer = io.BytesIO()
        pixels = np.random.default_rng(seed).integers(0, 255, (20, 20, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(buffer, "PNG")
        images.append(buffer.getvalue())
    return images


def test_rows_of_several_tasks_are_answered_in_their_order(found, tmp_path):
    from condu_ray.orchestration.watch.bundle_model import BundleModel

    predictor = Predictor.load(found, method="condu")
    write_bundle(predictor.served, tmp_path / "bundle")
    model = BundleModel()
    model.load_context(SimpleNamespace(artifacts={"bundle": str(tmp_path / "bundle")}))
    images = pictures(3)
    rows = pd.DataFrame({"image": images, "task": ["doors", None, "doors"]}, index=[7, 5, 3])
    answers = model.predict(None, rows)
    assert list(answers.index) == [7, 5, 3]
    expected = [predictor.predict(image, task)[0] for image, task in zip(images, ("doors", None, "doors"), strict=True)]
    assert list(answers["class"]) == [one.label for one in expected]
    assert list(answers["task"]) == [one.task for one in expected]
    assert list(model.predict(None, rows[["image"]])["class"]) == [one.label for one in predictor.predict(images)]


def test_what_it_needs_can_be_installed_from_anywhere(monkeypatch):
    """Of torch's builds for a CPU alone, or one CUDA, `pip install torch==2.15.0+cpu` finds none on PyPI."""
    monkeypatch.setattr(registry, "version", lambda name: "2.15.0+cpu" if name == "torch" else "1.0")
    found = registry._requirements()
    assert found[0] == "torch==2.15.0"
    assert not [one for one in found if "+" in one]


def test_a_missing_picture_is_a_row_with_an_error_and_no_rows_have_the_columns(found, tmp_path):
    from condu_ray.orchestration.watch.bundle_model import BundleModel

    model = BundleModel()
    write_bundle(Predictor.load(found, method="condu").served, tmp_path / "bundle")
    model.load_context(SimpleNamespace(artifacts={"bundle": str(tmp_path / "bundle")}))
    (picture,) = pictures(1)
    answers = model.predict(None, pd.DataFrame({"image": [None, picture, float("nan")]}))
    assert answers["class"].isna().tolist() == [True, False, True]
    assert answers["error"].notna().tolist() == [True, False, True]
    none = model.predict(None, pd.DataFrame({"image": [], "task": []}))
    assert (len(none), list(none.columns)) == (0, list(answers.columns))


def test_a_version_says_where_it_comes_from_and_what_it_reaches_on_what_it_has_learned():
    accuracy = {"task": {"walls": 80.0, "doors": 65.0, "cars": 10.0}, "union": {"walls": 70.0, "doors": 50.0}}
    served = SimpleNamespace(
        state=SimpleNamespace(tasks=("walls", "doors"), id="state"), method=SimpleNamespace(name="condu"),
        backbone=SimpleNamespace(fingerprint="theta0"), about={"run": "r", "accuracy": accuracy},
    )  # fmt: skip
    assert registry._tags(served) == {
        "run": "r", "method": "condu", "session": "2", "tasks": "walls,doors", "state": "state", "backbone": "theta0",
        "accuracy/task/walls": "80.00", "accuracy/task/doors": "65.00", "accuracy/task/cars": "10.00",
        "accuracy/task": "72.50", "accuracy/union/walls": "70.00", "accuracy/union/doors": "50.00",
        "accuracy/union": "60.00",
    }  # fmt: skip


def test_the_address_that_it_tells_is_where_it_is_and_the_process_keeps_its_own(tmp_path, monkeypatch):
    """MLflow writes MLFLOW_TRACKING_URI where it is set, also back to a default that nobody gave."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr(mlflow, "start_run", lambda **_: nullcontext())
    monkeypatch.setattr(mlflow.pyfunc, "log_model", lambda **_: SimpleNamespace(registered_model_version=1))
    client = SimpleNamespace(set_model_version_tag=lambda *_: None)
    monkeypatch.setattr(registry, "open_experiment", lambda config: (client, "0"))
    monkeypatch.setattr(registry, "_example", lambda served: None)
    mlflow.set_tracking_uri(None)
    served = SimpleNamespace(
        name="r", about={}, state=SimpleNamespace(tasks=("walls",), id="state"),
        method=SimpleNamespace(name="condu", config=Experiment()), backbone=SimpleNamespace(fingerprint="theta0"),
    )  # fmt: skip
    line = register_bundle(tmp_path, "taught", served, storage=tmp_path / "storage")
    assert line == f"MLflow at {sqlite_uri(tmp_path / 'storage' / 'mlflow.db')}: models:/taught/1"
    assert "MLFLOW_TRACKING_URI" not in os.environ
    assert not mlflow.is_tracking_uri_set()


@pytest.mark.long
def test_each_session_is_a_version_that_predicts(found, tmp_path):
    uri, lines = sqlite_uri(tmp_path / "mlflow.db"), []
    for session in (1, 2):
        predictor = Predictor.load(found, method="condu", session=session)
        write_bundle(predictor.served, tmp_path / f"bundle{session}")
        lines.append(register_bundle(tmp_path / f"bundle{session}", "taught", predictor.served, uri, tmp_path))
    assert [line.rpartition(" ")[2] for line in lines] == ["models:/taught/1", "models:/taught/2"]
    tags = MlflowClient(tracking_uri=uri).get_model_version("taught", "1").tags
    assert (tags["session"], tags["method"], tags["tasks"]) == ("2", "condu", "walls,doors")
    assert tags["accuracy/task/doors"] == f"{found.matrix('condu').iloc[1]['doors']:.2f}"
    learned = found.matrix("condu").iloc[1][["walls", "doors"]].mean()
    assert float(tags["accuracy/task"]) == pytest.approx(learned, abs=0.01)

    images = pictures(3)
    rows = pd.DataFrame({"image": [*images, b"none"], "task": ["doors", None, "walls", None]}, index=[7, 5, 3, 1])
    rows.to_pickle(tmp_path / "rows")
    command = [sys.executable, "-c", LOADED, uri, str(tmp_path / "rows"), str(tmp_path / "out")]
    subprocess.run(command, check=True, cwd=tmp_path, env={"PATH": "", "HOME": str(tmp_path)})
    answers = pd.read_pickle(tmp_path / "out")
    assert list(answers.index) == [7, 5, 3, 1]
    expected = [predictor.predict(image, task)[0] for image, task in zip(images, ("doors", None, "walls"), strict=True)]
    assert list(answers["class"])[:3] == [one.label for one in expected]
    assert answers["probability"].to_numpy()[:3] == pytest.approx([one.probability for one in expected], abs=1e-4)
    assert answers["error"].iloc[3] == "is not an image in a known format"
    assert answers["class"].isna().tolist() == [False, False, False, True]
