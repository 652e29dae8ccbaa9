"""Recipes: functions that return a whole configuration. `--recipe NAME` picks one; flags override it."""

from __future__ import annotations

from collections.abc import Callable

from condu_ray.config import Experiment, Training


def mini_mtil() -> Experiment:
    """The embedded default: eight small drawn domains, the shipped tiny CLIP, two CPU cores."""
    return Experiment(recipe="mini_mtil")


def mtil11_small() -> Experiment:
    """Eleven cut-down MTIL domains at 64 pixels with a small CLIP, for two CPU cores."""
    return Experiment(recipe="mtil11_small", training=Training(steps=150))


RECIPES: dict[str, Callable[[], Experiment]] = {recipe.__name__: recipe for recipe in (mini_mtil, mtil11_small)}
"""Every recipe by its name."""
