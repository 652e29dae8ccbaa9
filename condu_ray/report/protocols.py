"""Protocols in reports: what they are called there, and which of them results have."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from condu_ray.config import Protocol

PROTOCOLS: Mapping[Protocol, str] = {
    "task": "the task of an image is known once it is learned, and predictions choose from its own classes",
    "own": "the task is not known: every image goes through the router; predictions choose from the tested task's own "
    "classes",
    "union": "the task is not known, and predictions choose from the classes of all tasks; classes of one name in "
    "several tasks count as one",
    "xtail": "the task is not known, and predictions choose from the classes of all tasks, with one template for all; "
    "classes of one name in several tasks are different ones",
}
"""What each protocol is, in the order of tables."""


def matrices(entry: Mapping[str, Any]) -> dict[Protocol, Mapping[str, Any]]:
    """Returns what was measured under each protocol, of a method's entry in `results.json` or of a trial's record.

    Args:
        entry: under `task` it has `accuracy` and the metrics itself, under another protocol a mapping of these by the
            protocol's name.
    """
    parts = {protocol: entry if protocol == "task" else entry.get(protocol) or {} for protocol in PROTOCOLS}
    return {protocol: part for protocol, part in parts.items() if part.get("accuracy") is not None}


def accuracies(entry: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the accuracy matrices of an entry alone, in the form of an entry."""
    found: dict[str, Any] = {}
    for protocol, part in matrices(entry).items():
        accuracy = {"accuracy": part["accuracy"]}
        found |= accuracy if protocol == "task" else {protocol: accuracy}
    return found


def measured(entries: Iterable[Mapping[str, Any]]) -> list[Protocol]:
    """Returns the protocols that any of some entries has."""
    found = {protocol for entry in entries for protocol in matrices(entry)}
    return [protocol for protocol in PROTOCOLS if protocol in found]


def by_method(results: Mapping[str, Any], protocol: Protocol) -> dict[str, Mapping[str, Any]]:
    """Returns the methods of a run's results that were measured by a protocol, each with what was found."""
    found = {name: matrices(entry).get(protocol) for name, entry in results["methods"].items()}
    return {name: part for name, part in found.items() if part is not None}


def named(stem: str, protocol: Protocol) -> str:
    """Returns the name of something under a protocol, such as a column or a file: that of `task` is plain."""
    return stem if protocol == "task" else f"{protocol}_{stem}"


def images_of(found: Mapping[str, Any]) -> str:
    """Returns the images that something was measured on, for headings: "" for test images, which is the rule.

    Args:
        found: results of a run or a trial's record, whose `measured_on` names them.
    """
    measured_on = found.get("measured_on", "test")
    return "" if measured_on == "test" else f", {measured_on} images"


def described(protocol: Protocol) -> str:
    """Returns a protocol and what it is, a sentence in Markdown."""
    return f"Protocol `{protocol}`: {PROTOCOLS[protocol]}."
