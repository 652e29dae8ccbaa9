"""The part of kustomize that `cluster/kubernetes` uses, in the order in which kustomize applies it.

`test_rendering.py` compares it with kubectl's own, where there is a kubectl.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

Object = dict[str, Any]
KEYS = {"apiVersion", "kind", "namespace", "resources", "components", "patches", "images", "replacements"}
CLUSTER_SCOPED = {"Namespace", "PriorityClass"}
LOCAL = "config.kubernetes.io/local-config"


class RenderError(ValueError):
    """A kustomization that uses what this renderer does not know, or that kustomize would refuse."""


def applied(root: Path) -> list[Path]:
    """Returns the folders that people apply: the services and every overlay."""
    return [root / "services", *sorted(path.parent for path in root.glob("overlays/*/*/kustomization.yaml"))]


def build(folder: Path) -> list[Object]:
    """Returns the objects of a kustomization's folder."""
    return _accumulate(folder, [], "Kustomization")


def _accumulate(folder: Path, objects: list[Object], kind: str) -> list[Object]:
    path = folder / "kustomization.yaml"
    settings = yaml.safe_load(path.read_text())
    if unknown := set(settings) - KEYS:
        raise RenderError(f"{path}: {', '.join(sorted(unknown))} is not rendered")
    if settings["kind"] != kind:
        raise RenderError(f"{path}: a {settings['kind']} where a {kind} is wanted")
    for name in settings.get("resources", []):
        place = folder / name
        new = build(place) if place.is_dir() else list(yaml.safe_load_all(place.read_text()))
        objects = [*objects, *new]
    for name in settings.get("components", []):
        objects = _accumulate(folder / name, objects, "Component")
    for entry in settings.get("patches", []):
        objects = _patch(folder, entry, objects)
    for thing in objects if "namespace" in settings else ():
        if thing["kind"] == "Namespace":
            thing["metadata"]["name"] = settings["namespace"]
        elif thing["kind"] not in CLUSTER_SCOPED:
            thing["metadata"]["namespace"] = settings["namespace"]
    for entry in settings.get("images", []):
        for container in (c for thing in objects for c in containers(thing)):
            if container.get("image", "").split(":")[0] == entry["name"]:
                container["image"] = f"{entry['newName']}:{entry['newTag']}"
    for entry in settings.get("replacements", []):
        _replace(path, entry, objects)
    return [thing for thing in objects if thing["metadata"].get("annotations", {}).get(LOCAL) != "true"]


def containers(node: Any) -> Iterator[Object]:
    """Yields every container of an object, wherever its pod templates are."""
    if isinstance(node, dict):
        for key, value in node.items():
            if key in {"containers", "initContainers"}:
                yield from value
            else:
                yield from containers(value)
    elif isinstance(node, list):
        for value in node:
            yield from containers(value)


def _patch(folder: Path, entry: Object, objects: list[Object]) -> list[Object]:
    import jsonpatch

    text = entry["patch"] if "patch" in entry else (folder / entry["path"]).read_text()
    operations = yaml.safe_load(text)
    if not isinstance(operations, list):
        raise RenderError(f"{folder}: only JSON 6902 patches are rendered")
    patch = jsonpatch.JsonPatch(operations)
    return [patch.apply(thing) if _matches(entry["target"], thing) else thing for thing in objects]


def _matches(target: Object, thing: Object) -> bool:
    return (
        thing["kind"] == target["kind"] and target.get("name", thing["metadata"]["name"]) == thing["metadata"]["name"]
    )


def _replace(path: Path, entry: Object, objects: list[Object]) -> None:
    source = entry["source"]
    found = [thing for thing in objects if _matches(source, thing)]
    if len(found) != 1:
        raise RenderError(f"{path}: {len(found)} objects are the source {source}")
    value = found[0]
    for part in source["fieldPath"].split("."):
        value = value[int(part) if part.isdigit() else part]
    for target in entry["targets"]:
        for thing in objects:
            if _matches(target["select"], thing):
                for field in target["fieldPaths"]:
                    _set(path, thing, field, copy.deepcopy(value), target.get("options", {}).get("create", False))


def _set(path: Path, thing: Any, field: str, value: Any, create: bool) -> None:
    *parents, last = field.split(".")
    for part in parents:
        thing = thing[int(part) if part.isdigit() else part]
    if not create and last not in thing:
        raise RenderError(f"{path}: {field} is not there to be replaced")
    thing[last] = value
