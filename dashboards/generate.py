"""Write what follows from the registry of metrics and the alert rules: `python dashboards/generate.py [--check]`.

That is the four dashboards and the objects for a cluster's Prometheus operator; the tables in README.md are written by
`make docs`. The written files are committed; a test finds when they are not what this would write.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).parent
if __name__ == "__main__":
    sys.path.insert(0, str(HERE.parent))  # a checkout need not be installed for its dashboards to be made

from boards import BOARDS  # noqa: E402

from condu_ray.orchestration.watch.meters import METRICS, TAGS  # noqa: E402

RULES = HERE / "prometheus" / "alerts.yml"
NAMESPACE, PORT = "condu-ray", "metrics"
"""Of the Ray pods in cluster/kubernetes."""


def metrics_table() -> str:
    """Returns README's table of all metrics, and of their tags."""
    lines = ["| metric | kind | tags | what it is |", "| --- | --- | --- | --- |"]
    for metric in METRICS.values():
        tags = ", ".join(metric.tags)
        kind = f"{metric.kind}, {metric.unit}"
        lines.append(f"| `{metric.exported}` | {kind} | {tags} | {metric.description} |")
    lines += ["", "| tag | its values |", "| --- | --- |"]
    return "\n".join([*lines, *(f"| `{tag}` | {meaning} |" for tag, meaning in TAGS.items())])


def alerts_table() -> str:
    """Returns README's table of all alerts."""
    lines = ["| alert | | what it means | what to do |", "| --- | --- | --- | --- |"]
    for rule in rules()[0]["rules"]:
        notes = rule["annotations"]
        lines.append(f"| {rule['alert']} | {rule['labels']['severity']} | {notes['meaning']} | {notes['action']} |")
    return "\n".join(lines)


def rules() -> list[dict[str, Any]]:
    """Returns the groups of alert rules."""
    groups: list[dict[str, Any]] = yaml.safe_load(RULES.read_text(encoding="utf-8"))["groups"]
    return groups


def operator_objects() -> str:
    """Returns the YAML that tells a cluster's Prometheus operator whom to scrape, and the alert rules."""
    pods = {"matchExpressions": [{"key": "ray.io/node-type", "operator": "In", "values": ["head", "worker"]}]}
    # The rules ask for this job's name; an operator would make one of its own.
    relabel = [{"targetLabel": "job", "replacement": "ray"}]
    endpoints: list[dict[str, Any]] = [{"port": PORT, "interval": "15s", "relabelings": relabel}]
    for port, job in (("as-metrics", "ray-autoscaler"), ("dash-metrics", "ray-dashboard")):  # the head's alone
        own = [{"targetLabel": "job", "replacement": job}]
        endpoints.append({"port": port, "interval": "30s", "relabelings": own})
    monitor = {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PodMonitor",
        "metadata": {"name": "condu-ray", "namespace": "monitoring"},
        "spec": {
            "namespaceSelector": {"matchNames": [NAMESPACE]},
            "selector": pods,
            "podMetricsEndpoints": endpoints,
        },
    }
    rule = {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": {"name": "condu-ray", "namespace": "monitoring"},
        "spec": {"groups": [group | {"rules": [_routed(one) for one in group["rules"]]} for group in rules()]},
    }
    head = (
        "# Written by dashboards/generate.py from prometheus/alerts.yml. For the Prometheus operator in `monitoring`.\n"
    )
    return head + yaml.safe_dump_all([monitor, rule], sort_keys=False, width=110, allow_unicode=True)


def _routed(rule: dict[str, Any]) -> dict[str, Any]:
    """Returns the rule with its namespace as a label: most alerts sum it away, and an Alertmanager asks for it."""
    return rule | {"labels": rule["labels"] | {"namespace": NAMESPACE}}


def files() -> dict[Path, str]:
    """Returns everything that is written, by its path."""
    found = {
        HERE / "grafana" / "dashboards" / f"{name}.json": json.dumps(board.json(), indent=1, ensure_ascii=False) + "\n"
        for name, board in BOARDS.items()
    }
    found[HERE / "kubernetes" / "prometheus.yaml"] = operator_objects()
    return found


def stale() -> list[Path]:
    """Returns the files that are not what would be written."""
    return [path for path, text in files().items() if not path.is_file() or path.read_text(encoding="utf-8") != text]


def main(arguments: list[str] | None = None) -> int:
    """Writes the files, or with `--check` only says which would change; the exit code is 1 then."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split(":")[0])
    parser.add_argument("--check", action="store_true", help="write nothing; fail if something would change")
    check = parser.parse_args(arguments).check
    wrong = stale()
    for path in wrong:
        print(f"{'out of date' if check else 'written'}: {path.relative_to(HERE.parent)}")
        if not check:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(files()[path], encoding="utf-8")
    return int(check and bool(wrong))


if __name__ == "__main__":
    raise SystemExit(main())
