"""The registry of methods: a decorator adds one, with its paper."""

from __future__ import annotations

from collections.abc import Callable

from condu_ray.config import Experiment
from condu_ray.methods.base import Method
from condu_ray.names import nearest

METHODS: dict[str, type[Method]] = {}
"""Every method by its `--method` name."""


class MethodError(ValueError):
    """A method that does not exist; the message gives the nearest names."""


def register(name: str, paper: str) -> Callable[[type[Method]], type[Method]]:
    """Class decorator: makes a method available as `--method name`.

    Args:
        name: command-line name.
        paper: short citation with its address.
    """

    def add(method: type[Method]) -> type[Method]:
        if name in METHODS:
            raise ValueError(f"method {name} is registered twice: {METHODS[name].__module__}, {method.__module__}")
        method.name, method.paper = name, paper
        METHODS[name] = method
        return method

    return add


def get(name: str, config: Experiment | None = None) -> Method:
    """Returns a method by name, with the options of a configuration (default: all defaults).

    Raises:
        MethodError: there is none of that name.
    """
    if name not in METHODS:
        raise MethodError(f"--method {name}: no such method{nearest(name, METHODS)}")
    return METHODS[name](config)
