"""The benchmark of evaluation by a small run: both sides agree on every cell, and one that differs is told."""

import json

import pytest

from condu_ray.learn import features as features_module
from jobs.bench import evaluation
from tests.use.conftest import found, storage  # noqa: F401


@pytest.fixture
def run(storage, tmp_path, capsys):  # noqa: F811
    def measure(*more):
        arguments = ["r", "--storage", str(storage), "--repeats", "1", "--json", str(tmp_path / "f.json"), *more]
        evaluation.main(arguments)
        return json.loads((tmp_path / "f.json").read_text()), capsys.readouterr().out

    return measure


def test_all_cells_are_compared_and_a_row_a_protocol_is_printed(run):
    numbers, said = run("--method", "condu", "individual", "--images", "6", "--tasks")
    assert set(numbers) == {"settings", "matrix"}
    rows = numbers["matrix"]["condu"]
    assert [(row["protocol"], row["cells"]) for row in rows] == [("task", 9), ("union", 9), ("all", 18)]
    assert all(row["times"] == pytest.approx(row["cell by cell"] / row["matrix"]) for row in rows)
    assert [row["protocol"] for row in numbers["matrix"]["individual"]] == ["task"]
    assert said.count("\n") == 2 + 3 + 1


def test_a_cell_that_differs_ends_it_before_a_time_is_printed(run, monkeypatch):
    original = features_module.image_features
    monkeypatch.setattr(features_module, "image_features", lambda *args: -original(*args))
    with pytest.raises(SystemExit, match=r"condu, session 3, \w+, task: \d+ images right, cell by cell \d+"):
        run("--sessions", "3", "--every", "2", "--tasks")


@pytest.mark.long
def test_one_model_answers_as_so_many_models_do(run):
    numbers, _ = run("--sessions", "3", "--every", "9", "--tasks", "3", "--top_k", "2")
    (row,) = numbers["experts"]
    assert row["tasks"] == 3
    assert row["one_mib"] > 0 < row["times"]
