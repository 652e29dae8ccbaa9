"""The benchmark of a training step by its small size: both sides in fresh processes, compared before they are timed."""

import json
import sys
from argparse import Namespace

import pytest

from jobs.bench import train

MEASURED = {
    "losses": [2.0, 1.0], "step": 0.5, "cpu": 0.5, "speed": 8.0, "memory": 100.0, "start": 1.0, "threads": 1,
    "of limit": 0.5,
}  # fmt: skip


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Runs the script here, children and all, or with children that are given; returns code, rows and what it says."""

    def run(*more, children=None, free=100.0):
        if children:
            monkeypatch.setattr(train, "measured", lambda options, size, classes, side: dict(children[side]))
        monkeypatch.setattr(train, "free", lambda device: free)
        monkeypatch.setattr(sys, "argv", ["train.py", *more, "--out", str(tmp_path / "rows.json")])
        code = train.main()
        return code, json.loads((tmp_path / "rows.json").read_text()), capsys.readouterr().out

    return run


def sides(**changes):
    whole = {side: MEASURED | {"precision": "fp32"} for side in train.SIDES}
    whole["condu_ray"] |= {"precision": "bf16", "speed": 24.0, "cpu": 0.25, "memory": 50.0}
    return {side: row | changes.get(side.replace(" ", "_"), {}) for side, row in whole.items()}


def test_rows_are_ratios_to_the_public_way(run):
    code, rows, said = run("--sizes", "small", "--classes", "10", children=sides())
    assert code == 0
    assert [row["side"] for row in rows] == ["public", "condu_ray fp32", "condu_ray bf16"]
    assert [(row["times"], row["cpu times"], row["less"]) for row in rows] == [(1, 1, 1), (1, 1, 1), (3, 2, 2)]
    assert "| small | 10 | condu_ray bf16 | 24.0 | 3.00 | 2.00 | 50 | 2.00 | 50 % | 1.0 | 0.0e+00 |  |" in said


def test_a_machine_without_bf16_has_one_row_of_this_package(run):
    _, rows, _ = run("--sizes", "small", "--classes", "10", children=sides(condu_ray={"precision": "fp32"}))
    assert [row["side"] for row in rows] == ["public", "condu_ray fp32"]


def test_another_loss_curve_has_no_time(run):
    code, rows, said = run(
        "--sizes", "small", "--classes", "10", children=sides(condu_ray={"losses": [2.0, 1.2]})
    )  # fmt: skip
    assert code == 1
    assert [row["right"] for row in rows] == [True, True, False]
    assert "| small | 10 | condu_ray bf16 |  |  |  |  |  |  |  | 6.7e-02 | DIFFERS |" in said
    assert "24.0" not in said


def test_what_needs_more_memory_than_is_free_is_left_out(run):
    code, rows, said = run("--sizes", "ViT-B-32", "--classes", "397", children=sides(), free=12.0)
    assert code == 0
    assert rows[0]["right"] is None
    assert "left out: the public way needs 19 GiB, 12 are free" in said


def test_a_process_measures_one_side(monkeypatch):
    monkeypatch.setattr("jobs.bench.limit.PRODUCTS", 4)
    options = {"size": "small", "classes": [5], "device": "cpu", "batch": 4, "steps": 4}
    found = [train.child(Namespace(side=side, **options)) for side in train.SIDES[:2]]
    assert [one["precision"] for one in found] == ["fp32"] * 2
    assert found[0]["losses"] == pytest.approx(found[1]["losses"], rel=1e-5)
    assert all(len(one["losses"]) == 4 and one["speed"] > 0 and one["cpu"] > 0 for one in found)
    assert all(0 < one["of limit"] < 1.5 for one in found)  # "small" has little but overhead


@pytest.mark.long
def test_it_measures_in_fresh_processes(run):
    code, rows, _ = run("--sizes", "small", "--classes", "5", "--batch", "4", "--steps", "4")
    assert code == 0
    assert len(rows) >= 2
    assert all(row["speed"] > 0 and row["start"] > 0 and row["cpu"] > 0 for row in rows)
    assert rows[1]["off"] < 1e-4
