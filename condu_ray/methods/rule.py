"""A method that is no more than a function from deltas to a delta: `@merge_rule("median", paper="...")`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, TypeVar

from condu_ray.merging.delta import Delta, check_delta
from condu_ray.methods.base import LoadExpert, ModelState
from condu_ray.methods.merged import Merged
from condu_ray.methods.registry import MethodError, register

Function = Callable[[Mapping[str, Delta]], Delta]
"""From task -> delta, in the order of learning, to the merged delta."""
F = TypeVar("F", bound=Callable[..., Any])


class Rule(Merged):
    """Experts from theta0 by plain fine-tuning; after each task a function merges the deltas of all so far."""

    function: ClassVar[Function]

    def merge(self, state: ModelState, task: str, expert: str, load: LoadExpert) -> Delta:
        """The function of all deltas, whose result has to have their tensors.

        Raises:
            DeltaError: it has not, or holds NaN or infinity.
            MethodError: it is no dict of tensors.
        """
        deltas = {name: source() for name, source in state.sources(task, expert, load).items()}
        merged = type(self).function(deltas)
        if not isinstance(merged, Mapping):
            raise MethodError(f"merge_rule {self.name}: returned a {type(merged).__name__}, not a dict of tensors")
        check_delta(merged, like=deltas[task], task=f"all, merged by {self.name}")
        return merged


def merge_rule(name: str, paper: str) -> Callable[[F], F]:
    """Decorator: makes a method of a function from deltas to a delta, which itself stays as it is.

    Args:
        name: what the method is called in folders and tables.
        paper: short citation with its address.

    Returns:
        The decorator. The function takes task -> delta, in the order of learning, all of them in memory, and returns
        a new delta of the same names, shapes and dtypes; `--method my_module:function` runs it.

    Raises:
        MethodError: the name is another method's, or cannot be a folder's.
    """

    def add(function: F) -> F:
        doc = function.__doc__ or f"The function {function.__name__} of all deltas so far."
        names = {"function": staticmethod(function), "__module__": function.__module__, "__doc__": doc}
        method = type(function.__name__, (Rule,), names | {"__qualname__": function.__qualname__})
        function.method = register(name, paper)(method)  # type: ignore[attr-defined]
        return function

    return add
