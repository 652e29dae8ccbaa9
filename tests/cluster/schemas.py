"""Strict schema checks: KubeRay's CRDs by jsonschema, Kubernetes' own kinds by kubernetes-validate."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import jsonschema
import yaml

KUBERNETES_VERSION = "1.33"


def strict(schema: dict[str, Any]) -> dict[str, Any]:
    """Returns an openAPIV3Schema as a JSON schema that knows no field beyond those it lists.

    Kubernetes' own extensions become plain JSON schema: int-or-string, preserve-unknown-fields and nullable. Rules in
    CEL are left out.
    """
    found = {key: value for key, value in schema.items() if not key.startswith("x-kubernetes-")}
    if schema.get("x-kubernetes-int-or-string"):
        found.pop("type", None)
        found["anyOf"] = [{"type": "integer"}, {"type": "string"}]
    if "properties" in schema:
        found["properties"] = {name: strict(inner) for name, inner in schema["properties"].items()}
        if not schema.get("x-kubernetes-preserve-unknown-fields"):
            found.setdefault("additionalProperties", False)
    for key in ("items", "additionalProperties"):
        if isinstance(schema.get(key), dict):
            found[key] = strict(schema[key])
    if found.pop("nullable", False) and isinstance(found.get("type"), str):
        found["type"] = [found["type"], "null"]
    return found


def with_defaults(value: Any, schema: dict[str, Any]) -> Any:
    """Returns a copy with the schema's defaults filled in, as the API server does before it validates."""
    if isinstance(value, dict):
        known = schema.get("properties", {})
        other = schema.get("additionalProperties")
        filled = {
            name: with_defaults(inner, known.get(name, other if isinstance(other, dict) else {}))
            for name, inner in value.items()
        }
        for name, inner in known.items():
            if name not in filled and "default" in inner:
                filled[name] = copy.deepcopy(inner["default"])
        return filled
    if isinstance(value, list):
        return [with_defaults(inner, schema.get("items", {})) for inner in value]
    return value


class CrdValidator:
    """Validates objects of one custom kind.

    Args:
        schema: the version's openAPIV3Schema.
        version: its apiVersion.
    """

    def __init__(self, schema: dict[str, Any], version: str) -> None:
        self._schema, self._version = schema, version
        self._validator = jsonschema.Draft202012Validator(strict(schema))

    def problems(self, thing: dict[str, Any]) -> list[str]:
        """Returns what is wrong with an object, by path."""
        wrong = [] if thing["apiVersion"] == self._version else [f"apiVersion: {thing['apiVersion']}"]
        filled = with_defaults(thing, self._schema)
        for error in self._validator.iter_errors(filled):
            wrong.append(f"{'.'.join(map(str, error.absolute_path))}: {error.message[:300]}")
        return wrong


def crd_validators(folder: Path) -> dict[str, CrdValidator]:
    """Returns a validator for every kind whose CRD is in a folder; the newest served version counts."""
    found = {}
    for path in sorted(folder.glob("crd_*.yaml")):
        spec = yaml.load(path.read_text(), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))["spec"]
        version = next(entry for entry in spec["versions"] if entry["name"] == "v1" and entry["served"])
        schema = version["schema"]["openAPIV3Schema"]
        found[spec["names"]["kind"]] = CrdValidator(schema, f"{spec['group']}/{version['name']}")
    return found


def core_problems(thing: dict[str, Any]) -> list[str]:
    """Returns what is wrong with an object of one of Kubernetes' own kinds, unknown fields included."""
    import kubernetes_validate

    try:
        kubernetes_validate.validate(thing, KUBERNETES_VERSION, strict=True)
    except kubernetes_validate.ValidationError as error:
        return [f"{'.'.join(map(str, error.absolute_path))}: {error.message[:300]}"]
    return []
