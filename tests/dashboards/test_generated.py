"""The committed files are what the generator writes, and Grafana can read them."""

import json

import generate
import pytest
from boards import BOARDS
from panels import WIDTH

FOLDER = generate.HERE / "grafana" / "dashboards"
UNITS = ("short", "none", "s", "bytes", "percentunit")


def test_committed_files_are_in_step():
    assert generate.stale() == [], "run `python dashboards/generate.py`"


def test_no_other_dashboard_is_there():
    assert {path.stem for path in FOLDER.iterdir()} == set(BOARDS)


def test_check_says_what_would_change(tmp_path, monkeypatch, capsys):
    files = {tmp_path / "a" / "x.json": "new", tmp_path / "y": "same"}
    (tmp_path / "y").write_text("same")
    monkeypatch.setattr(generate, "HERE", tmp_path / "a")
    monkeypatch.setattr(generate, "files", lambda: files)
    assert generate.main(["--check"]) == 1
    assert "out of date: a/x.json" in capsys.readouterr().out
    assert not (tmp_path / "a").exists()
    assert generate.main([]) == 0
    assert generate.main(["--check"]) == 0


@pytest.fixture(params=list(BOARDS))
def dashboard(request):
    return json.loads((FOLDER / f"{request.param}.json").read_text())


def test_panels_are_explained(dashboard):
    panels = [panel for panel in dashboard["panels"] if panel["type"] != "row"]
    assert len({panel["title"] for panel in panels}) == len(panels) >= 12
    for panel in panels:
        assert len(panel["description"]) > 50, panel["title"]
        assert panel["description"].endswith(".")
        unit = panel["fieldConfig"]["defaults"]["unit"]
        assert unit in UNITS or unit.startswith("suffix:"), panel["title"]
        steps = panel["fieldConfig"]["defaults"]["thresholds"]["steps"]
        values = [step["value"] for step in steps]
        assert values[0] is None
        assert values[1:] == sorted(values[1:])
        assert panel["targets"]


def test_panels_have_places_of_their_own(dashboard):
    taken = set()
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])
    for panel in dashboard["panels"]:
        where = panel["gridPos"]
        assert where["x"] + where["w"] <= WIDTH
        cells = {
            (x, y)
            for x in range(where["x"], where["x"] + where["w"])
            for y in range(where["y"], where["y"] + where["h"])
        }
        assert not cells & taken, panel["title"]
        taken |= cells


def test_curves_are_asked_over_time_and_the_rest_once(dashboard):
    for panel in dashboard["panels"]:
        for target in panel.get("targets", ()):
            assert target["instant"] != target["range"]
            assert target["range"] == (panel["type"] in ("timeseries", "state-timeline"))
            assert "$__rate_interval" not in target["expr"] or target["range"], "a rate of one moment is chance"


def test_sources_and_runs_can_be_chosen_and_dashboards_link(dashboard):
    variables = {variable["name"]: variable for variable in dashboard["templating"]["list"]}
    assert variables["datasource"]["type"] == "datasource"
    assert variables["run"]["includeAll"]
    assert "ray_condu_experts_wanted" in variables["run"]["definition"]
    sources = {json.dumps(panel["datasource"]) for panel in dashboard["panels"] if panel["type"] != "row"}
    assert sources == {json.dumps({"type": "prometheus", "uid": "${datasource}"})}
    links = {link["title"]: link for link in dashboard["links"]}
    assert set(links) == {"condu_ray", "Ray dashboard", "MLflow"}
    assert links["condu_ray"]["tags"] == dashboard["tags"]
    for title, name in (("Ray dashboard", "ray_dashboard"), ("MLflow", "mlflow")):
        assert links[title]["url"] == f"${{{name}}}"
        assert variables[name]["current"]["value"].startswith("http://localhost:")
    assert dashboard["schemaVersion"] == 38


def test_dashboards_have_different_identities():
    found = [json.loads(path.read_text()) for path in FOLDER.iterdir()]
    assert len({one["uid"] for one in found}) == len({one["title"] for one in found}) == len(BOARDS)


def test_a_share_without_hits_is_nought_and_accuracies_of_several_runs_are_their_mean():
    expressions = {
        panel["title"]: panel["targets"][0]["expr"]
        for name in BOARDS
        for panel in json.loads((FOLDER / f"{name}.json").read_text())["panels"]
        if panel["type"] != "row"
    }
    hits, _, wanted = expressions["Found instead of made"].rpartition(" / on (what) ")
    assert hits.endswith(f" or 0 * {wanted})")
    assert expressions["Accuracy by task"].startswith("avg by (method, task) (")
