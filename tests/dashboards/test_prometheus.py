"""Prometheus' files: promtool accepts them, every alert is tried, and ports and names agree with the rest."""

import copy
import re
import shutil
import subprocess

import generate
import pytest
import yaml
from boards.shared import LITTLE, STALL

from condu_ray.orchestration.watch.discovery import PATTERN

FOLDER = generate.HERE / "prometheus"
CLUSTER = generate.HERE.parent / "cluster" / "kubernetes"
RULES = [rule for group in generate.rules() for rule in group["rules"]]
ALERTS = [rule["alert"] for rule in RULES]
needs_promtool = pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")


def promtool(*arguments):
    found = subprocess.run(["promtool", *map(str, arguments)], capture_output=True, text=True, timeout=60, check=False)
    return found.returncode, found.stdout + found.stderr


@needs_promtool
@pytest.mark.parametrize("call", [("check", "rules", "alerts.yml"), ("check", "config", "prometheus.yml")])
def test_promtool_accepts(call):
    code, words = promtool(*call[:2], FOLDER / call[2])
    assert code == 0, words


@needs_promtool
def test_alerts_fire_when_they_should():
    code, words = promtool("test", "rules", FOLDER / "alerts_test.yml")
    assert code == 0, words


@needs_promtool
@pytest.mark.slow
@pytest.mark.parametrize("alert", ALERTS)
def test_an_alert_that_never_fires_is_noticed(alert, tmp_path):
    groups = generate.rules()
    for rule in groups[0]["rules"]:
        if rule["alert"] == alert:
            rule["expr"] = "vector(0) > 1"
    (tmp_path / "alerts.yml").write_text(yaml.safe_dump({"groups": groups}))
    shutil.copy(FOLDER / "alerts_test.yml", tmp_path)
    code, words = promtool("test", "rules", tmp_path / "alerts_test.yml")
    assert code != 0
    assert alert in words


@needs_promtool
def test_the_operators_rules_are_the_same_rules(tmp_path):
    rule = next(yaml.safe_load_all((generate.HERE / "kubernetes" / "prometheus.yaml").read_text().split("---\n")[1]))
    for group in (groups := copy.deepcopy(generate.rules())):
        for one in group["rules"]:
            one["labels"]["namespace"] = generate.NAMESPACE  # by which an AlertmanagerConfig of that namespace finds it
    assert rule["spec"]["groups"] == groups
    (tmp_path / "rules.yml").write_text(yaml.safe_dump(rule["spec"]))
    code, words = promtool("check", "rules", tmp_path / "rules.yml")
    assert code == 0, words


@pytest.mark.parametrize("rule", RULES, ids=ALERTS)
def test_alerts_say_what_to_do(rule):
    assert re.fullmatch(r"Condu[A-Z][A-Za-z]+", rule["alert"])
    assert rule["labels"]["severity"] in ("critical", "warning")
    notes = rule["annotations"]
    assert set(notes) == {"summary", "meaning", "action"}
    assert "$labels" in notes["summary"] or "$value" in notes["summary"]
    assert all(notes[name].rstrip().endswith(".") for name in ("meaning", "action"))


def test_dashboards_turn_red_where_alerts_fire():
    by_name = {rule["alert"]: rule["expr"] for rule in RULES}
    assert by_name["ConduStalled"].endswith(f"> {STALL}")
    assert by_name["ConduStorageNearlyFull"].endswith(f"< {LITTLE}")


def test_what_a_run_writes_is_what_prometheus_reads():
    settings = yaml.safe_load((FOLDER / "prometheus.yml").read_text())
    (scraped,) = settings["scrape_configs"]
    files = scraped["file_sd_configs"][0]["files"]
    assert f"/tmp/ray/{PATTERN}" in files
    from ray._private.ray_constants import PROMETHEUS_SERVICE_DISCOVERY_FILE

    assert f"/tmp/ray/{PROMETHEUS_SERVICE_DISCOVERY_FILE}" in files
    assert scraped["job_name"] == "ray"
    assert settings["rule_files"] == ["alerts.yml"]


def test_the_operator_scrapes_the_ports_that_the_pods_have():
    monitor, _ = yaml.safe_load_all((generate.HERE / "kubernetes" / "prometheus.yaml").read_text())
    cluster = yaml.safe_load((CLUSTER / "base" / "raycluster.yaml").read_text())["spec"]
    pods = [cluster["headGroupSpec"]["template"], *(group["template"] for group in cluster["workerGroupSpecs"])]
    endpoints = {one["port"]: one["relabelings"] for one in monitor["spec"]["podMetricsEndpoints"]}
    numbers = set()
    for place, pod in enumerate(pods):
        ports = {port["name"]: port["containerPort"] for port in pod["spec"]["containers"][0]["ports"]}
        scraped = set(endpoints) & set(ports)
        assert scraped == (set(endpoints) if place == 0 else {"metrics"})  # the head has the autoscaler and dashboard
        numbers |= {ports[name] for name in scraped}
    policies = [
        policy
        for policy in yaml.safe_load_all((CLUSTER / "services" / "network.yaml").read_text())
        if policy["metadata"]["name"] == "ray-nodes"
    ]
    (policy,) = policies
    (allowed,) = [rule for rule in policy["spec"]["ingress"] if "ports" in rule]
    assert {port["port"] for port in allowed["ports"]} == numbers
    names = allowed["from"][0]["namespaceSelector"]["matchLabels"]
    assert monitor["metadata"]["namespace"] in names.values()
    (namespace,) = monitor["spec"]["namespaceSelector"]["matchNames"]
    spaces = yaml.safe_load_all((CLUSTER / "services" / "namespace.yaml").read_text())
    assert namespace in {space["metadata"]["name"] for space in spaces}
    assert monitor["spec"]["selector"]["matchExpressions"] == policy["spec"]["podSelector"]["matchExpressions"]
    assert endpoints["metrics"] == [{"targetLabel": "job", "replacement": "ray"}]  # the alerts ask for up{job="ray"}
    assert all(len(labels) == 1 and labels[0]["targetLabel"] == "job" for labels in endpoints.values())
    assert len({labels[0]["replacement"] for labels in endpoints.values()}) == len(endpoints)
