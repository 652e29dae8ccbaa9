"""Settings as a notebook gives them: a whole configuration, or a recipe and what differs from it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from condu_ray.command_line import merged
from condu_ray.config import Experiment
from condu_ray.constants import published_settings
from condu_ray.recipes import RECIPES
from condu_ray.settings import without_old_names

C = TypeVar("C", bound=Experiment)


def changed(kind: type[C], config: C | None, changes: Mapping[str, Any]) -> C:
    """Returns a configuration with some settings changed, all of it checked.

    Args:
        kind: `Experiment` or `Sweep`.
        config: what it is begun with; None: the recipe that `changes` names, or else `own_data` where they name data,
            or else `mini_mtil`, as on the command line.
        changes: fields, of its parts as mappings: `{"method": "condu,ties", "training": {"steps": 20}}`; a field that
            is None stays as it is.

    Raises:
        ValidationError: a setting is unknown or out of range.
        ValueError: there is no such recipe.
    """
    if config is not None:
        values = config.model_dump() | {"repair": config.repair}
    else:
        recipe = changes.get("recipe") or ("own_data" if changes.get("data") else "mini_mtil")
        if recipe not in RECIPES:
            raise ValueError(f"recipe {recipe!r}: there is none; there are {', '.join(RECIPES)}")
        values = RECIPES[recipe]().model_dump()
    if changes.get("as_published"):
        values = merged(values, published_settings())
    return kind.model_validate(merged(values, without_old_names(_given(changes))))


def _given(changes: Mapping[str, Any]) -> dict[str, Any]:
    """Leaves out what is None."""
    found = {name: _given(change) if isinstance(change, Mapping) else change for name, change in changes.items()}
    return {name: change for name, change in found.items() if change is not None}
