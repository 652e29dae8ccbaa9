"""Pictures of routing: their words stay beside one another, however long and few the tasks' names are."""

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from condu_ray.report import routing_plots


@pytest.mark.parametrize("tasks", [["a"], ["birds", "tools"], ["a-very-long-task-name-that-somebody-gave", "b", "c"]])
def test_the_words_of_two_routers_do_not_overlap(tasks, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(routing_plots, "save_figure", lambda figure, path: drawn.append(figure) or path)
    even = [[100 / len(tasks)] * len(tasks)] * len(tasks)
    found = {"tasks": tasks, "confusion": {"prototype": even, "gaussian": even}}
    routing_plots.confusion({"routing": found}, tmp_path / "routing.png")
    canvas = FigureCanvasAgg(drawn[0])
    canvas.draw()
    boxes = [panel._left_title.get_window_extent(canvas.get_renderer()) for panel in drawn[0].axes]
    assert boxes[0].x1 < boxes[1].x0
    assert boxes[1].x1 <= drawn[0].bbox.x1


@pytest.mark.parametrize("tasks", [3, 13])
def test_cells_have_numbers_or_a_scale(tasks, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(routing_plots, "save_figure", lambda figure, path: drawn.append(figure) or path)
    even = [[100 / tasks] * tasks] * tasks
    found = {"tasks": [f"task_{place}" for place in range(tasks)], "confusion": {"prototype": even, "gaussian": even}}
    routing_plots.confusion({"routing": found}, tmp_path / "routing.png")
    *panels, last = drawn[0].axes
    assert bool(panels[0].texts) == (tasks == 3)
    assert ("%" in last.get_ylabel()) == (tasks == 13)


def test_points_are_named_in_the_legend_and_not_beside_one_another(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(routing_plots, "save_figure", lambda figure, path: drawn.append(figure) or path)
    names = ("paper", "zero-shot", "mixture, gaussian")
    rows = [
        {"rule": name, "session": 1, "protocol": "union", "learned": 8.0 + place, "unlearned": 0.5}
        for place, name in enumerate(names)
    ]
    curve = {"rule": "nearest", "session": 1, "auroc": 0.5, "points": [[9.0, 0.0], [0.0, 2.0]]}
    routing_plots.curves({"curves": [curve], "rows": rows}, tmp_path / "curves.png")
    (panel,) = drawn[0].axes
    assert not panel.texts
    assert {text.get_text() for text in panel.get_legend().get_texts()} == {"nearest, AUROC 0.50", *names}
