"""Committed results: what a report measured becomes a file, a file becomes a table."""

import json
from pathlib import Path

import pytest

from condu_ray.metrics import continual_metrics
from condu_ray.report.results_page import ResultsError, add, dumps, read_results, section, table
from condu_ray.report.run_report import write_report
from condu_ray.report.sweep_report import sweep_report

FIRST = [[80.0, 30.0], [70.0, 90.0]]  # Transfer 30, Average 67.5, Last 80, BWT -10
SECOND = [[80.0, 30.0], [60.0, 90.0]]
RESULTS = {
    "title": "Walls", "columns": ["method", "Last", "error"], "rows": [["`a`", 79.25, 0.5], ["`b`", None, 1200]],
    "command": "make demo",
}  # fmt: skip


def entry(accuracy, **more):
    metrics = vars(continual_metrics(accuracy))
    return {"accuracy": accuracy, **metrics, "seconds": 1.0, **more}


@pytest.fixture
def run(tmp_path):
    """The report of a run with one method whose task may be unknown, and one for which it must be known."""
    results = {
        "tasks": ["walls", "doors"], "run": "r", "recipe": "own_data", "seed": 3, "config": {},
        "methods": {"condu": entry(FIRST, union=entry(SECOND)), "individual": entry(FIRST)},
        "versions": {"condu_ray": "1.2.3", "git": "abcdef0123456", "torch": "2.0"},
        "command": "python jobs/run_mtil.py --storage /elsewhere --method condu,individual",
        "wall_seconds": 12.4, "experts_trained": 4,
    }  # fmt: skip
    write_report(results, tmp_path / "run", pictures=False)
    return tmp_path / "run"


@pytest.fixture
def sweep(tmp_path, undrawn):
    records = [
        {
            "trial": f"{name}-{method}",
            "method": method,
            "order_name": name,
            "order": order,
            "seed": 0,
            "accuracy": accuracy,
        }
        for name, order, accuracy in (("given", ["a", "b"], FIRST), ("reversed", ["b", "a"], SECOND))
        for method, accuracy in (("condu", accuracy), ("average", FIRST))
    ]
    extra = {"command": "python jobs/sweep_orders.py --orders 2", "costs": {"experts_used": 8, "experts_different": 2}}
    sweep_report(records, tmp_path / "sweep", name="s", extra=extra)
    return tmp_path / "sweep"


def test_a_run_becomes_a_table(run, tmp_path):
    found = read_results(add(run, "walls", tmp_path))
    assert table(found).splitlines() == [
        "| method | Transfer | Average | Last | BWT | ∪ Transfer | ∪ Average | ∪ Last |",
        "| :-- | --: | --: | --: | --: | --: | --: | --: |",
        "| `condu` | 30.0 | 67.5 | 80.0 | -10.0 | 30.0 | 65.0 | 75.0 |",
        "| `individual` | 30.0 | 67.5 | 80.0 | -10.0 | – | – | – |",
    ]
    assert found["command"] == "python jobs/run_mtil.py --method condu,individual"
    assert "seed 3; 4 experts fine-tuned, 12 s in all; condu_ray 1.2.3, torch 2.0, revision abcdef0" in found["setting"]


def test_a_sweep_becomes_a_table(sweep, tmp_path):
    found = read_results(add(sweep / "sweep.json", "orders", tmp_path))
    assert found["rows"] == [
        ["`condu`", "30.0 ± 0.0", "66.2 ± 1.8", "77.5 ± 3.5", "-15.0 ± 7.1", "75.0 ... 80.0"],
        ["`average`", "30.0 ± 0.0", "67.5 ± 0.0", "80.0 ± 0.0", "-10.0 ± 0.0", "the same in all"],
    ]
    assert "2 orders (4 trials); 8 experts used, 2 different" in found["setting"]


@pytest.mark.parametrize(
    ("accuracy", "shown"),
    [(FIRST, ["30.0", "67.5", "80.0", "-10.0"]), ([[80.0]], [None, "80.0", "80.0", None])],
    ids=["one trial", "one task"],
)
@pytest.mark.usefixtures("undrawn")
def test_a_sweep_of_one_trial_has_no_deviation_and_of_one_task_no_transfer(accuracy, shown, tmp_path):
    record = {"trial": "t", "method": "condu", "order_name": "given", "order": ["a", "b"][: len(accuracy)], "seed": 0}
    sweep_report([{**record, "accuracy": accuracy}], tmp_path / "sweep", name="s")
    found = read_results(add(tmp_path / "sweep", "orders", tmp_path))
    assert found["rows"] == [["`condu`", *shown, "the same in all"]]


def test_what_is_written_by_hand_stays(run, tmp_path):
    old = RESULTS | {"notes": ["By hand."], "setting": "Old."}
    (tmp_path / "walls.json").write_text(dumps(old), encoding="utf-8")
    found = read_results(add(run, "walls", tmp_path))
    assert (found["title"], found["notes"]) == ("Walls", ["By hand."])
    assert found["columns"] != old["columns"]
    assert found["setting"] != "Old."


def test_a_section_has_all_of_it():
    about = {"about": ["Before."], "setting": "One seed.", "notes": ["After."], "decimals": {"error": 2}}
    shown = section(RESULTS | about | {"picture": ["pictures/a.png", "A wall"]}, Path("/r/deep/page.md"), Path("/r"))
    assert shown.split("\n\n") == [
        "### Walls", "Before.",
        "| method | Last | error |\n| :-- | --: | --: |\n| `a` | 79.2 | 0.50 |\n| `b` | – | 1,200 |",
        "*One seed.*", "```\nmake demo\n```", "After.", "![A wall](../pictures/a.png)",
    ]  # fmt: skip


def test_a_file_has_a_line_a_row_and_comes_back(tmp_path):
    text = dumps(RESULTS)
    assert json.loads(text) == RESULTS
    assert '  ["`a`", 79.25, 0.5],\n' in text


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"rows": [["`a`", 1.0]]}, "2 values for 3 columns"),
        ({"title": None}, "title"),
        ({"colour": "red"}, "colour"),
    ],
)
def test_what_cannot_be_shown_is_refused(tmp_path, change, why):
    path = tmp_path / "walls.json"
    path.write_text(json.dumps({key: value for key, value in (RESULTS | change).items() if value is not None}))
    with pytest.raises(ResultsError, match=f"walls.json.*{why}"):
        read_results(path)


def test_what_is_no_report_is_refused(tmp_path):
    with pytest.raises(ResultsError, match=r"no results\.json of a run"):
        add(tmp_path, "walls", tmp_path)
    (tmp_path / "results.json").write_text("{}")
    with pytest.raises(ResultsError, match=r"neither"):
        add(tmp_path, "walls", tmp_path)
    (tmp_path / "results.json").write_text("[")
    with pytest.raises(ResultsError, match=r"results\.json"):
        add(tmp_path, "walls", tmp_path)
