"""The registry of methods: a decorator adds one, with its paper; one from outside is named by its module and class.

Those come by `--method my_package.my_module:MyMethod`, or by the entry-point group `condu_ray.methods`. In all but the
configuration they go by their own name: that of the class, or what `register` gave it.
"""

from __future__ import annotations

import importlib
import os
import re
import sys
from collections.abc import Callable, Iterable
from functools import cache
from importlib.metadata import entry_points
from typing import Any

from condu_ray.config import SAFE_NAME, Experiment
from condu_ray.methods.base import Method, outside
from condu_ray.names import nearest

METHODS: dict[str, type[Method]] = {}
"""Every method by its name: those of this package, and those from outside that this process has come across."""
GROUP = "condu_ray.methods"
"""Entry points of this group name methods of installed packages."""
RESERVED = ("ablation", "list", "report", "results", "train")
"""What else a run's folder holds, and `--method list`."""


class MethodError(ValueError):
    """A method that does not exist or cannot be taken; the message says what to do."""


def register(name: str, paper: str) -> Callable[[type[Method]], type[Method]]:
    """Class decorator: gives a method its name and its paper.

    Args:
        name: what it is called in `--method`, folders and tables; safe in paths.
        paper: short citation with its address.

    Raises:
        MethodError: the name is another method's, or cannot be a folder's.
    """

    def add(method: type[Method]) -> type[Method]:
        method.name, method.paper = name, paper
        _add(method)
        return method

    return add


def _add(method: type[Method]) -> None:
    """Enters a method under its name; one that was there before its module was loaded again is replaced."""
    where = _where(method)
    before = next((known for name, known in METHODS.items() if name.lower() == method.name.lower()), None)
    if not re.fullmatch(SAFE_NAME, method.name) or method.name in RESERVED:
        raise MethodError(f"method {where}: its name {method.name!r} cannot be a folder of a run; register another")
    if before is not None and _where(before) != where:
        raise MethodError(f"method {method.name} is registered twice: {_where(before)}, {where}; rename the latter")
    METHODS[method.name] = method


def _where(method: type[Method]) -> str:
    return f"{method.__module__}:{method.__qualname__}"


def get(name: str, config: Experiment | None = None) -> Method:
    """Returns a method, with the options of a configuration (default: all defaults).

    Args:
        name: its name, `module:Class` or an entry point's name; by its own name a method from outside is found in
            every process, for the configuration's `method` says where it is.
        config: the configuration.

    Raises:
        MethodError: there is none of that name, it is no method, or it cannot be trained as the configuration says.
    """
    among = config.method if config is not None else ()
    method = (METHODS.get(name) or _outside(name) or _among(name, among) or _unknown(name))(config)
    parts = method.config.training.accumulate
    if parts > 1 and method.starts_from != "nothing" and not method.divides:
        raise MethodError(
            f"--training.accumulate {parts}: the loss of {method.name} is not the mean over a batch's parts; leave "
            "accumulate at 1 (--training.recompute true saves memory too)"
        )
    return method


def take(config: Experiment) -> list[Method]:
    """Returns the methods of a configuration, which any worker of a cluster will find too.

    Raises:
        MethodError: there is no such method, its module cannot be imported elsewhere, or two have the same name.
    """
    found: dict[str, Method] = {}
    for text in config.method:
        method = get(text, config)
        where = _where(type(method))
        if outside(type(method)) and text not in _installed():
            if method.__module__ == "__main__":
                raise MethodError(
                    f"--method {text}: is of the running script; put it into a module that can be imported"
                )
            if ":" not in text:
                raise MethodError(f"--method {text}: only this process has registered it; write --method {where}")
        if method.name in found:
            raise MethodError(f"--method {text}: {_where(type(found[method.name]))} is called {method.name} too")
        found[method.name] = method
    return list(found.values())


def listed() -> list[str]:
    """Returns a line a method, as `--method list` prints them: this package's, then those of entry points."""
    lines = []
    for name in dict.fromkeys([*METHODS, *_installed()]):  # a name of both is this package's
        try:
            method = type(get(name))
        except MethodError as error:
            lines.append(f"{name:<16} {error}")
            continue
        needs = f" (needs {', '.join(sorted(method.needs))})" if method.needs else ""
        lines.append(f"{name:<16} starts from {method.starts_from:<11} {method.paper}{needs}")
    return lines


def _unknown(name: str) -> type[Method]:
    raise MethodError(f"--method {name}: no such method{nearest(name, [*METHODS, *_installed()])}")


def _among(name: str, texts: Iterable[str]) -> type[Method] | None:
    """Returns the method of that name among those that a configuration names in another way."""
    others = (_outside(text) for text in texts if text not in METHODS)
    return next((method for method in others if method is not None and method.name == name), None)


@cache
def _installed() -> dict[str, str]:
    """Returns `module:Class` by name of the entry points of `GROUP`."""
    return {point.name: f"{point.module}:{point.attr}" for point in entry_points(group=GROUP)}


def _outside(text: str) -> type[Method] | None:
    """Imports what `module:Class`, or an entry point, names; None for a plain name that is no entry point's."""
    module_name, colon, class_name = _installed().get(text, text).partition(":")
    if not colon:
        return None
    option = f"--method {text}"
    module = _imported(module_name, option)
    found: Any = module
    for part in class_name.split("."):
        found = getattr(found, part, None)
    if found is None:
        raise MethodError(f"{option}: module {module_name} has no {class_name or 'class after the colon'}")
    method = getattr(found, "method", found)  # a function under `merge_rule`
    if not (isinstance(method, type) and issubclass(method, Method)):
        raise MethodError(f"{option}: {class_name} is neither a subclass of condu_ray's Method nor a merge_rule")
    if "name" not in vars(method):
        method.name = method.__name__
        method.paper = getattr(method, "paper", f"{_where(method)}")
    _check_weights(method, option)
    _add(method)
    return method


def _imported(name: str, option: str) -> Any:
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.append(os.getcwd())  # Ray's workers have it too
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise MethodError(f"{option}: module {name} cannot be imported ({error})") from error
        raise MethodError(
            f"{option}: there is no module {error.name}; install it, or put its folder on PYTHONPATH"
        ) from error
    except MethodError:
        raise
    except Exception as error:
        raise MethodError(f"{option}: module {name} cannot be imported ({error!r})") from error


def _check_weights(method: type[Method], option: str) -> None:
    """Refuses new weights under an old name: what is measured of one would be taken for the other."""
    by_name = {name: next(one for one in method.__mro__ if name in vars(one)) for name in ("delta", "weights")}
    if outside(by_name["delta"]) and not outside(by_name["weights"]) and not method.keeps_model:
        raise MethodError(f"{option}: overrides delta but not weights, which has to name what delta returns")
