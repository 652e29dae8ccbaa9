"""Files of ablations from results made by hand."""

import csv
import json
from itertools import product

import pytest
from PIL import Image

from condu_ray.report import inference_plots, merging_plots, spectra_report, style
from condu_ray.report.ablation_report import write_inference, write_merging, write_synthetic

COMMON = {"run": "r", "method": "condu", "config": {"seed": 0}, "versions": {"torch": "2"}, "command": "python x.py"}


def inference_results(tasks=("a", "b"), kinds=("both", "image", "text")):
    options = [
        {"aggregation": aggregation, "top_k": k, "include_pretrained": pretrained, "prototypes": kind}
        | {"transfer": 50.0 + place, "average": 60.0, "last": 70.0, "accuracy": [[1.0]]}
        | {"union": {"transfer": 40.0, "average": 45.0, "last": 30.0 - place, "accuracy": [[1.0]]}}
        for place, (aggregation, k, pretrained, kind) in enumerate(
            product(("weighted", "mean"), (1, 5, None), (True, False), kinds)
        )
    ]
    mark = {"aggregation": "weighted", "top_k": 5, "include_pretrained": False, "prototypes": "both"}
    cost = [
        {"experts": k, "batch": 8, "swapped": 100.0 / k, "held": 200.0 / k}
        | {"swapped_latency": 0.01 * k, "held_latency": 0.005 * k}
        for k in (1, 2)
    ]
    memory = [{"experts": k, "unified": 2_000_000 + k, "whole": 1_500_000 * k} for k in (1, 2)]
    marks = {"paper": mark, "public code": mark | {"aggregation": "mean", "include_pretrained": True}, "this run": mark}
    return COMMON | {"tasks": list(tasks), "options": options, "marks": marks, "cost": cost, "memory": memory}


def merging_results(tasks=("a", "b", "c"), accuracy=True, names=("condu", "average", "no-mask")):
    rows, summary = [], []
    for session in range(1, len(tasks) + 1):
        for number, name in enumerate(names):
            for position, task in enumerate(tasks[:session]):
                row = {"variant": name, "session": session, "task": task, "position": position, "rescaler": None}
                row |= {"relative_l2": 0.1 * session * (number + 1), "sign_agreement": 0.5, "cosine": 0.4}
                if accuracy and session in (1, len(tasks)):
                    row |= {"accuracy": 50.0, "over_individual": -5.0, "kept": None if position == 0 else 0.75 - number}
                rows.append(row)
            mean = {"variant": name, "session": session, "tasks": session, "relative_l2": 0.1 * session * (number + 1)}
            mean |= {"sign_agreement": 0.5, "cosine": 0.4, "accuracy": None, "over_individual": None}
            if accuracy and session in (1, len(tasks)):
                mean |= {"accuracy": 50.0, "over_individual": -5.0, "kept": 0.75 - number if session > 1 else None}
            summary.append(mean)
    variants = {
        name: {"formula": f"what {name} does", "part": name == "no-mask", "own": name == "condu"} for name in names
    }
    return COMMON | {
        "tasks": list(tasks), "variants": variants, "rows": rows, "summary": summary,
        "bounds": {task: {"zero_shot": 40.0, "individual": 55.0} for task in tasks} if accuracy else {},
        "storage": [{"tasks": t, "unified": 950 + 50 * t, "experts": 999 * t, "share": 1 / t + 0.05} for t in (1, 10)],
        "measured": {"tasks": len(tasks), "counted": 1150, "stored": 1150},
    }  # fmt: skip


def synthetic_results(tasks=4):
    rows = [
        {"correlation": rho, "variant": name, "session": session, "task": f"task {position + 1}", "position": position}
        | {"relative_l2": 0.1 * session, "sign_agreement": 0.5, "cosine": 0.4, "rescaler": 1.0}
        for rho in (0.0, 0.5)
        for name in ("condu", "emr")
        for session in range(1, tasks + 1)
        for position in range(session)
    ]
    return {"tasks": tasks, "numel": 1000, "seed": 3, "rows": rows, "versions": {}, "command": "python y.py"}


WRITERS = {
    "inference": (write_inference, inference_results),
    "merging": (write_merging, merging_results),
    "synthetic": (write_synthetic, synthetic_results),
}


def strict(path):
    def refuse(constant):
        raise AssertionError(f"{path} holds {constant}")

    return json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)


def table(text, heading):
    """The Markdown table whose first line has `heading`: a list of rows of cells."""
    lines = text.splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith("|") and heading in line)
    rows = []
    for line in lines[start:]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").split("|")])
    return [rows[0], *rows[2:]]


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Folder by name, and the paths that were returned, each report written once."""
    found = {}
    for name, (write, make) in WRITERS.items():
        folder = tmp_path_factory.mktemp("reports") / name
        found[name] = folder, write(make(), folder)
    return found


@pytest.mark.parametrize("name", WRITERS)
def test_files_are_there_and_say_where_they_come_from(name, written):
    folder, paths = written[name]
    assert {path.name for path in paths} >= {f"{name}.{end}" for end in ("json", "csv", "md")}
    assert sorted(paths) == sorted(folder.iterdir())
    text = (folder / f"{name}.md").read_text(encoding="utf-8")
    assert WRITERS[name][1]()["command"] in text
    pictures = [path for path in paths if path.suffix == ".png"]
    assert pictures
    for path in pictures:
        assert f"]({path.name})" in text
        with Image.open(path) as image:
            assert min(image.size) > 300


@pytest.mark.usefixtures("sketched")
@pytest.mark.parametrize("name", WRITERS)
def test_what_was_read_back_gives_the_same_bytes(name, tmp_path):
    write, make = WRITERS[name]
    paths = write(make(), tmp_path / "first")
    again = write(strict(tmp_path / "first" / f"{name}.json"), tmp_path / "again")
    assert min(len(path.read_bytes()) for path in paths) > 100
    assert [path.name for path in again] == [path.name for path in paths]
    assert [path.read_bytes() for path in again] == [path.read_bytes() for path in paths]


def test_options_are_sorted_and_marked(written):
    folder, _ = written["inference"]
    with (folder / "inference.csv").open() as file:
        rows = list(csv.DictReader(file))
    transfers = [float(row["transfer"]) for row in rows]
    assert transfers == sorted(transfers, reverse=True)
    assert len(rows) == len(inference_results()["options"])
    marked = {row["mark"]: row for row in rows if row["mark"]}
    assert set(marked) == {"paper, this run", "public code"}
    assert (marked["public code"]["aggregation"], marked["public code"]["include_pretrained"]) == ("mean", "True")
    assert {row["top_k"] for row in rows} == {"1", "5", "all"}
    heads, *cells = table((folder / "inference.md").read_text(encoding="utf-8"), "Transfer")
    assert [float(row[heads.index("Transfer")]) for row in cells] == transfers
    assert [row[0] for row in cells if row[0]] == [row["mark"] for row in rows if row["mark"]]


def test_cost_is_in_readable_units(written):
    _, *rows = table((written["inference"][0] / "inference.md").read_text(encoding="utf-8"), "Swapped")
    assert rows == [["1", "100", "200", "10.0", "5.0", "2.0", "1.5"], ["2", "50", "100", "20.0", "10.0", "2.0", "3.0"]]


@pytest.mark.usefixtures("undrawn")
def test_one_task_has_no_transfer(tmp_path):
    results = inference_results(("a",), ("both",))
    results["options"] = [found | {"transfer": float("nan")} for found in results["options"]]
    write_inference(results, tmp_path)
    assert {found["transfer"] for found in strict(tmp_path / "inference.json")["options"]} == {None}
    page = (tmp_path / "inference.md").read_text(encoding="utf-8")
    assert "| – |" in page
    assert "\n1 task: a.\n" in page


def test_variants_after_the_last_session(written):
    text = (written["merging"][0] / "merging.md").read_text(encoding="utf-8")
    _, *rows = table(text, "What it does")
    assert rows[0] == ["this run", "condu", "what condu does", "0.300", "0.500", "0.400", "50.0", "-5.0", "75.0"]
    assert [row[:2] for row in rows[1:]] == [["", "average"], ["", "no-mask"]]
    sections = dict(part.split("\n", 1) for part in text.split("\n## ")[1:])
    assert table(sections["First tasks over the sessions"], "Variant") == [
        ["Variant", "1", "3"], ["condu", "–", "75.0"], ["average", "–", "-25.0"], ["no-mask", "–", "-125.0"],
    ]  # fmt: skip
    assert table(sections["Reconstruction over the sessions"], "Variant")[1] == ["condu", "0.100", "0.200", "0.300"]
    assert table(sections["Storage"], "Tasks")[2] == ["10", "0.0", "0.0", "15.0 %"]


@pytest.mark.usefixtures("undrawn")
def test_without_accuracy_there_is_no_picture_of_it(tmp_path):
    paths = write_merging(merging_results(accuracy=False), tmp_path)
    assert not any("kept" in path.name for path in paths)
    assert "No accuracy was measured" in (tmp_path / "merging.md").read_text(encoding="utf-8")


def test_first_tasks_are_those_that_fine_tuning_gained_on(monkeypatch, tmp_path):
    titles = []
    monkeypatch.setattr(
        merging_plots, "save_figure",
        lambda figure, path: titles.extend(panel.get_title(loc="left") for panel in figure.axes),
    )  # fmt: skip
    merging_plots.accuracy_kept(merging_results(), tmp_path / "x.png")
    assert [title for title in titles if title] == ["task 2: b", "task 3: c", "all learned tasks"]


def test_what_is_kept_beyond_the_axis_is_told_of_and_long_names_are_folded(monkeypatch, tmp_path):
    figures = []
    monkeypatch.setattr(merging_plots, "save_figure", lambda figure, path: figures.append(figure))
    results = merging_results(tasks=("a", "b" * 45, "c"))
    merging_plots.accuracy_kept(results, tmp_path / "x.png")
    for row in (*results["rows"], *results["summary"]):
        if row.get("kept") is not None:
            row["kept"] = 0.5
    merging_plots.accuracy_kept(results, tmp_path / "x.png")
    assert [("at the edge" in figure.get_supylabel()) for figure in figures] == [True, False]
    titles = [panel.get_title(loc="left") for panel in figures[0].axes]
    assert max(len(line) for title in titles for line in title.split("\n")) <= 34


@pytest.mark.parametrize("name", ["spectra", "synthetic"])
def test_no_line_leaves_panels_that_share_an_axis(name, monkeypatch, tmp_path):
    figures = []
    for module in (merging_plots, spectra_report):
        monkeypatch.setattr(module, "save_figure", lambda figure, path: figures.append(figure))
    if name == "spectra":
        rows = [
            {"rule": "condu", "tasks": tasks, "bits": 1.0, "decay": decay, "relative_l2": 0.02 * tasks + decay}
            for tasks in (11, 40)
            for decay in (0.0, 1.0)
        ]
        spectra_report.spectra({"rows": rows, "rules": {"condu": {}}}, tmp_path / "x.png")
    else:
        results = synthetic_results()
        last = results["rows"][-1]["correlation"]
        for row in results["rows"]:
            row["relative_l2"] = 9.0 if row["correlation"] == last else 1.0
        merging_plots.synthetic(results, tmp_path / "x.png")
    for panel in figures[0].axes:
        low, high = panel.get_ylim()
        assert low == 0
        assert all(max(line.get_ydata()) < high for line in panel.lines)


def test_lines_are_the_numbers(monkeypatch, tmp_path):
    figures = []
    for module in (merging_plots, inference_plots):
        monkeypatch.setattr(module, "save_figure", lambda figure, path: figures.append(figure))
    merging_plots.error_by_session(merging_results(), tmp_path / "x.png")
    panel = next(axes for axes in figures[0].axes if axes.get_title(loc="left") == "average")
    lines = [line.get_xydata().round(6).tolist() for line in panel.lines[:3]]
    assert lines == [[[1, 0.2], [2, 0.4], [3, 0.6]], [[2, 0.4], [3, 0.6]], [[3, 0.6]]]
    inference_plots.options_by_k(inference_results(), tmp_path / "x.png")
    first = figures[1].axes[0].lines[0]
    found = [o for o in inference_results()["options"] if o["prototypes"] == "both" and o["aggregation"] == "weighted"]
    assert list(first.get_ydata()) == [o["transfer"] for o in found if o["include_pretrained"]]


def test_many_tasks_fit(tmp_path, monkeypatch):
    monkeypatch.setattr(style, "png", lambda figure: figure.draw_without_rendering() or b"")
    tasks = tuple(f"a_long_name_{number}" for number in range(17))
    assert len(write_merging(merging_results(tasks), tmp_path)) == 7
