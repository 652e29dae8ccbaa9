"""What no schema says: names that have to agree between objects, secrets, privileges. A line a problem."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

from operators import kuberay, kueue, name_of, ray_clusters
from rendering import containers

Object = dict[str, Any]
SECRETS = {"redis-auth": {"password"}}
"""Secrets that the page tells people to make, with their keys."""
SECRET_ENVIRONMENTS = {"condu-bucket"}
"""Secrets that the page tells people to make of a file of variables."""
NODE_LABELS = {"condu-ray/nodes": {"cpu", "gpu", "gpu-spot"}}
SUBMITTER, OPERATOR = "ray.io/originated-from-crd", "app.kubernetes.io/component"
PODS = {"ray.io/node-type": {"head", "worker", "redis-cleanup"}, SUBMITTER: {"RayJob"}}
"""Labels that KubeRay v1.7.0 puts on its pods (ray-operator/controllers/ray: utils/constant.go, common/pod.go)."""


def pod_templates(node: Any, place: str = "") -> Iterator[tuple[str, Object]]:
    """Yields every pod template of an object with its path."""
    if isinstance(node, dict):
        if isinstance(node.get("spec"), dict) and "containers" in node["spec"]:
            yield place, node
        else:
            for key, value in node.items():
                yield from pod_templates(value, f"{place}.{key}" if place else key)
    elif isinstance(node, list):
        for number, value in enumerate(node):
            yield from pod_templates(value, f"{place}.{number}")


def problems(objects: list[Object]) -> list[str]:
    """Returns all that is wrong among objects that are applied together."""
    found: list[str] = []
    for check in (_names, _pods, _services, _policies, _secrets, _restricted, _tokens, _metadata, kuberay, kueue):
        found += check(objects)
    return found


def _names(objects: list[Object]) -> Iterator[str]:
    seen = set()
    for thing in objects:
        key = (thing["kind"], thing["metadata"]["name"])
        if key in seen:
            yield f"{name_of(thing)}: twice"
        seen.add(key)
        scoped = thing["kind"] not in {"Namespace", "PriorityClass"}
        if scoped != (thing["metadata"].get("namespace") == "condu-ray"):
            yield f"{name_of(thing)}: namespace {thing['metadata'].get('namespace')}"


def _pods(objects: list[Object]) -> Iterator[str]:
    claims = {thing["metadata"]["name"] for thing in objects if thing["kind"] == "PersistentVolumeClaim"}
    priorities = {thing["metadata"]["name"] for thing in objects if thing["kind"] == "PriorityClass"}
    for thing in objects:
        own = {claim["metadata"]["name"] for claim in thing.get("spec", {}).get("volumeClaimTemplates", [])}
        for place, template in pod_templates(thing):
            where, spec = f"{name_of(thing)} {place}", template["spec"]
            if spec.get("priorityClassName") not in priorities:
                yield f"{where}: no priority class {spec.get('priorityClassName')}"
            for label, value in spec.get("nodeSelector", {}).items():
                if value not in NODE_LABELS.get(label, set()):
                    yield f"{where}: node selector {label}={value} is on no page"
            volumes = own | {volume["name"] for volume in spec.get("volumes", [])}
            for volume in spec.get("volumes", []):
                claim = volume.get("persistentVolumeClaim", {}).get("claimName")
                if claim is not None and claim not in claims:
                    yield f"{where}: no claim {claim}"
            for container in spec["containers"]:
                ports = {port["name"] for port in container.get("ports", [])}
                for mount in container.get("volumeMounts", []):
                    if mount["name"] not in volumes:
                        yield f"{where}: no volume {mount['name']}"
                for probe in ("readinessProbe", "livenessProbe"):
                    action = container.get(probe, {}).get("httpGet") or container.get(probe, {}).get("tcpSocket")
                    if action and isinstance(action["port"], str) and action["port"] not in ports:
                        yield f"{where}: {probe} asks port {action['port']}, which the container has not"
                resources = container.get("resources", {})
                if not {"cpu", "memory"} <= set(resources.get("requests", {})):
                    yield f"{where}: {container['name']} requests no cpu or memory"
                if "memory" not in resources.get("limits", {}):
                    yield f"{where}: {container['name']} has no memory limit"


def _services(objects: list[Object]) -> Iterator[str]:
    services = {thing["metadata"]["name"]: thing for thing in objects if thing["kind"] == "Service"}
    for service in services.values():
        selector = service["spec"]["selector"].items()
        backing = [
            container
            for thing in objects
            for _, template in pod_templates(thing)
            if selector <= template.get("metadata", {}).get("labels", {}).items()
            for container in template["spec"]["containers"]
        ]
        names = {port["name"] for container in backing for port in container.get("ports", [])}
        for port in service["spec"]["ports"]:
            if port["targetPort"] not in names:
                yield f"{name_of(service)}: target port {port['targetPort']} is on no pod that it selects"
    for thing in objects:
        addresses = [
            entry["value"]
            for container in containers(thing)
            for entry in container.get("env", [])
            if "://" in entry.get("value", "")
        ]
        for _, spec in ray_clusters([thing]):
            if "gcsFaultToleranceOptions" in spec:
                addresses.append(f"redis://{spec['gcsFaultToleranceOptions']['redisAddress']}")
        for address in addresses:
            url = urlsplit(address)
            ports = [port["port"] for port in services.get(url.hostname, {"spec": {"ports": []}})["spec"]["ports"]]
            if url.port not in ports:
                yield f"{name_of(thing)}: no service answers {address}"


def _policies(objects: list[Object]) -> Iterator[str]:
    """Every selector of a policy has to find pods, and every port that it opens has to be one of theirs."""
    pods: list[tuple[dict[str, str], set[int]]] = []
    for thing in objects:
        for place, template in pod_templates(thing):
            labels = dict(template.get("metadata", {}).get("labels", {}))
            if "headGroupSpec" in place:
                labels["ray.io/node-type"] = "head"
            if "workerGroupSpecs" in place:
                labels["ray.io/node-type"] = "worker"
            ports = {p["containerPort"] for c in template["spec"]["containers"] for p in c.get("ports", [])}
            pods.append((labels, ports))
    for thing in objects:
        if thing["kind"] != "NetworkPolicy":
            continue
        chosen = [ports for labels, ports in pods if _selects(thing["spec"]["podSelector"], labels)]
        if not chosen and len(pods) > 2:  # the services alone have no Ray pods yet
            yield f"{name_of(thing)}: selects no pod"
        for rule in thing["spec"].get("ingress", []):
            for port in rule.get("ports", []):
                if chosen and not any(port["port"] in ports for ports in chosen):
                    yield f"{name_of(thing)}: opens port {port['port']}, which no pod of it has"
            for peer in rule["from"]:
                yield from _unknown_labels(thing, peer.get("podSelector", {}), pods)


def _selects(selector: Object, labels: dict[str, str]) -> bool:
    return all(labels.get(key) == value for key, value in selector.get("matchLabels", {}).items()) and all(
        labels.get(wanted["key"]) in wanted["values"] for wanted in selector.get("matchExpressions", [])
    )


def _unknown_labels(thing: Object, selector: Object, pods: list[tuple[dict[str, str], set[int]]]) -> Iterator[str]:
    wanted = [(key, value) for key, value in selector.get("matchLabels", {}).items()]
    wanted += [(term["key"], value) for term in selector.get("matchExpressions", []) for value in term["values"]]
    for key, value in wanted:
        known = value in PODS.get(key, set()) or (key, value) == (OPERATOR, "kuberay-operator")
        if not known and not any(labels.get(key) == value for labels, _ in pods):
            yield f"{name_of(thing)}: lets in pods with {key}={value}, and there are none"


def _secrets(objects: list[Object]) -> Iterator[str]:
    for thing in objects:
        if thing["kind"] == "Secret":
            yield f"{name_of(thing)}: a secret does not belong into a repository"
        for container in containers(thing):
            for entry in container.get("env", []):
                if re.search(r"PASSWORD|TOKEN|SECRET|AUTH|CREDENTIAL|_KEY$", entry["name"]) and "value" in entry:
                    yield f"{name_of(thing)}: {entry['name']} is inline; take it from a secret"
                if re.search(r"//[^/\s]+:[^/\s]+@", entry.get("value", "")):
                    yield f"{name_of(thing)}: {entry['name']} has a password inline"
            for source in container.get("envFrom", []):
                if source.get("secretRef", {}).get("name") not in SECRET_ENVIRONMENTS:
                    yield f"{name_of(thing)}: variables from {source}, which is on no page"
            for word in (*container.get("command", []), *container.get("args", [])):
                if re.search(r"(requirepass|--password|--redis-password)[ =]+[^\s$]", word):
                    yield f"{name_of(thing)}: a password inline in the command"
        yield from _references(thing, name_of(thing))
        for _, spec in ray_clusters([thing]):
            password = spec.get("gcsFaultToleranceOptions", {}).get("redisPassword", {})
            if "value" in password:
                yield f"{name_of(thing)}: the Redis password is inline"


def _references(node: Any, where: str) -> Iterator[str]:
    if isinstance(node, dict):
        reference = node.get("secretKeyRef")
        if isinstance(reference, dict) and reference.get("key") not in SECRETS.get(reference.get("name"), set()):
            yield f"{where}: no secret {reference.get('name')} with key {reference.get('key')} on the page"
        for value in node.values():
            yield from _references(value, where)
    elif isinstance(node, list):
        for value in node:
            yield from _references(value, where)


def _tokens(objects: list[Object]) -> Iterator[str]:
    """Only a head, whose autoscaler speaks with Kubernetes, has a token for it."""
    for thing in objects:
        for place, template in pod_templates(thing):
            if "headGroupSpec" not in place and template["spec"].get("automountServiceAccountToken") is not False:
                yield f"{name_of(thing)} {place}: has a token of Kubernetes that nobody needs"


METADATA = {"169.254.169.254/32", "fd00:ec2::254/128"}


def _metadata(objects: list[Object]) -> Iterator[str]:
    """What goes out to all addresses goes to none of the clouds' metadata servers, from no pod."""
    policies = [thing for thing in objects if thing["kind"] == "NetworkPolicy" and "egress" in thing["spec"]]
    if any(thing["kind"] == "NetworkPolicy" for thing in objects) and not [
        policy for policy in policies if policy["spec"]["podSelector"] == {}
    ]:
        yield "NetworkPolicy: no one holds what goes out of every pod"
    for policy in policies:
        blocks = [peer["ipBlock"] for rule in policy["spec"]["egress"] for peer in rule["to"] if "ipBlock" in peer]
        kept = {address for block in blocks for address in block.get("except", [])}
        if kept != METADATA or any("to" not in rule for rule in policy["spec"]["egress"]):
            yield f"{name_of(policy)}: lets pods ask the metadata server, which gives them the node's rights"


def _restricted(objects: list[Object]) -> Iterator[str]:
    """Pod Security's level `restricted`, for every pod that is ours."""
    for thing in objects:
        for place, template in pod_templates(thing):
            where, context = f"{name_of(thing)} {place}", template["spec"].get("securityContext", {})
            if not context.get("runAsNonRoot") or not context.get("runAsUser"):
                yield f"{where}: may run as root"
            if context.get("seccompProfile", {}).get("type") != "RuntimeDefault":
                yield f"{where}: no seccomp profile"
            for container in template["spec"]["containers"]:
                own = container.get("securityContext", {})
                if own.get("allowPrivilegeEscalation") is not False or own.get("capabilities", {}).get("drop") != [
                    "ALL"
                ]:
                    yield f"{where}: {container['name']} may gain privileges"
