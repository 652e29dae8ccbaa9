"""What a state has beside its model so that the next merge reads one expert: its method's tally.

It is no part of the state: without it all experts are read again, to the same bits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from condu_ray.merging.averaging import DeltaSource
from condu_ray.merging.delta import Delta
from condu_ray.merging.tally import Tally


class State(Protocol):
    """What is looked at of a `ModelState`."""

    @property
    def tasks(self) -> tuple[str, ...]:
        """Tasks learned, in order."""

    @property
    def experts(self) -> tuple[str | None, ...]:
        """Their experts' keys."""

    @property
    def model(self) -> Any:
        """What the method keeps."""

    def sources(self, task: str, expert: str, load: Callable[[str], Delta]) -> Mapping[str, DeltaSource]:
        """All tasks so far and one more, each with what loads its expert."""


class Counted:
    """A tally, and the experts that it is of; states of one history hand it on, for it moves on with the merges."""

    def __init__(self) -> None:
        self.tally: Tally | None = None
        self._experts: tuple[str | None, ...] = ()

    def of(self, state: State) -> Tally | None:
        """Returns the tally of exactly a state's experts; None where there is none, or it is of another state."""
        tally = self.tally
        same = tally is not None and (tally.tasks, self._experts) == (state.tasks, state.experts)
        return tally if same else None

    def hold(self, tally: Tally, experts: tuple[str | None, ...]) -> None:
        """Takes a tally."""
        self.tally, self._experts = tally, experts

    def merge(self, anew: Tally, state: State, task: str, expert: str, load: Callable[[str], Delta]) -> Any:
        """Returns the merge of a state's experts and one more; of those that are counted none is read.

        Args:
            anew: an empty tally of the method.
            state: the state before.
            task: the task just learned.
            expert: its expert's key.
            load: loads any expert so far.
        """
        tally, self.tally = self.of(state), None  # what fails halfway is not used again
        if tally is None:
            tally, model = anew, anew.merge(state.sources(task, expert, load))
        else:
            model = tally.add(task, load(expert), state.model)
        self.hold(tally, (*state.experts, expert))
        return model
