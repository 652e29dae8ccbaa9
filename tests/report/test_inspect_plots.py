"""Pictures of a page of inspection: their words have room, and no two tasks look the same."""

import warnings

import numpy as np
import pytest
from matplotlib.figure import Figure

from condu_ray.report import inspect_plots


@pytest.fixture
def drawn(monkeypatch):
    """The figures that are drawn, after they were laid out."""
    found: list[Figure] = []

    def keep(figure):
        found.append(figure)
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # of a layout that has no room
            figure.draw_without_rendering()
        return b""

    monkeypatch.setattr(inspect_plots, "png", keep)
    return found


def names(count, length):
    return [f"{place:03d}_{'long_' * 20}"[:length] for place in range(count)]


@pytest.mark.parametrize("length", [4, 40, 100])
def test_layers_keep_their_room_beside_long_names_of_tasks(length, drawn):
    share = np.full((4, 3), 0.5)
    layers = [f"visual.transformer.resblocks.{place}" for place in range(4)]
    inspect_plots.layer_maps({"one": (layers, share), "another": (layers, share)}, names(3, length))
    boxes = [axes.get_window_extent() for axes in drawn[0].axes[:2]]
    assert all(box.height / drawn[0].dpi / 4 > 0.15 for box in boxes)  # inches; a layer's name takes 0.1


@pytest.mark.parametrize(("count", "length"), [(1, 7), (6, 7), (3, 40), (30, 40), (21, 100)])
def test_points_of_any_number_of_tasks_are_told_apart(count, length, drawn):
    tasks = names(count, length)
    places = np.repeat(np.arange(count), 2)
    points = np.stack([places, places], axis=1).astype(float)
    inspect_plots.feature_spaces(dict.fromkeys(("one", "two"), (points, places, places * 0)), tasks)
    (figure,) = drawn
    colours = {tuple(shown.get_facecolor()[0]) for shown in figure.axes[0].collections if len(shown.get_offsets())}
    assert len(colours) == count
    legend = figure.legends[0].get_window_extent()
    width = legend.width / figure.bbox.width
    assert width < 1.1 if length < 100 else width < 1.3
    assert figure.axes[0].get_window_extent().width / figure.dpi > 3
    numbers = [text.get_text() for text in figure.axes[0].texts]
    assert numbers == ([str(place + 1) for place in range(count)] if count > 8 else [])
