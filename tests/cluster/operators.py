"""What KubeRay 1.7 and Kueue refuse beyond their schemas, and what we ask of every cluster and job.

The rules are those of KubeRay v1.7.0's `ray-operator/controllers/ray/utils/validation.go` and Kueue's
`pkg/controller/jobs/rayjob/rayjob_webhook.go` and `raycluster/common.go`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

Object = dict[str, Any]
STAYS = {"karpenter.sh/do-not-disrupt": "true", "cluster-autoscaler.kubernetes.io/safe-to-evict": "false"}
"""Annotations by which Karpenter and the cluster autoscaler leave a pod where it is (their documentation)."""
QUEUE = "kueue.x-k8s.io/queue-name"


def ray_clusters(objects: list[Object]) -> Iterator[tuple[Object, Object]]:
    """Yields (object, RayCluster spec)."""
    for thing in objects:
        if thing["kind"] == "RayCluster":
            yield thing, thing["spec"]
        elif thing["kind"] == "RayJob":
            yield thing, thing["spec"]["rayClusterSpec"]
        elif thing["kind"] == "RayService":
            yield thing, thing["spec"]["rayClusterConfig"]


def name_of(thing: Object) -> str:
    """Returns `<kind>/<name>`."""
    return f"{thing['kind']}/{thing['metadata']['name']}"


def kuberay(objects: list[Object]) -> Iterator[str]:
    for thing, spec in ray_clusters(objects):
        where = name_of(thing)
        limit = 53 if thing["kind"] == "RayCluster" else 47
        if len(thing["metadata"]["name"]) > limit:
            yield f"{where}: the name is longer than {limit}"
        for field in ("networkPolicy", "tlsOptions", "historyServerOptions"):
            if field in spec:
                yield f"{where}: {field} needs a feature gate that is off in KubeRay 1.7"
        if (
            tuple(map(int, spec["rayVersion"].split(".")[:2])) < (2, 52)
            or spec.get("authOptions", {}).get("mode") != "token"
        ):
            yield f"{where}: no token, or a Ray that has none"
        head = spec["headGroupSpec"]
        scaling = spec.get("enableInTreeAutoscaling", False)
        if scaling and spec.get("autoscalerOptions", {}).get("version") != "v2":
            yield f"{where}: not the autoscaler v2"
        groups = [head, *spec["workerGroupSpecs"]]
        if scaling and any("restartPolicy" in group["template"]["spec"] for group in groups):
            yield f"{where}: restartPolicy has to be unset with the autoscaler v2"
        if head["rayStartParams"].get("num-cpus") != "0":
            yield f"{where}: the head takes work"
        annotations = head["template"].get("metadata", {}).get("annotations", {})
        if {name: annotations.get(name) for name in STAYS} != STAYS:
            yield f"{where}: an autoscaler of nodes may move its head"
        environment = {entry["name"] for entry in head["template"]["spec"]["containers"][0].get("env", [])}
        for name in sorted(
            environment & {"RAY_REDIS_ADDRESS", "REDIS_PASSWORD", "REDIS_USERNAME", "RAY_enable_autoscaler_v2"}
        ):
            yield f"{where}: {name} is the operator's to set"
        for group in spec["workerGroupSpecs"]:
            name, least, most = group["groupName"], group.get("minReplicas"), group.get("maxReplicas")
            if least is None or most is None or not 0 <= least <= group["replicas"] <= most:
                yield f"{where}: group {name} has {least} <= {group.get('replicas')} <= {most} replicas"
        if thing["kind"] == "RayJob":
            yield from _job(where, thing["spec"])
        if thing["kind"] == "RayService":
            yield from _service(where, thing["spec"])


def _service(where: str, spec: Object) -> Iterator[str]:
    """The operator makes the service of the port `serve`; without one there is none (utils/constant.go, service.go)."""
    for group in [spec["rayClusterConfig"]["headGroupSpec"], *spec["rayClusterConfig"]["workerGroupSpecs"]]:
        ports = group["template"]["spec"]["containers"][0].get("ports", [])
        if {"name": "serve", "containerPort": 8000} not in ports:
            yield f"{where}: a group has no port serve"
    if spec.get("upgradeStrategy", {}).get("type") == "NewClusterWithIncrementalUpgrade":
        yield f"{where}: incremental upgrades need a feature gate that is off in KubeRay 1.7"


def _job(where: str, spec: Object) -> Iterator[str]:
    if not spec.get("shutdownAfterJobFinishes"):
        yield f"{where}: its cluster would stay, and cost"
    if not spec.get("activeDeadlineSeconds", 0) > 0 or not spec.get("backoffLimit", 0) > 0:
        yield f"{where}: no deadline or no second attempt"
    if not re.search(r"--run \S+", spec["entrypoint"]):
        yield f"{where}: without --run another attempt may not find what the first one did"
    if spec["submissionMode"] == "K8sJobMode" and spec["submitterPodTemplate"]["spec"].get("restartPolicy") != "Never":
        yield f"{where}: the submitter's restartPolicy"
    if "clusterSelector" in spec:
        yield f"{where}: clusterSelector allows no second attempt"


def kueue(objects: list[Object]) -> Iterator[str]:
    for thing, spec in ray_clusters(objects):
        if QUEUE not in thing["metadata"].get("labels", {}):
            continue
        if spec.get("enableInTreeAutoscaling"):
            yield f"{name_of(thing)}: Kueue refuses a cluster that scales by itself"
        if any(group["groupName"] == "head" for group in spec["workerGroupSpecs"]):
            yield f"{name_of(thing)}: Kueue reserves the group name `head`"
