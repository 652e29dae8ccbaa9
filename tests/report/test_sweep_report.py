"""The report of a sweep: numbers worked out by hand, tables for other programs, pictures, the same bytes again."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

from condu_ray.benchmark.orders import draw_orders
from condu_ray.report.published import published_rows
from condu_ray.report.records import by_group, check_records
from condu_ray.report.sweep_plots import accuracy_by_position, forgetting_curve, methods_over_orders, order_heat_map
from condu_ray.report.sweep_report import sweep_report
from condu_ray.report.sweep_tables import published_decimals
from condu_ray.report.text import latex

FILES = [
    "sweep.json", "summary.csv", "trials.csv", "summary.tex", "report.md", "methods_over_orders.png",
    "accuracy_by_position.png", "forgetting_curve.png", "order_heat_map.png",
]  # fmt: skip


def record(method: str = "condu", order: str = "ab", last: float = 70.0, **changes: Any) -> dict[str, Any]:
    """A trial of two tasks: Transfer 30, Average (200 + last) / 4, Last (90 + last) / 2, BWT last - 80."""
    name = {"ab": "given", "ba": "reversed"}.get(order, order)
    known = {
        "trial": f"{method}-{order}-{last}", "method": method, "order_name": name, "order": list(order), "seed": 0,
        "settings": {}, "accuracy": [[80.0, 30.0], [last, 90.0]], "union": None, "seconds": 8.0, "experts_trained": 2,
        "experts_reused": 1, "measurements": 4, "measurements_reused": 3,
    }  # fmt: skip
    return {**known, **changes}


def sweep(methods: tuple[str, ...], orders: int, tasks: int, seeds: int = 1, union: bool = False) -> list[dict]:
    """Trials with drawn numbers: tasks by name, so that each task is as hard in every order."""
    random = np.random.default_rng(0)
    names = [f"task_{index}" for index in range(tasks)]
    ease = dict(zip(names, random.uniform(40, 80, tasks), strict=True))
    records = []
    for position, method in enumerate(methods):
        for seed in range(seeds):
            for order in draw_orders(names, orders, 0):
                age = np.subtract.outer(np.arange(tasks), np.arange(tasks))
                accuracy = np.array([ease[task] for task in order.tasks]) - np.where(age < 0, 20, age * position * 0.5)
                accuracy = (accuracy + random.normal(0, 1, accuracy.shape)).clip(0, 100)
                known = record(method, trial=f"{method}-{order.name}-{seed}", order_name=order.name, seed=seed)
                measured = {"accuracy": accuracy.tolist()}
                if union:
                    measured["union"] = {"accuracy": (accuracy * 0.9).tolist()}
                records.append({**known, "order": list(order.tasks), **measured})
    return records


@pytest.fixture
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is drawn."""
    for draw in (accuracy_by_position, forgetting_curve, methods_over_orders, order_heat_map):
        monkeypatch.setattr(f"condu_ray.report.sweep_report.{draw.__name__}", lambda values, path, protocol: path)


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """Pictures are put together but not written; returns them."""
    drawn: list[Figure] = []
    monkeypatch.setattr("condu_ray.report.sweep_plots.save_figure", lambda figure, path: drawn.append(figure) or path)
    return drawn


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def load_strict(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"), parse_constant=lambda text: pytest.fail(f"{text} in JSON"))


TWO_METHODS = [
    record("condu", "ab", 70.0), record("condu", "ba", 74.0), record("pam", "ab", 60.0), record("pam", "ba", 50.0),
]  # fmt: skip


def test_files(tmp_path: Path) -> None:
    paths = sweep_report(TWO_METHODS, tmp_path / "new" / "sweep", name="two")
    assert [path.name for path in paths] == FILES
    assert sorted(path.name for path in (tmp_path / "new" / "sweep").iterdir()) == sorted(FILES)
    for path in paths[5:]:
        with Image.open(path) as image:
            image.load()
            assert min(image.size) > 200
            assert set(image.info) <= {"dpi"}


@pytest.mark.usefixtures("sketched")
def test_the_same_records_give_the_same_bytes(tmp_path: Path) -> None:
    records = sweep(("condu", "zero-shot"), 3, 4)
    first = sweep_report(records, tmp_path / "a", name="x", published=published_rows("mtil"), extra={"command": "run"})
    again = sweep_report(records, tmp_path / "b", name="x", published=published_rows("mtil"), extra={"command": "run"})
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in again]


@pytest.mark.usefixtures("no_pictures")
def test_summary(tmp_path: Path) -> None:
    sweep_report(TWO_METHODS, tmp_path, name="two")
    rows = {(row["method"], row["metric"]): row for row in rows_of(tmp_path / "summary.csv")}
    assert len(rows) == 2 * 5
    last = rows["condu", "last"]
    assert {key: float(last[key]) for key in ("mean", "min", "max", "n")} == {"mean": 81, "min": 80, "max": 82, "n": 2}
    assert float(last["std"]) == pytest.approx(2**0.5)
    assert (last["worst_order"], last["best_order"], last["protocol"]) == ("given", "reversed", "task")
    assert rows["pam", "last"]["worst_order"] == "reversed"
    assert rows["pam", "forgetting"]["worst_order"] == "reversed"  # low is good: 30 is worse than 20
    assert float(rows["pam", "backward_transfer"]["mean"]) == -25
    assert rows["condu", "transfer"]["worst_order"] == rows["condu", "transfer"]["best_order"] == ""  # all equal
    trials = rows_of(tmp_path / "trials.csv")
    assert [row["trial"] for row in trials] == [entry["trial"] for entry in TWO_METHODS]
    wanted = {"order": "b,a", "last": "82", "average": "68.5", "seconds": "8", "experts_reused": "1"}
    assert {key: trials[1][key] for key in wanted} == wanted
    assert not any("union" in column for column in trials[0])  # which nobody measured


@pytest.mark.usefixtures("no_pictures")
def test_page(tmp_path: Path) -> None:
    sweep_report(TWO_METHODS, tmp_path, name="my_sweep", extra={"command": "run --orders 2", "versions": {"ray": "2"}})
    lines = (tmp_path / "report.md").read_text(encoding="utf-8").splitlines()
    for line in (
        "# Sweep my_sweep",
        "| condu | 30.0 ± 0.0 | **68.0** ± 0.7 | **81.0** ± 1.4 | **-8.00** ± 2.83 | **8.00** ± 2.83 | 2 |",
        "| pam | 30.0 ± 0.0 | 63.8 ± 1.8 | 72.5 ± 3.5 | -25.00 ± 7.07 | 25.00 ± 7.07 | 2 |".replace("30.0", "**30.0**"),
        "| condu | 2.0 | 80.0 | given | 82.0 | reversed |",
        "| condu against pam | +8.50 | 2 | 0.5000 | 0.5000 | cannot tell: 2 pairs, 6 needed |",
        "| condu against pam | +0.00 | 2 | 1.0000 | 1.0000 | no (all equal) |",
        "| condu | 2 | 8.0 | 4 | 2 | 8 | 6 |",
        "- **given**: a, b",
        "- **reversed**: b, a",
        "run --orders 2",
        '  "ray": "2"',
    ):
        assert line.replace("| condu | 30.0 ±", "| condu | **30.0** ±") in lines, line
    text = "\n".join(lines)
    assert "2 methods, 2 orders of 2 tasks, seed 0: 4 trials." in text
    assert "Trials are missing" not in text
    assert "Published" not in text
    for file in FILES[5:]:
        assert f"({file})" in text


@pytest.mark.usefixtures("no_pictures")
def test_tests_over_twelve_orders_find_what_differs(tmp_path: Path) -> None:
    sweep_report(sweep(("condu", "pam", "sequential"), 12, 6), tmp_path, name="x")
    for test in load_strict(tmp_path / "sweep.json")["comparisons"]["task"]["last"]:
        assert (test["pairs"], test["verdict"]) == (12, "yes")
        assert test["p_value"] == 2 / 2**12
        assert test["adjusted"] == 3 * 2 / 2**12
    page = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert page.count("| 12 | 0.0005 | 0.0015 | yes |") >= 3


def other(first: float, last: float) -> dict:
    """What a record has of one more protocol, with this Transfer and this accuracy on the first task at the end."""
    return {"accuracy": [[50.0, first], [last, 60.0]]}


@pytest.mark.usefixtures("no_pictures")
def test_numbers(tmp_path: Path) -> None:
    union, own = other(10.0, 40.0), other(20.0, 45.0)
    rows = published_rows("coin")
    sweep_report([record(union=union, own=own), record("pam")], tmp_path, name="x", published=rows)
    numbers = load_strict(tmp_path / "sweep.json")
    assert numbers["orders"] == {"given": ["a", "b"]}
    condu, pam = numbers["groups"]
    assert (condu["union"]["last"]["mean"], condu["own"]["last"]["mean"]) == (50, 52.5)
    assert pam["union"]["last"] == {"count": 0, **dict.fromkeys(("mean", "std", "low", "high", "worst", "best"))}
    first, second = numbers["trials"]
    assert (first["union_accuracy"], first["own_accuracy"]) == (union["accuracy"], own["accuracy"])
    assert (first["metrics"]["average"], first["own_metrics"]["transfer"]) == (67.5, 20)
    assert not {"union_accuracy", "union_metrics", "xtail_accuracy"} & set(second)
    assert [row["method"] for row in numbers["published"]] == ["pam", "sequential"]
    protocols = [row["protocol"] for row in rows_of(tmp_path / "summary.csv")]
    assert [protocols.count(name) for name in ("task", "own", "union", "xtail")] == [10, 5, 5, 0]
    trials = rows_of(tmp_path / "trials.csv")
    assert [(row["last"], row["own_last"], row["union_transfer"]) for row in trials] == [
        ("80", "52.5", "10"), ("80", "", ""),
    ]  # fmt: skip


@pytest.mark.usefixtures("no_pictures")
def test_every_protocol_has_its_tables_and_is_named_there(tmp_path: Path) -> None:
    measured = {"own": other(20.0, 45.0), "union": other(10.0, 40.0), "xtail": other(5.0, 35.0)}
    records = [record(method, order, **measured) for method in ("condu", "pam") for order in ("ab", "ba")]
    files = sweep_report([*records, record("individual")], tmp_path, name="x")
    lines = (tmp_path / "report.md").read_text(encoding="utf-8").splitlines()
    assert lines.count("| Method | Transfer | Average | Last | BWT | Forgetting | Trials |") == 4
    for number, (name, last) in enumerate({"task": "80.0", "own": "52.5", "union": "50.0", "xtail": "47.5"}.items()):
        start = lines.index(f"## Methods over the orders, protocol {name}")
        assert lines[start + 2].startswith(f"Protocol `{name}`: ")
        shown = lines[start : start + 9]
        assert any(line.startswith("| condu |") and f"{last}** ± 0.0" in line for line in shown)
        assert any(line.startswith("| individual |") for line in shown) == (number == 0)
        assert f"## Do methods differ, protocol {name}?" in lines
        picture = "methods_over_orders.png" if not number else f"{name}_methods_over_orders.png"
        assert any(f"protocol {name}]({picture})" in line for line in lines)
        assert tmp_path / picture in files
    tex = (tmp_path / "summary.tex").read_text(encoding="utf-8")
    assert [f"in percent; protocol {name}.}}" in tex for name in ("task", *measured)] == [True] * 4
    assert tex.count(r"\toprule") == 4


def test_a_sweep_that_never_measured_the_task_known(tmp_path: Path, figures: list[Figure]) -> None:
    records = [record(method, order, accuracy=None, own=other(20.0, 45.0)) for method in "xy" for order in ("ab", "ba")]
    sweep_report(records, tmp_path, name="x")
    assert {row["protocol"] for row in rows_of(tmp_path / "summary.csv")} == {"own"}
    assert "protocol task" not in (tmp_path / "report.md").read_text(encoding="utf-8")
    for figure in figures:
        figure.draw_without_rendering()
        shown = [text.get_text() for text in figure.findobj(Text)]
        assert any("protocol own" in text for text in shown)


@pytest.mark.usefixtures("no_pictures")
def test_published_rows_stand_apart_and_beside_their_own_protocol(tmp_path: Path) -> None:
    measured = {"own": other(20.0, 45.0), "union": other(10.0, 40.0)}
    records = [*TWO_METHODS, record("zero-shot", "ab", 99.0, **measured)]
    rows = published_rows("mtil") + published_rows("task_agnostic")
    left_out = [(row, "5 training images a class") for row in published_rows("few_shot")]
    sweep_report(records, tmp_path / "with", name="x", published=rows, left_out=left_out)
    sweep_report(records, tmp_path / "without", name="x")
    found, plain = (load_strict(tmp_path / folder / "sweep.json") for folder in ("with", "without"))
    assert {**found, "published": []} == plain  # no statistic knows of them
    for file in FILES[1:3]:
        assert (tmp_path / "with" / file).read_bytes() == (tmp_path / "without" / file).read_bytes()
    text = (tmp_path / "with" / "report.md").read_text(encoding="utf-8")
    task, own, union = re.split("## Methods over the orders, protocol own|.*protocol union\n|## What the pos", text)[:3]
    assert "not measured here" in task
    source = "ConDU (ICLR 2026, arXiv 2503.10705) | order I"
    assert f"| condu | {source}, CLIP ViT-B/16 | 70.8 | 78.8 | 87.1 | – |" in task
    assert "| sequential | ZSCL (ICCV 2023), Table 3 | order I, CLIP ViT-B/16 | 44.6 | 55.9 | 77.3 | -12.05 |" in task
    assert f"| condu | {source}, task not known, CLIP ViT-B/16 | – | 78.1 | 86.4 | – |" in own
    assert "### Published" not in union
    assert "- condu, ConDU (ICLR 2026, arXiv 2503.10705), order I, five images a class" in union
    assert ": 5 training images a class" in union
    tex = (tmp_path / "with" / "summary.tex").read_text(encoding="utf-8")
    measured_there, rule, apart = tex.partition("\\midrule\n\\multicolumn{5}{l}{\\emph{published: ConDU")
    assert rule
    assert "condu & $70.8$ & $78.8$ & $87.1$ & -- \\\\" in apart
    assert "condu & -- & $78.1$ & $86.4$ & -- \\\\" in apart[apart.index("protocol own") :]
    assert "87.1" not in measured_there


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.usefixtures("no_pictures")
def test_seconds_are_the_mean_of_those_trials_that_say_them_and_the_rest_are_sums(tmp_path: Path) -> None:
    records = [record("condu", order, seconds=value) for order, value in (("ab", 10.0), ("ba", 35.0))]
    records += [record("pam", "ab"), record("condu", "ba", seed=1, seconds=None, trial="without")]
    sweep_report(records, tmp_path, name="costs")
    page = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "| condu | 3 | 22.5 | 6 | 3 | 12 | 9 |" in page
    assert "| pam | 1 | 8.0 | 2 | 1 | 4 | 3 |" in page


@pytest.mark.parametrize(("value", "decimals"), [(49.9, 1), (49.89, 2), (50.0, 1), (None, 1)])
def test_published_figures_are_printed_as_they_are(value: float | None, decimals: int) -> None:
    assert published_decimals({"last": value}, "last") == decimals


@pytest.mark.usefixtures("no_pictures")
def test_latex(tmp_path: Path) -> None:
    records = [record("a_b", "ab", 70.0), record("a_b", "ba", 74.0), record("c&d", "ab", 50.0), record("zero-shot")]
    sweep_report(records, tmp_path, name="50% of {x}")
    lines = (tmp_path / "summary.tex").read_text(encoding="utf-8").splitlines()
    assert lines[0] == "% needs \\usepackage{booktabs}"
    assert any(
        r"\caption{50\% of \{x\}: mean $\pm$ standard deviation over 2 task orders, in percent; protocol task.}" in x
        for x in lines
    )
    # A bound comes first, behind a rule, and is not in bold though no mean is higher; one trial has no deviation.
    top = lines.index("Method & Transfer & Average & Last & BWT \\\\")
    assert lines[top + 1 : top + 4] == [
        r"\midrule",
        r"zero-shot & $30.0$ & $67.5$ & $80.0$ & $-10.00$ \\",
        r"\midrule",
    ]
    bold = r"$\mathbf{81.0}$ {\scriptsize $\pm$ 1.4} & $\mathbf{-8.00}$ {\scriptsize $\pm$ 2.83} \\"
    assert lines[top + 4].startswith(r"a\_b & $\mathbf{30.0}$ {\scriptsize $\pm$ 0.0} & ")
    assert lines[top + 4].endswith(bold)
    assert lines[top + 5] == r"c\&d & $\mathbf{30.0}$ & $62.5$ & $70.0$ & $-30.00$ \\"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a_b%", r"a\_b\%"),
        ("a\\b{c}", r"a\textbackslash{}b\{c\}"),
        (
            "~^<>|#$&\"'",
            r"\textasciitilde{}\textasciicircum{}\textless{}\textgreater{}\textbar{}\#\$\&'''",
        ),
        ("two\n lines", "two lines"),
    ],
)
def test_latex_escapes(text: str, expected: str) -> None:
    assert latex(text) == expected


@pytest.mark.parametrize(
    ("settings", "groups"),
    [
        ([{}, {}], ["condu"]),
        ([{"lora.rank": 8}, {"lora.rank": 8}], ["condu"]),  # the same everywhere
        ([{"lora.rank": 8}, {"lora.rank": 16}], ["condu rank=8", "condu rank=16"]),
        ([{"lora.rank": 8}, {}], ["condu rank=8", "condu"]),
        (
            [{"a.lr": 1e-05, "b.lr": 1}, {"a.lr": 1e-4, "b.lr": 2}],
            ["condu a.lr=1e-05, b.lr=1", "condu a.lr=0.0001, b.lr=2"],
        ),
        ([{"lr": 0.12345671}, {"lr": 0.12345672}], ["condu lr=0.12345671", "condu lr=0.12345672"]),
        ([{"pam.on": True, "x": 1}, {"pam.on": False, "x": 1}], ["condu on=True", "condu on=False"]),
    ],
)
@pytest.mark.usefixtures("no_pictures")
def test_settings_are_shown_where_they_vary(settings: list[dict], groups: list[str], tmp_path: Path) -> None:
    orders = ("ab", "ba")
    records = [record(order=order, settings=entry) for order, entry in zip(orders, settings, strict=True)]
    assert list(by_group(check_records(records))) == groups
    sweep_report(records, tmp_path, name="x")
    columns = [key for key in rows_of(tmp_path / "summary.csv")[0] if key.startswith("settings.")]
    varied = {key for key in settings[0] if settings[0].get(key) != settings[1].get(key)}
    assert columns == [f"settings.{key}" for key in sorted(varied)]
    assert len(rows_of(tmp_path / "summary.csv")) == 5 * len(groups)


@pytest.mark.usefixtures("no_pictures")
def test_missing_trials_are_named(tmp_path: Path) -> None:
    records = [*TWO_METHODS[:3], record("pam", "ba", 50.0, seed=1)]
    sweep_report(records, tmp_path, name="x")
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "**Trials are missing**" in text
    assert "- condu: reversed (seed 1)" in text
    assert "- pam: reversed (seed 0)" in text
    assert "Pairs of one order with several seeds count as so many." in text


@pytest.mark.usefixtures("no_pictures")
def test_worst_order_by_the_mean_over_seeds(tmp_path: Path) -> None:
    lasts = {("ab", 0): 10.0, ("ab", 1): 90.0, ("ba", 0): 40.0, ("ba", 1): 40.0}
    records = [record(order=order, seed=seed, last=last) for (order, seed), last in lasts.items()]
    sweep_report(records, tmp_path, name="x")
    (row,) = [row for row in rows_of(tmp_path / "summary.csv") if row["metric"] == "last"]
    assert (float(row["min"]), row["worst_order"], row["best_order"], row["n"]) == (50, "reversed", "given", "4")
    page = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "| condu | 5.0 | 65.0 | reversed | 70.0 | given |" in page


@pytest.mark.usefixtures("no_pictures")
def test_two_orders_of_one_name_are_told_apart(tmp_path: Path) -> None:
    records = [record(order_name="random-01"), record(order="ba", order_name="random-01", seed=1)]
    sweep_report(records, tmp_path, name="x")
    assert load_strict(tmp_path / "sweep.json")["orders"] == {"random-01": ["a", "b"], "random-01 (2)": ["b", "a"]}


@pytest.mark.usefixtures("undrawn")
def test_one_task(tmp_path: Path) -> None:
    sweep_report([record(order="a", accuracy=[[50.0]]), record("pam", "a", accuracy=[[40.0]])], tmp_path, name="x")
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "| condu | – | **50.0** | **50.0** | – | – | 1 |" in text
    assert load_strict(tmp_path / "sweep.json")["groups"][0]["task"]["transfer"]["mean"] is None
    tests = load_strict(tmp_path / "sweep.json")["comparisons"]["task"]["transfer"]
    assert [test["verdict"] for test in tests] == ["no pairs"]


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ([], "no trials"),
        ([record(), record()], "is trial condu-ab-70.0 again .condu, order given, seed 0"),
        (
            [record(), record("pam", "ac")],
            "trial pam-ac-70.0: b, c are not in both its order and that of trial condu-ab",
        ),
        ([record(order="aa")], "names no task, or one twice"),
        ([record(accuracy=[[1.0, 2.0]])], "trial condu-ab-70.0: accuracy: .*shape"),
        ([record(accuracy=[[1.0, 2.0], [3.0, float("nan")]])], "trial condu-ab-70.0: accuracy: .*nan"),
        ([record(accuracy=[[1.0]])], "accuracy is .1, 1. for 2 tasks"),
        ([record(union={"accuracy": [[1.0]]})], "union is .1, 1. for 2 tasks"),
        ([record(accuracy=None)], "trial condu-ab-70.0: the record lacks accuracy"),
        ([{"method": "condu"}], r"trial \?: the record lacks trial, order_name, order, seed"),
    ],
)
def test_bad_records(records: list[dict], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        sweep_report(records, tmp_path / "new", name="x")
    assert not (tmp_path / "new").exists()


def test_curves_are_what_they_say(figures: list[Figure], tmp_path: Path) -> None:
    first = np.array([[50.0, 0, 0], [40, 60, 0], [20, 50, 70]])
    second = np.array([[50.0, 0, 0], [44, 60, 0], [30, 50, 70]])
    accuracy_by_position({"x": [first, second]}, tmp_path / "a.png")
    forgetting_curve({"x": [first, second]}, tmp_path / "b.png")
    by_position, forgotten = (figure.axes[0].get_lines()[-1].get_xydata().tolist() for figure in figures)
    assert by_position == [[1, 25], [2, 50], [3, 70]]
    # One session later: -10 and -10, -6 and -10; two later: -30, -20.
    assert forgotten == [[0, 0], [1, -9], [2, -25]]
    assert "over orders and seeds" in figures[0].get_supxlabel()


def test_curves_of_one_task_have_one_tick(figures: list[Figure], tmp_path: Path) -> None:
    accuracy_by_position({"x": [np.array([[50.0]])]}, tmp_path / "a.png")
    forgetting_curve({"x": [np.array([[50.0]])]}, tmp_path / "b.png")
    assert [figure.axes[0].get_xticks().tolist() for figure in figures] == [[1], [0]]


@pytest.mark.parametrize(("methods", "orders", "tasks"), [(3, 3, 6), (14, 12, 17)])
def test_texts_do_not_overlap(methods: int, orders: int, tasks: int, tmp_path: Path, figures: list[Figure]) -> None:
    names = [f"a-long-method rank={index}" for index in range(methods)]
    random = np.random.default_rng(0)
    matrices = {name: [random.uniform(0, 100, (tasks, tasks)) for _ in range(orders)] for name in names}
    last = {name: [float(matrix[-1].mean()) for matrix in found] for name, found in matrices.items()}
    methods_over_orders({"Last": last, "BWT": last, "Average": last, "Transfer": last}, tmp_path / "a.png")
    accuracy_by_position(matrices, tmp_path / "b.png")
    order_heat_map(
        {name: {f"random-{i:02d}": v for i, v in enumerate(found)} for name, found in last.items()}, tmp_path
    )
    for figure in figures:
        figure.draw_without_rendering()
        texts = [text for legend in figure.legends for text in legend.get_texts()]
        for axes in figure.axes:
            if axes.get_visible():
                texts += [axes.title, *shown_labels(axes.xaxis), *shown_labels(axes.yaxis)]
        boxes = [box for text in texts if (box := text.get_window_extent()).width]
        for index, box in enumerate(boxes):
            assert not any(box.overlaps(other) for other in boxes[:index])


def test_labels_aslant_keep_their_lines_apart(tmp_path: Path, figures: list[Figure]) -> None:
    names = [f"zscl reference=/data/a_very_long_folder/of_images_{index}, lr=1e-05, rank=16" for index in range(5)]
    order_heat_map({name: {"given": 50.0} for name in names}, tmp_path)
    (figure,) = figures
    figure.draw_without_rendering()
    axes = figure.axes[0]
    lines = max(label.get_text().count("\n") + 1 for label in axes.get_xticklabels())
    assert lines > 2
    apart = axes.get_window_extent().width / figure.dpi / len(names) * np.sin(np.deg2rad(40))
    assert apart > lines * 9 * 1.2 / 72  # inches that lines of nine points take


def test_an_axis_that_nothing_is_on_has_no_numbers(tmp_path: Path, figures: list[Figure]) -> None:
    methods_over_orders({"Transfer": {"x": [np.nan]}, "Last": {"x": [50.0]}}, tmp_path)
    empty, other = figures[0].axes
    assert not len(empty.get_xticks())
    assert len(other.get_xticks())


@pytest.mark.parametrize(
    ("orders", "seeds", "said"),
    [
        (1, 1, "x: 1 task order, in percent; protocol task."),
        (3, 1, r"x: mean $\pm$ standard deviation over 3 task orders, in percent; protocol task."),
        (1, 2, r"x: mean $\pm$ standard deviation over 1 task order and 2 seeds, in percent; protocol task."),
    ],
)
@pytest.mark.usefixtures("no_pictures")
def test_a_caption_says_over_what_a_deviation_is(orders: int, seeds: int, said: str, tmp_path: Path) -> None:
    sweep_report(sweep(("condu", "pam"), orders, 3, seeds), tmp_path, name="x")
    assert rf"\caption{{{said}}}" in (tmp_path / "summary.tex").read_text(encoding="utf-8").splitlines()


def shown_labels(axis: Axis) -> list[Text]:
    """The upright labels of the ticks that lie within the axis."""
    low, high = sorted(axis.get_view_interval())
    ticks = [tick for tick in axis.get_major_ticks() if low <= tick.get_loc() <= high]
    return [tick.label1 for tick in ticks if tick.label1.get_visible() and not tick.label1.get_rotation()]


@pytest.mark.usefixtures("no_pictures")
def test_the_one_order_that_was_measured_is_named(tmp_path: Path) -> None:
    measured = {"accuracy": [[60.0, 10.0], [50.0, 70.0]]}
    records = [record(), record(order="ba", union=measured), record("pam", union=measured), record("pam", "ba", 50.0)]
    sweep_report(records, tmp_path, name="x")
    lines = (tmp_path / "report.md").read_text().splitlines()
    assert "| condu | 0.0 | 60.0 | reversed | 60.0 | reversed |" in lines
    assert "| pam | 0.0 | 60.0 | given | 60.0 | given |" in lines
