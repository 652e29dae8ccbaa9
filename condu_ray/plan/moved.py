"""Whether a run that is given again, with the same settings, has other accuracies than the report that it had."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from condu_ray.plan.joined import compared_settings
from condu_ray.report.protocols import matrices
from condu_ray.store import artifacts
from condu_ray.store.layout import results_path
from condu_ray.store.location import Place


def numbers_before(run: Place) -> Mapping[str, Any] | None:
    """Returns the numbers of the report in a run's folder; None where none can be read."""
    path = results_path(run)
    try:
        found: Mapping[str, Any] | None = json.loads(artifacts.read_text(path)) if artifacts.is_file(path) else None
    except (OSError, ValueError):
        return None
    return found


def moved(before: Mapping[str, Any] | None, now: Mapping[str, Any]) -> str:
    """Says of which methods a report has other accuracies than the one before it, where both have the same settings.

    Args:
        before: what `results.json` was; None: there was none.
        now: what it is.

    Returns:
        A sentence; "" where there is nothing to say.
    """
    try:
        if before is None or _asked(before) != _asked(now):
            return ""
        found = {name: _others(entry, now["methods"].get(name, {})) for name, entry in before["methods"].items()}
    except (AttributeError, KeyError, TypeError):  # no numbers of a run, or of one before there were such
        return ""
    if not any(found.values()):
        return ""
    named = ", ".join(f"{name} ({', '.join(others)})" for name, others in found.items() if others)
    return (
        f"{now['run']}: the report that was here had other accuracies of {named}, by the same settings; its data have "
        "changed since, or an earlier condu_ray or another kind of machine measured otherwise"
    )


def _asked(numbers: Mapping[str, Any]) -> tuple[Any, ...]:
    return numbers["tasks"], numbers["seed"], compared_settings(numbers["config"])


def _others(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Returns the protocols that both have, with other accuracies."""
    old, new = matrices(before), matrices(now)
    return [name for name in old if name in new and old[name]["accuracy"] != new[name]["accuracy"]]
