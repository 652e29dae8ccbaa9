"""The report: strict JSON, a Markdown page with the numbers, pictures, and the same bytes for the same numbers."""

from __future__ import annotations

import itertools
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from PIL import Image

from condu_ray.report import metrics_plot, run_plots
from condu_ray.report.metrics_plot import metrics_bars
from condu_ray.report.run_plots import accuracy_over_sessions, heat_map
from condu_ray.report.run_report import _calibration, _probes, write_report
from condu_ray.report.run_summary import summary_rows
from condu_ray.report.style import PALETTE
from condu_ray.vlm.calibration import fit_temperature


def make_results(count: int = 3, methods: tuple[str, ...] = ("condu-ft", "zero-shot")) -> dict[str, Any]:
    """Results with made-up numbers; those of a single task have nan where a metric does not exist."""
    random = np.random.default_rng(0)
    tasks = [f"task_{index}" for index in range(count)]
    undefined = math.nan if count == 1 else None
    entries: dict[str, Any] = {}
    for name in methods:
        entries[name] = {
            "accuracy": random.uniform(20, 100, (count, count)).tolist(),
            "transfer": undefined or 61.25,
            "average": 70.5,
            "last": 80.04,
            "backward_transfer": undefined or -1.234,
            "forgetting": undefined or 2.345,
            "seconds": 12.34,
        }
    rows = [
        [{"task": task, "relative_l2": 0.125, "sign_agreement": 0.75} for task in tasks[: session + 1]]
        for session in range(count)
    ]
    entries[methods[0]]["reconstruction"] = rows
    return {
        "tasks": tasks,
        "methods": entries,
        "run": "mini-1",
        "recipe": "mini_mtil",
        "seed": 3,
        "config": {"steps": 100, "text": "```"},
        "versions": {"torch": "2.15"},
        "command": "python jobs/run_mtil.py --recipe mini_mtil",
    }


def load_strict(path: Path) -> Any:
    """Reads JSON and fails on NaN and Infinity, which Python would accept."""
    return json.loads(path.read_text(encoding="utf-8"), parse_constant=lambda text: pytest.fail(f"{text} in JSON"))


@pytest.mark.usefixtures("undrawn")
def test_calibration_stands_under_its_task_where_some_were_measured_by_an_earlier_release(tmp_path: Path) -> None:
    results = make_results(3, ("individual", "condu-svd"))
    ones = [{"task": task, "temperature": None, "before": 1.0 + place, "after": None} for place, task in
            enumerate(results["tasks"])]  # fmt: skip
    results["methods"]["individual"]["calibration"] = ones[1:]
    results["methods"]["condu-svd"]["calibration"] = ones
    write_report(results, tmp_path)
    lines = (tmp_path / "report.md").read_text().splitlines()
    assert "| Method | task_0 | task_1 | task_2 | mean |" in lines
    assert "| individual | – | 2.0 | 3.0 | – |" in lines
    assert "| condu-svd | 1.0 | 2.0 | 3.0 | 2.0 |" in lines


@pytest.mark.usefixtures("undrawn")
def test_a_temperature_at_the_edge_of_those_tried_is_told_of(tmp_path: Path) -> None:
    results = make_results(3, ("individual", "condu-svd")) | {"config": {"validation_share": 0.1}}
    scores = torch.tensor([[3.0, 1.0]] * 20, dtype=torch.float64)
    flattest = fit_temperature(scores, torch.ones(20, dtype=torch.long))  # of an expert that is wrong every time
    for entry, temperature in zip(results["methods"].values(), (1.5, flattest), strict=True):
        entry["calibration"] = [{"task": "task_1", "temperature": temperature, "before": 1.0, "after": 0.5}]
    write_report(results, tmp_path)
    (line,) = [line for line in (tmp_path / "report.md").read_text().splitlines() if line.startswith("At the edge")]
    assert "(0.0001 to 10000)" in line
    assert "condu-svd's of task" in line
    assert "individual" not in line


@pytest.mark.usefixtures("undrawn")
def test_bits_say_of_which_parameters_they_are(tmp_path: Path) -> None:
    results = make_results()
    for entry in results["methods"].values():
        entry["bits"] = 0.2
    write_report(results, tmp_path)
    (line,) = [line for line in (tmp_path / "report.md").read_text().splitlines() if line.startswith("- **Bits**")]
    assert "of adapters: of the matrices that they adapt" in line


def test_files(tmp_path: Path) -> None:
    results = make_results()
    paths = write_report(results, tmp_path / "new" / "report")
    names = ["results.json", "report.md", "metrics.png", "accuracy.png", "matrix-condu-ft.png", "matrix-zero-shot.png"]
    assert [path.name for path in paths] == names
    assert sorted(path.name for path in (tmp_path / "new" / "report").iterdir()) == sorted(names)
    assert load_strict(paths[0]) == results
    for path in paths[2:]:
        with Image.open(path) as image:
            image.load()
            assert min(image.size) > 200
            assert set(image.info) <= {"dpi"}


@pytest.mark.usefixtures("undrawn")
def test_validation_images_are_named_wherever_a_figure_is(tmp_path: Path) -> None:
    write_report(make_results(), tmp_path / "test")
    write_report(make_results() | {"measured_on": "validation"}, tmp_path / "validation")
    texts = {kind: (tmp_path / kind / "report.md").read_text(encoding="utf-8") for kind in ("test", "validation")}
    assert "validation" not in texts["test"]
    for line in (
        "task_2. Measured on validation images.",
        "## Methods, protocol task, validation images",
        "Protocol `task`, validation images:",
    ):
        assert line in texts["validation"]


@pytest.mark.usefixtures("undrawn")
def test_markdown(tmp_path: Path) -> None:
    results = make_results()
    results["methods"]["condu-ft"]["accuracy"] = [[91.04, 20.5, 33.3], [90.0, 82.25, 31.0], [89.0, 81.0, None]]
    write_report(results, tmp_path)
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    for line in (
        "# Report of mini-1",
        "Recipe mini_mtil, seed 3, 3 tasks: task_0, task_1, task_2. Measured on test images.",
        "| Method | Transfer | Average | Last | BWT | Forgetting | Seconds |",
        "| condu-ft | 61.2 | 70.5 | 80.0 | -1.23 | 2.35 | 12.3 |",
        "| After session | task_0 | task_1 | task_2 |",
        "| 1 task_0 | **91.0** | 20.5 | 33.3 |",
        "| 2 task_1 | 90.0 | **82.2** | 31.0 |",
        "| 3 task_2 | 89.0 | 81.0 | **–** |",
        "| 2 | 0.125 / 0.750 | 0.125 / 0.750 |  |",
        "![Accuracy matrix of zero-shot, protocol task](matrix-zero-shot.png)",
        "## Methods, protocol task",
        "python jobs/run_mtil.py --recipe mini_mtil",
        '  "torch": "2.15"',
        "````json",  # longer than the fence inside the config
    ):
        assert line in text.splitlines(), line
    assert "- **Last**: mean accuracy over all tasks after the last session." in text


@pytest.mark.usefixtures("undrawn")
def test_every_protocol_has_its_tables_and_pictures_and_is_named_there(tmp_path: Path) -> None:
    results = make_results()
    condu = results["methods"]["condu-ft"]
    for number, name in enumerate(("own", "union", "xtail")):
        matrix = [[80.0 - 10 * number] * 3] * 3
        condu[name] = {"accuracy": matrix, "transfer": 61.25, "average": 70.5, "last": 60.06 - 10 * number}
    paths = write_report(results, tmp_path)
    lines = paths[1].read_text(encoding="utf-8").splitlines()
    for name, last in {"own": "60.1", "union": "50.1", "xtail": "40.1"}.items():
        start = lines.index(f"## Methods, protocol {name}")
        assert lines[start + 2].startswith(f"Protocol `{name}`: ")
        shown = lines[start + 4 : start + 8]
        assert shown == [
            "| Method | Transfer | Average | Last | BWT | Forgetting |", "| :-- | --: | --: | --: | --: | --: |",
            f"| condu-ft | 61.2 | 70.5 | {last} | – | – |", "",
        ]  # fmt: skip
        assert lines[start + 8] == "Not measured, for they need the task's identity: zero-shot."
        assert lines.count(f"Protocol `{name}`:") == 1  # above its matrix
        assert {tmp_path / f"{name}_metrics.png", tmp_path / f"{name}_accuracy.png"} < set(paths)
        assert any(line.endswith(f"({name}_accuracy.png)") for line in lines)
    assert load_strict(paths[0])["methods"]["condu-ft"]["xtail"]["last"] == 40.06


@pytest.mark.usefixtures("undrawn")
def test_results_without_the_task_known(tmp_path: Path) -> None:
    results = make_results()
    for entry in results["methods"].values():
        entry["own"] = {key: entry.pop(key) for key in ("accuracy", "transfer", "average", "last")}
    paths = write_report(results, tmp_path)
    text = paths[1].read_text(encoding="utf-8")
    assert "| condu-ft | 61.2 | 70.5 | 80.0 | – | – | 12.3 |" in text
    assert "protocol task" not in text
    assert [path.name for path in paths[2:4]] == ["own_metrics.png", "own_accuracy.png"]


@pytest.mark.usefixtures("undrawn")
def test_what_was_written_before_there_were_protocols_is_read(tmp_path: Path) -> None:
    results = make_results()
    results["methods"]["condu-ft"]["union"] = {**results["methods"]["condu-ft"], "last": 60.06}
    assert "protocols" not in results
    text = write_report(results, tmp_path)[1].read_text(encoding="utf-8")
    assert "## Methods, protocol union" in text
    assert "| condu-ft | 61.2 | 70.5 | 60.1 | -1.23 | 2.35 |" in text


@pytest.mark.usefixtures("sketched")
def test_one_task(tmp_path: Path) -> None:
    results = make_results(1, ("condu-ft",))
    paths = write_report(results, tmp_path)
    read = load_strict(paths[0])
    assert [read["methods"]["condu-ft"][key] for key in ("transfer", "backward_transfer", "forgetting")] == [None] * 3
    assert read["methods"]["condu-ft"]["last"] == 80.04
    assert "| condu-ft | – | 70.5 | 80.0 | – | – | 12.3 |" in paths[1].read_text(encoding="utf-8")
    # What was read back gives the same report.
    again = write_report(read, tmp_path / "again")
    assert [path.read_bytes() for path in again] == [path.read_bytes() for path in paths]


def test_values_that_json_does_not_know(tmp_path: Path) -> None:
    results = make_results()
    results["methods"]["condu-ft"]["accuracy"] = np.full((3, 3), 50, dtype=np.float32)
    results["methods"]["condu-ft"]["last"] = np.float64(80)
    results["config"] = {"folder": Path("data"), "order": ("b", "a"), 3: {"x"}, "limit": math.inf, "on": np.bool_(True)}
    read = load_strict(write_report(results, tmp_path, pictures=False)[0])
    assert read["methods"]["condu-ft"]["accuracy"] == [[50.0] * 3] * 3
    assert read["methods"]["condu-ft"]["last"] == 80
    assert read["config"] == {"folder": "data", "order": ["b", "a"], "3": ["x"], "limit": None, "on": True}


@pytest.mark.usefixtures("undrawn")
def test_names_of_pictures(tmp_path: Path) -> None:
    methods = ("../a b", "a/b", "a b", "A b", "x|y")
    paths = write_report(make_results(2, methods), tmp_path)
    names = [path.name for path in paths[4:]]
    assert names == ["matrix-..-a-b.png", "matrix-a-b.png", "matrix-a-b-2.png", "matrix-A-b-3.png", "matrix-x-y.png"]
    assert all(path.parent == tmp_path and path.is_file() for path in paths)
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "| x\\|y | 61.2 |" in text


@pytest.mark.parametrize("key", ["tasks", "methods"])
def test_nothing_to_report(key: str, tmp_path: Path) -> None:
    results = make_results()
    results[key] = type(results[key])()
    with pytest.raises(ValueError, match=f"no '{key}'"):
        write_report(results, tmp_path)
    assert load_strict(tmp_path / "results.json")["run"] == "mini-1"


@pytest.mark.parametrize("accuracy", [[[1.0, 2.0]], [[1.0] * 3] * 2, [[1.0] * 3, [1.0] * 2, [1.0] * 3], None, "abc"])
def test_bad_matrix(accuracy: Any, tmp_path: Path) -> None:
    results = make_results()
    results["methods"]["zero-shot"]["accuracy"] = accuracy
    with pytest.raises(ValueError, match="method 'zero-shot': no usable 'accuracy'"):
        write_report(results, tmp_path)
    assert (tmp_path / "results.json").is_file()


def test_rewritten_as_a_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_report(make_results(), tmp_path, pictures=False)
    before = (tmp_path / "results.json").read_bytes()

    def fail(*_: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(OSError, match="no space left"):
        write_report(make_results(2), tmp_path)
    assert (tmp_path / "results.json").read_bytes() == before
    assert not list(tmp_path.glob(".*"))


@pytest.mark.usefixtures("undrawn")
def test_a_part_of_the_images_is_named_and_no_figure_is_minus_nothing(tmp_path: Path) -> None:
    results = make_results(2)
    results["config"] = {"evaluation": {"max_images": 60}}
    for entry in results["methods"].values():
        entry["backward_transfer"] = -1e-9
    write_report(results, tmp_path)
    page = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "Measured on test images, at most 60 a task." in page
    assert "-0.0" not in page.partition("```")[0]


def test_many_tasks_and_methods(tmp_path: Path) -> None:
    methods = tuple(f"method-{index}" for index in range(len(PALETTE) + 4))
    results = make_results(2, methods)
    for path in (metrics_bars(results, tmp_path / "bars.png"), accuracy_over_sessions(results, tmp_path / "lines.png")):
        assert path.stat().st_size > 1000


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """Pictures that would be written."""
    figures: list[Figure] = []
    for module in (run_plots, metrics_plot):
        monkeypatch.setattr(module, "save_figure", lambda figure, path: figures.append(figure) or path)
    return figures


def test_of_a_hundred_tasks_pictures_stay_small_and_tell_means(tmp_path: Path, drawn: list[Figure]) -> None:
    results = make_results(100)
    accuracy = np.array(results["methods"]["condu-ft"]["accuracy"])
    heat_map(accuracy.tolist(), results["tasks"], "x", tmp_path)
    accuracy_over_sessions(results, tmp_path)
    assert max(drawn[0].get_size_inches()) < 21
    assert not drawn[0].axes[0].texts
    learned, others = (panel.lines[0].get_ydata() for panel in drawn[1].axes)
    assert len(drawn[1].axes) == 2
    assert learned[41] == pytest.approx(accuracy[41, :42].mean())
    assert others[41] == pytest.approx(accuracy[41, 42:].mean())
    assert math.isnan(others[99])  # none is left


def test_cells_of_many_tasks_have_room_for_their_numbers(tmp_path: Path, drawn: list[Figure]) -> None:
    heat_map(np.full((20, 20), 50.0).tolist(), [f"a_long_name_{index}" for index in range(20)], "x", tmp_path)
    drawn[0].draw_without_rendering()
    assert drawn[0].axes[0].get_window_extent().width / drawn[0].dpi / 20 > 0.4  # inches that "100.0" takes


def test_what_prints_the_same_is_the_highest_alike(tmp_path: Path, drawn: list[Figure]) -> None:
    results = make_results(2, tuple(f"method-{index}" for index in range(9)))
    for index, entry in enumerate(results["methods"].values()):
        entry["last"] = (86.21, 86.24, 86.1)[min(index, 2)]
    metrics_bars(results, tmp_path)
    colours = [bar.get_facecolor() for bar in drawn[0].axes[2].patches]
    assert colours[0] == colours[1] != colours[2] == colours[8]


def test_bounds_are_not_the_highest(tmp_path: Path, drawn: list[Figure]) -> None:
    results = make_results(2, ("individual", *(f"method-{index}" for index in range(8))))
    for index, entry in enumerate(results["methods"].values()):
        entry["last"] = 90.0 - index
    metrics_bars(results, tmp_path)
    colours = [bar.get_facecolor() for bar in drawn[0].axes[2].patches]
    assert len({colours[0], colours[1], colours[2]}) == 3
    assert colours[1] == to_rgba(PALETTE[0])
    assert "(dark: the highest; grey: individual, not compared)" in drawn[0].get_supxlabel()


def test_of_more_than_eight_methods_the_eight_highest_have_a_colour(tmp_path: Path, drawn: list[Figure]) -> None:
    results = make_results(2, tuple(f"method-{index}" for index in range(12)))
    for index, entry in enumerate(results["methods"].values()):
        entry["last"] = None if index == 0 else 50.0 + index % 11  # method-11 is the lowest but for the first
    accuracy_over_sessions(results, tmp_path)
    [legend] = drawn[0].legends
    assert [text.get_text() for text in legend.get_texts()] == [*(f"method-{n}" for n in range(3, 11)), "4 others"]
    lines = drawn[0].axes[0].lines[1:]  # behind the dashed one
    coloured = [index for index, line in enumerate(lines) if line.get_color() in PALETTE]
    assert coloured == list(range(3, 11))
    assert len({lines[index].get_color() for index in coloured}) == 8
    assert min(lines[index].zorder for index in coloured) > max(lines[index].zorder for index in (0, 1, 2, 11))


@pytest.mark.parametrize("length", [4, 25, 43, 100])
def test_long_names_of_tasks_leave_room_for_the_numbers(length: int, tmp_path: Path, drawn: list[Figure]) -> None:
    results = make_results(3)
    results["tasks"] = [f"{name}_of_a_{'long_' * length}"[:length] for name in "abc"]
    heat_map([[50.0] * 3] * 3, results["tasks"], "x", tmp_path)
    accuracy_over_sessions(results, tmp_path)
    for figure in drawn:
        FigureCanvasAgg(figure).draw()
    cells, panels = drawn[0].axes[0], drawn[1].axes
    assert cells.get_window_extent().width / drawn[0].dpi / 3 > 0.5  # inches; "100.0" takes 0.4
    boxes = [panel._left_title.get_window_extent() for panel in panels]  # type: ignore[attr-defined]
    assert all(left.x1 < right.x0 for left, right in itertools.pairwise(boxes))


def test_imports_stay_light() -> None:
    code = """
import sys
import condu_ray.benchmark
assert "matplotlib" not in sys.modules
import condu_ray.report.ablation_report, condu_ray.report.run_report, condu_ray.report.sweep_report
heavy = {"torch", "ray", "mlflow", "open_clip", "matplotlib.pyplot"} & set(sys.modules)
assert not heavy, heavy
import condu_ray.report.metrics_plot, condu_ray.report.run_plots
assert not {"scipy.stats", "matplotlib.pyplot"} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_bits_are_a_column_where_they_were_counted() -> None:
    results = make_results()
    assert "Bits" not in summary_rows(results, "task")[0]
    results["methods"]["condu-ft"]["bits"] = 6.333
    with_them, without = summary_rows(results, "task")
    assert (with_them["Bits"], without["Bits"]) == ("6.33", "–")


@pytest.mark.parametrize(
    ("share", "measured_on", "words"),
    [
        (0.0, "test", "no image was held out of training"),
        (0.2, "test", "the one fitted on the task's held-out images (in brackets)"),
        (0.2, "validation", "the one fitted on the same held-out images, which flatters it"),
    ],
)
def test_a_calibration_says_by_which_images_it_is_fitted(share: float, measured_on: str, words: str) -> None:
    after = {"temperature": 2.0, "after": 3.0} if share else {}
    found = [{"task": "a", "before": 9.0, **after}, {"task": "b", "before": 4.0, **after}]
    config = {"validation_share": share}
    results = {"tasks": ["a", "b"], "methods": {"x": {"calibration": found}}, "config": config}
    _, text, table, *edges = _calibration(results | {"measured_on": measured_on})
    assert words in text
    cells = ["9.0 → 3.0 (2.00)", "4.0 → 3.0 (2.00)", "6.5 → 3.0"] if share else ["9.0", "4.0", "6.5"]
    assert f"| x | {' | '.join(cells)} |" in table
    assert not edges


def test_probes_are_shown_from_theta0_on() -> None:
    results = {"tasks": ["a", "b"], "methods": {"x": {"probes": {"birds": [40.0, 30.0]}}, "y": {}}}
    assert _probes(results, {"birds": 50.0}).splitlines()[::2] == [
        "| Probe | Method | Pretrained | After 1 | After 2 |", "| birds | x | 50.0 | 40.0 | 30.0 |",
    ]  # fmt: skip
