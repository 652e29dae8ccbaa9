"""`jobs/plot_dashboard.py` without a server: times, units, legends, and what it says when nobody answers."""

import json

import generate
import pytest
from drawing import COLOURS, colour, draw, shown
from reading import Series, filled_in, legend
from server import free_port

from jobs import plot_dashboard
from jobs.plot_dashboard import moment

OVERVIEW = generate.HERE / "grafana" / "dashboards" / "overview.json"
STEPS = [{"color": "red", "value": None}, {"color": "yellow", "value": 0.1}, {"color": "green", "value": 0.25}]


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (0.1234, "percentunit", "12.3 %"),
        (512, "bytes", "512 B"),
        (3 * 1024**3, "bytes", "3 GiB"),
        (0.0125, "s", "12.5 ms"),
        (0, "s", "0 s"),
        (7, "s", "7 s"),
        (600, "s", "10 min"),
        (7200, "s", "2 h"),
        (41.26, "suffix: images/s", "41.3 images/s"),
        (5, "short", "5"),
        (float("nan"), "s", "-"),
    ],
)
def test_numbers_have_their_units(value, unit, text):
    assert shown(value, unit) == text


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("now", 1000), ("-90s", 910), ("-15m", 100), ("12.5", 12.5), ("1970-01-01T00:10+00:00", 600)],
)
def test_times(text, seconds):
    assert moment(text, 1000.0) == seconds


@pytest.mark.parametrize("text", ["yesterday", "nan", "-inf"])
def test_what_is_no_time_is_refused(text):
    with pytest.raises(ValueError, match=f"'{text}' is no time: give -15m"):
        moment(text, 0.0)


@pytest.mark.parametrize(
    ("dashboard", "out", "words"),
    [
        ("none.json", "a.png", "none.json: cannot be read"),
        ("text.json", "a.png", "text.json: cannot be read"),
        ("list.json", "a.png", "list.json: is no dashboard"),
        (str(OVERVIEW), "a.pn", "a.pn: cannot be written"),
        (str(OVERVIEW), "text.json/a.png", "text.json/a.png: cannot be written"),
    ],
)
def test_what_cannot_be_read_or_written_is_one_sentence(tmp_path, monkeypatch, capsys, dashboard, out, words):
    (tmp_path / "text.json").write_text("text")
    (tmp_path / "list.json").write_text("[]")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(plot_dashboard, "fetch", lambda *what: [])
    assert plot_dashboard.main(["--dashboard", dashboard, "--out", out]) == 2
    assert words in capsys.readouterr().out


def test_variables_are_filled_in_as_grafana_would():
    query = 'rate(x{run=~"($run)([.].*)?"}[$__rate_interval]) + last_over_time(y[$__range])'
    assert filled_in(query, seconds=900, step=10, run="r") == (
        'rate(x{run=~"(r)([.].*)?"}[40s]) + last_over_time(y[900s])'
    )
    assert "[20s]" in filled_in(query, seconds=900, step=1)


def test_legends():
    labels = {"task": "a", "method": "condu", "__name__": "x"}
    assert legend("{{task}} ({{ method }})", labels) == "a (condu)"
    assert legend("{{lane}}", labels) == ""
    assert legend("", labels) == "method=condu, task=a"


@pytest.mark.parametrize(("value", "name"), [(0.05, "red"), (0.1, "yellow"), (0.2, "yellow"), (0.9, "green")])
def test_thresholds_colour(value, name):
    assert colour(value, STEPS) == COLOURS[name]


def test_gaps_and_empty_panels_are_drawn(tmp_path):
    dashboard = json.loads(OVERVIEW.read_text())
    panels = [panel for panel in dashboard["panels"] if panel["type"] != "row"]
    series = Series({"run": "r"}, [0.0, 1.0, 2.0, 300.0, 301.0], [1.0, 2.0, 3.0, 4.0, 5.0])
    data = {panel["id"]: [("r", series)] if panel["title"] == "Loss" else [] for panel in panels}
    figure = draw(dashboard, data, 0.0, 600.0)
    (axes,) = [axes for axes in figure.axes if axes.get_title(loc="left") == "Loss"]
    drawn = axes.lines[0].get_ydata()
    assert sum(value != value for value in drawn) == 1, "a gap is not bridged"
    words = {text.get_text() for axes in figure.axes for text in axes.texts}
    assert {"no data", "not running"} <= words
    figure.savefig(tmp_path / "x.png")


@pytest.mark.parametrize(
    ("flags", "words"),
    [(("--start=soon",), "is no time"), (("--start=-5m", "--end=-10m"), "is not before"), ((), "does not answer")],
)
def test_bad_input_ends_with_a_message(tmp_path, capsys, flags, words):
    address = f"http://127.0.0.1:{free_port()}"
    out = tmp_path / "x.png"
    code = plot_dashboard.main(["--prometheus", address, "--dashboard", str(OVERVIEW), "--out", str(out), *flags])
    assert code == 2
    assert words in capsys.readouterr().out
    assert not out.exists()
