"""`dashboards/README.md` and Grafana's provisioning against what they speak of."""

import re

import generate
import yaml
from boards import BOARDS

PAGE = (generate.HERE / "README.md").read_text()
ROOT = generate.HERE.parent
COMMANDS = "\n".join(re.findall(r"^```\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)).replace("\\\n", " ")
PROVISIONING = generate.HERE / "grafana" / "provisioning"


def test_files_that_are_named_are_there():
    named = set(re.findall(r"(?:\$PWD/|\b)((?:dashboards|jobs|cluster|condu_ray)/[\w./-]+)", PAGE))
    assert len(named) > 8
    for name in named:
        assert (ROOT / name.rstrip(".")).exists(), name
    for name in re.findall(r"^\| `([^|]*?)` \|", PAGE.split("## Look")[0], re.MULTILINE):
        for part in name.replace("`", "").split(", "):
            assert (generate.HERE / part).exists(), part


def test_every_dashboard_is_named():
    for name in BOARDS:
        assert f"`{name}`" in PAGE


def test_grafana_finds_the_dashboards():
    (found,) = PROVISIONING.glob("dashboards/*.yml")
    (provider,) = yaml.safe_load(found.read_text())["providers"]
    assert provider["type"] == "file"
    variable = re.fullmatch(r"\$\{(\w+)\}", provider["options"]["path"])[1]
    folder = re.search(rf"{variable}=\$PWD/(\S+)", COMMANDS)[1]
    assert {path.stem for path in (ROOT / folder).glob("*.json")} == set(BOARDS)
    assert re.search(r"GF_PATHS_PROVISIONING=\$PWD/(\S+)", COMMANDS)[1] == str(PROVISIONING.relative_to(ROOT))


def test_grafana_finds_prometheus_where_the_page_starts_it():
    (found,) = PROVISIONING.glob("datasources/*.yml")
    (source,) = yaml.safe_load(found.read_text())["datasources"]
    assert source["type"] == "prometheus"
    assert source["url"] == "http://" + re.search(r"--web.listen-address=(\S+)", COMMANDS)[1]
    settings = yaml.safe_load((generate.HERE / "prometheus" / "prometheus.yml").read_text())
    assert source["jsonData"]["timeInterval"] == settings["global"]["scrape_interval"]


def test_everything_listens_on_this_machine_only():
    assert re.findall(r"(?:listen-address=|HTTP_ADDR=)([\d.]+)", COMMANDS) == ["127.0.0.1", "127.0.0.1"]


def test_panels_that_the_page_names_are_there():
    titles = {panel.title for board in BOARDS.values() for panel in board.panels}
    first = PAGE.split("## What to look at first")[1].split("##")[0]
    named = set(re.findall(r"\*([A-Z][a-z ]+)\*", first))
    assert len(named) >= 4
    assert named <= titles
