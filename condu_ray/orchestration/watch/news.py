"""What a driver hears of its lanes, in plain values: neither the board's process nor what shows it loads torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Word:
    """Where a lane is.

    Attributes:
        key, task: the expert that it trains.
        method: the method; None where it trains plainly, for all methods alike.
        step, steps: 1-based.
        loss: of the step.
        batch: images a step.
        images_per_second: over all workers.
        data_wait: share of the time that training waits for data.
    """

    key: str
    task: str
    method: str | None
    step: int
    steps: int
    loss: float
    batch: int
    images_per_second: float
    data_wait: float

    def __str__(self) -> str:
        """What a lane trains: the task, and the method where it trains other than plainly."""
        return f"{self.task} ({self.method})" if self.method else self.task


@dataclass(frozen=True)
class News:
    """What a driver watches.

    Attributes:
        words: the latest of every lane that is not silent.
        trained: keys of experts that lanes of this board have put into storage.
        there: keys of posted experts that are in storage, whoever put them there.
        open: keys of posted experts that are not.
        failure: the first word of a lane for which it is of no use to try again.
    """

    words: Mapping[int, Word]
    trained: frozenset[str] = frozenset()
    there: frozenset[str] = frozenset()
    open: frozenset[str] = frozenset()
    failure: str | None = None
