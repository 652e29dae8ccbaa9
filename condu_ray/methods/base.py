"""What a method is: where training starts, how an expert is merged, and which weights answer for a task."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

from torch import Tensor

from condu_ray.store.ledger import ROOT

Delta = dict[str, Tensor]
LoadExpert = Callable[[str], Delta]
"""From an expert's key to its delta."""


@dataclass(frozen=True)
class ModelState:
    """A method's state after some sessions.

    Attributes:
        id: identity in the ledger's chain.
        tasks: tasks learned, in order.
        experts: their experts' keys (None each for a method that trains nothing).
        model: what the method itself keeps, such as the unified delta; None for a method that keeps nothing.
    """

    id: str = ROOT
    tasks: tuple[str, ...] = ()
    experts: tuple[str | None, ...] = ()
    model: Any = None

    def after(self, identity: str, task: str, expert: str | None, model: Any) -> ModelState:
        """Returns the state after one more session."""
        return replace(self, id=identity, tasks=(*self.tasks, task), experts=(*self.experts, expert), model=model)

    def expert_of(self, task: str) -> str:
        """Returns the key of a learned task's expert."""
        key = self.experts[self.tasks.index(task)]
        assert key is not None, "only methods that train ask for experts"
        return key


class Method:
    """Base of all methods; the defaults are those of a method that keeps nothing and serves theta0."""

    name: ClassVar[str]
    paper: ClassVar[str]
    starts_from: ClassVar[Literal["pretrained", "previous", "nothing"]] = "pretrained"
    """Weights that task t's training starts from: theta0, the expert of task t-1, or no training at all."""
    keeps_model: ClassVar[bool] = False
    """Whether `merge` makes something of its own that a session has to store."""
    aggregates_unseen: ClassVar[bool] = False
    """Whether a task not learned yet is predicted by the K experts nearest by prototype."""

    def initial(self) -> Any:
        """Returns what the method keeps before the first session."""
        return None

    def merge(self, model: Any, task: str, delta: Delta, settings: dict[str, Any]) -> Any:
        """Returns what the method keeps after merging a task's delta; `settings` are the config's `merging`."""
        return None

    def save(self, model: Any, folder: Path) -> None:
        """Writes what the method keeps into a session's folder."""

    def load(self, folder: Path) -> Any:
        """Reads back what `save` wrote."""
        return None

    def delta(self, state: ModelState, task: str, expert: LoadExpert) -> Delta | None:
        """Returns the delta that answers for `task` in `state`; None stands for theta0."""
        return None

    def weights(self, state: ModelState, task: str) -> str:
        """Names the weights that `delta` returns: equal names are equal weights, so that nothing is measured twice."""
        return ROOT
