"""Every panel's query against a real Prometheus that holds every metric: it answers, and the figures are right."""

import json
import shutil
import subprocess
import time

import generate
import pretend
import pytest
import reading
from boards import BOARDS
from server import prometheus

from jobs import plot_dashboard

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("prometheus") is None, reason="Prometheus is not installed"),
]
MINUTES = 20
PANELS = [(name, panel.title) for name, board in BOARDS.items() for panel in board.panels]


def read(name):
    return json.loads((generate.HERE / "grafana" / "dashboards" / f"{name}.json").read_text())


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("prometheus")
    end = int(time.time()) - 60
    start = end - 60 * MINUTES
    (folder / "all.om").write_text(pretend.openmetrics(start, end))
    command = ["promtool", "tsdb", "create-blocks-from", "openmetrics", folder / "all.om", folder / "data"]
    subprocess.run(list(map(str, command)), check=True, capture_output=True, timeout=60)
    (folder / "prometheus.yml").write_text("{}")
    with prometheus(folder / "prometheus.yml", folder / "data") as address:
        yield address, start, end


@pytest.mark.parametrize(("name", "title"), PANELS)
def test_a_panel_has_data(server, name, title):
    address, start, end = server
    (panel,) = [panel for panel in read(name)["panels"] if panel["title"] == title and panel["type"] != "row"]
    for target in panel["targets"]:
        found = reading.fetch(address, panel | {"targets": [target]}, start, end, "r")
        assert found, target["expr"]
        names = [legend for legend, _ in found]
        assert len(set(names)) == len(names), "series that cannot be told apart"
        assert "{{" not in "".join(names)
        for _, series in found:
            assert all(value == value for value in series.values), f"{target['expr']} is not a number"
            assert len(series.times) > 50 if target["range"] else len(series.times) == 1
        if panel["fieldConfig"]["defaults"].get("max") == 1:
            assert all(0 <= value <= 1 for _, series in found for value in series.values)


def values(server, name, title, run="r"):
    address, start, end = server
    (panel,) = [panel for panel in read(name)["panels"] if panel["title"] == title and panel["type"] != "row"]
    return {legend: series.values[-1] for legend, series in reading.fetch(address, panel, start, end, run)}


def test_the_figures_are_right(server):
    samples = 60 * MINUTES / pretend.STEP + 1
    assert values(server, "overview", "Run") == {"": 1.0}
    assert values(server, "overview", "Since last progress") == {"": 7.0}
    assert values(server, "overview", "Alerts") == {"": 0.0}
    assert values(server, "overview", "Experts trained") == {"trained": 5.0, "wanted": 5.0}
    # A driver before, with 3 experts, has been killed: it is not added to the one that went on, nor are its accuracies.
    assert values(server, "overview", "Sessions")["wanted"] == 10.0
    assert set(values(server, "merging", "Accuracy by task").values()) == {0.5}
    assert values(server, "overview", "Accuracy") == {f"{method}, protocol task": 0.5 for method in ("condu", "pam")}
    assert values(server, "overview", "Found instead of made") == {"expert": 0.5, "measurement": 0.5}
    assert values(server, "sweep", "Finished") == {"": 0.5}
    experts = values(server, "training", "Experts by method")
    assert experts == {method: 4 * samples for method in ("condu", "pam")}
    images = values(server, "training", "Images per second")
    assert images == {f"r lane {lane}": pytest.approx(4 / pretend.STEP) for lane in (0, 1)}
    median = values(server, "merging", "Time of a merge")["condu median"]
    assert 0.3 < median < 10  # every bucket is as full as the others


def test_only_the_chosen_run_is_shown(server):
    assert values(server, "overview", "Accuracy", run="r") != {}
    assert values(server, "overview", "Accuracy", run="another") == {}
    assert values(server, "overview", "Run", run="another") == {}


@pytest.mark.parametrize("name", list(BOARDS))
def test_a_dashboard_can_be_drawn(server, name, tmp_path, capsys):
    address, start, end = server
    dashboard = generate.HERE / "grafana" / "dashboards" / f"{name}.json"
    out = tmp_path / "pictures" / f"{name}.png"
    code = plot_dashboard.main(
        ["--prometheus", address, "--dashboard", str(dashboard), f"--start={start}", f"--end={end}", "--out", str(out)]
    )
    assert code == 0
    assert out.read_bytes()[:4] == b"\x89PNG"
    said = capsys.readouterr().out
    count = len(BOARDS[name].panels)
    assert f"{count} of {count} panels have data" in said


def test_what_prometheus_refuses_is_said(server):
    with pytest.raises(reading.PrometheusError, match="parse error"):
        reading.ask(server[0], "query", query="sum(")
