"""What is said about each data set, and the job that says it."""

import io
import json
import runpy
import sys
from pathlib import Path

import pytest
from rich.console import Console

from condu_ray.benchmark import load_tasks
from condu_ray.benchmark.mtil import CATALOG, prepare, show

JOB = Path(__file__).parents[3] / "jobs" / "prepare_datasets.py"
ORDER_I = [
    "aircraft", "caltech101", "cifar100", "dtd", "eurosat", "flowers", "food", "mnist", "oxford_pets", "stanford_cars",
    "sun397",
]  # fmt: skip


def printed(outcomes):
    console = Console(file=io.StringIO(), width=200)
    show(outcomes, console)
    return console.file.getvalue()


def job(monkeypatch, capsys, *arguments):
    """Runs the job; returns its exit code and all that it printed."""
    monkeypatch.setattr(sys, "argv", ["prepare_datasets.py", *map(str, arguments)])
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(JOB), run_name="__main__")
    text = capsys.readouterr()
    return stop.value.code, text.out + text.err


def row(text, name):
    """The cells of a data set's row in the table."""
    [line] = [line for line in text.splitlines() if line.startswith(f"│ {name} ")]
    return [cell.strip() for cell in line.strip("│").split("│")]


@pytest.mark.parametrize("name", CATALOG)
def test_what_is_missing_is_said_with_its_place(name, tmp_path):
    entry = CATALOG[name]
    [outcome] = prepare([entry], tmp_path, tmp_path / "out")
    assert outcome.state == ("dead" if name in ("stanford_cars", "sun397") else "missing")
    text = printed([outcome])
    for path in entry.needs:
        assert str(tmp_path / path) in text
    for archive in entry.archives:
        assert f"{tmp_path / archive.folder / archive.file} (MD5 {archive.md5})" in text
    assert entry.page in text
    assert row(text, name)[3:5] == [f"none of {entry.train}", f"none of {entry.test}"]
    if outcome.state == "dead":
        assert "pytorch/vision#" in text
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", CATALOG)
def test_a_single_missing_file_is_named_alone(name, trees, tmp_path):
    tree = trees(name)
    entry = trees.entry(name, tree)
    for needed in entry.needs:
        path = tree.root / needed
        path.rename(tmp_path / "away")
        [outcome] = prepare([entry], tree.root, tmp_path / "out")
        assert outcome.state in ("missing", "dead")
        gone = [tree.root / other for other in entry.needs if f"{other}/".startswith(f"{needed}/")]
        assert outcome.note.splitlines()[0] == f"missing: {', '.join(map(str, gone))}"
        (tmp_path / "away").rename(path)
    assert [outcome.state for outcome in prepare([entry], tree.root, tmp_path / "out", check=True)] == ["found"]


def test_looking_changes_nothing(trees, tmp_path):
    tree = trees("food")
    before = sorted(tmp_path.rglob("*"))
    [outcome] = prepare([CATALOG["food"]], tree.root, tmp_path / "out", check=True, download=True)
    assert (outcome.state, outcome.good) == ("found", False)
    assert row(printed([outcome]), "food")[1:5] == ["found", "101", "4 of 75750", "2 of 25250"]
    assert "counts differ: train: expected 75750, found 4" in outcome.note
    assert sorted(tmp_path.rglob("*")) == before


def test_one_that_fails_does_not_keep_the_others(trees, tmp_path):
    trees("dtd")
    tree = trees("mnist")
    tree.root.joinpath("dtd", "dtd", "labels", "train1.txt").write_text("banded")
    states = {o.entry.name: o.state for o in prepare(CATALOG.values(), tree.root, tmp_path / "out", allow_counts=True)}
    assert states["mnist"] == "converted"
    assert states["dtd"] == "failed"
    assert states["food"] == "missing"


def test_the_job_prepares_all_eleven_and_writes_their_order(trees, tmp_path, monkeypatch, capsys):
    for name in CATALOG:
        trees(name)
    raw, out = trees.root, tmp_path / "out"
    code, text = job(monkeypatch, capsys, "--root", raw, "--out", out)
    assert code == 1
    assert not out.exists()
    assert "counts differ: train: expected 3334, found 6" in text
    code, text = job(monkeypatch, capsys, "--root", raw, "--out", out, "--allow-counts", "--only", "mnist, dtd,mnist")
    assert code == 0
    assert sorted(path.name for path in out.iterdir()) == ["dtd", "mnist"]
    assert row(text, "mnist")[1:5] == ["converted", "10", "5 of 60000", "2 of 10000"]
    code, text = job(monkeypatch, capsys, "--root", raw, "--out", out, "--allow-counts")
    assert code == 0
    assert row(text, "mnist")[1] == "ready"
    assert row(text, "sun397")[1] == "converted"
    assert json.loads((out / "order.json").read_text()) == ORDER_I == list(CATALOG)
    assert [task.name for task in load_tasks(out)] == ORDER_I
    code, text = job(monkeypatch, capsys, "--root", tmp_path / "none", "--out", out, "--allow-counts", "--check")
    assert code == 0
    assert all(row(text, name)[1] == "ready" for name in CATALOG)
    # Without the flag the small tasks are not what was asked for.
    code, text = job(monkeypatch, capsys, "--root", tmp_path / "none", "--out", out)
    assert code == 1
    assert row(text, "food")[1:5] == ["missing", "101", "4 of 75750", "2 of 25250"]


def test_an_order_that_is_there_stays(trees, tmp_path):
    for name in CATALOG:
        tree = trees(name)
    out = tmp_path / "out"
    out.mkdir()
    (out / "order.json").write_text(json.dumps(ORDER_I[::-1]))
    assert all(outcome.good for outcome in prepare(CATALOG.values(), tree.root, out, allow_counts=True))
    assert json.loads((out / "order.json").read_text()) == ORDER_I[::-1]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--only", "mnits"], 2, "unknown data set 'mnits' (did you mean mnist?)"),
        (["--only", "mnist", "--check"], 1, "missing"),
        (["--only", ","], 2, "--only: names no data set"),
        (["--onyl", "mnist"], 2, "unknown flag --onyl (did you mean only?)"),
    ],
)
def test_the_jobs_exit_codes(arguments, code, message, tmp_path, monkeypatch, capsys):
    found, text = job(monkeypatch, capsys, "--root", tmp_path, "--out", tmp_path / "out", *arguments)
    assert found == code
    assert message in text
