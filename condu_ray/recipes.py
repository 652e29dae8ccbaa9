"""Recipes: functions that return a whole configuration. `--recipe NAME` picks one; flags override it."""

from __future__ import annotations

from collections.abc import Callable

from condu_ray.config import Experiment, Training


def mini_mtil() -> Experiment:
    """The embedded default: small drawn domains, the shipped tiny CLIP, three minutes on two CPU cores."""
    return Experiment(recipe="mini_mtil", training=Training(steps=200, lr=1e-3))


def own_data() -> Experiment:
    """A folder of task folders with a CLIP of some ten million parameters at 64 pixels, on two CPU cores."""
    return Experiment(recipe="own_data", training=Training(steps=100, lr=3e-4))


RECIPES: dict[str, Callable[[], Experiment]] = {recipe.__name__: recipe for recipe in (mini_mtil, own_data)}
"""Every recipe by its name."""
