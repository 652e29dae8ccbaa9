"""The script for a lent GPU, by its small size on this machine: every table is there, and what is wrong is seen."""

import json
import sys

import pytest
import torch

from condu_ray.vlm import context
from jobs.bench import gpu

SMALL = ["--size", "small", "--device", "cpu", "--classes", "6", "--batch", "4", "--steps", "4"]


@pytest.fixture
def rows(tmp_path, monkeypatch):
    """Runs the script in this process; returns its exit code and its rows."""

    def run(*more):
        monkeypatch.setattr(gpu, "deterministic", gpu.alone)
        monkeypatch.setattr(sys, "argv", ["gpu.py", *SMALL, "--out", str(tmp_path / "rows.json"), *more])
        return gpu.main(), json.loads((tmp_path / "rows.json").read_text())

    yield run
    torch.use_deterministic_algorithms(False)


@pytest.mark.slow
def test_every_table_is_made_of_what_was_compared_first(rows, capsys):
    code, found = rows()
    assert code == 0
    tables = {}
    for row in found:
        tables.setdefault(row["table"].split(",")[0], []).append(row)
    assert list(tables) == [
        "machine", "gradients", "unify against the CPU", "merging", "profile", "training", "deterministic",
        "3 of 3 experts",
    ]  # fmt: skip
    assert all(row["right"] for row in found if row["table"].split(",")[0] not in ("machine", "merging", "profile"))
    assert [row["precision"] for row in tables["gradients"]] == ["fp32"] * 2 + ["bf16"] * 2
    assert tables["gradients"][0]["off"] == 0
    first, *others = tables["training"]
    assert first["what"] == "public: fp32, whole context"
    assert first["times"] == 1
    assert all(row["images_s"] > 0 and row["step_ms"] > 0 for row in tables["training"])
    own = {row["what"]: row for row in others}
    assert own["condu_ray, fp32"]["curve"] < 1e-5 < own["condu_ray, bf16"]["curve"]
    assert capsys.readouterr().out.count("\n") == len(found) + 1


@pytest.mark.slow
def test_what_is_wrong_is_marked_and_ends_with_1(rows, monkeypatch, capsys):
    monkeypatch.setattr(context, "_length", lambda model, tokens: 4)  # the prompts' ends are lost
    code, found = rows("--seconds", "0")
    assert code == 0  # nothing begins after so many seconds, and nothing was wrong
    assert {row["table"] for row in found[1:]} == {"left out"}
    report = gpu.Report(None)
    gpu.check_gradients(report, "small", "cpu")
    assert [row["right"] for row in report.rows] == [True, False, True, False]
    assert capsys.readouterr().out.count("DIFFERS") == 2
