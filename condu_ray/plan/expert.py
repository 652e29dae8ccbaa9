"""A planned expert: what it is, what it starts from and by which settings, from the plan to the lane that trains it.

Nothing here needs torch, for the board's process holds planned experts and loads none.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass

from condu_ray.config import Experiment
from condu_ray.store import artifacts
from condu_ray.store.experts import adopt_expert, adoptable
from condu_ray.store.layout import expert_folder, experts_folder
from condu_ray.store.location import Place
from condu_ray.store.presence import existing

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PlannedExpert:
    """One expert to fine-tune.

    Attributes:
        config: the settings that it is trained by, with an absolute storage folder.
        method: a method whose objective trains it (all that share its key train it alike).
        task: task to learn.
        position: 0-based place of the task.
        key: the expert's key.
        start: key of the expert whose weights training starts from; None for theta0 or a state.
        state: identity of the merged state that training starts from; None otherwise.
        needs: folder of the expert or the session that training starts from; None for theta0.
        earlier: tasks and keys of the method's experts before this one.
        same: key of an expert that, where it is there, is this one: `training.on_nan` changes nothing of an expert
            that did not diverge. Only for what starts from theta0; a chain may have been begun again before it.
    """

    config: Experiment
    method: str
    task: str
    position: int
    key: str
    start: str | None = None
    state: str | None = None
    needs: Place | None = None
    earlier: tuple[tuple[str, str], ...] = ()
    same: str | None = None
    references: str = ""

    @property
    def folder(self) -> Place:
        """Where the expert is, once it is there."""
        return expert_folder(self.config.storage, self.key)

    @property
    def finished(self) -> bool:
        """Whether the expert is in storage."""
        return artifacts.exists(self.folder)

    @property
    def before(self) -> str | None:
        """Key of the expert from which what training starts from is made; whoever trains that may go on with this."""
        return self.earlier[-1][1] if self.needs is not None else None

    @property
    def stream(self) -> tuple[int, bool, str]:
        """Experts of equal ones can share a data pipeline."""
        training = self.config.training
        return training.batch_size, training.augment, training.crops

    @property
    def adoptable(self) -> bool:
        """Whether the expert is in storage under the other key alone."""
        return self.same is not None and adoptable(self.config.storage, self.key, self.same)


def finished(experts: Iterable[PlannedExpert]) -> set[str]:
    """Returns the keys of those that are in storage, by few requests however many are not."""
    by_storage: dict[Place, dict[str, PlannedExpert]] = {}
    for expert in experts:
        by_storage.setdefault(expert.config.storage, {})[expert.key] = expert
    listed: dict[Place, str] = {}
    for storage, known in by_storage.items():
        listed |= {known[key].folder: key for key in artifacts.names(experts_folder(storage)) if key in known}
    return {listed[folder] for folder in existing(list(listed))}


def different(experts: Iterable[PlannedExpert]) -> list[PlannedExpert]:
    """Returns each expert once, the one that was planned first."""
    found: dict[str, PlannedExpert] = {}
    for expert in experts:
        found.setdefault(expert.key, expert)
    return list(found.values())


def adopt(experts: Iterable[PlannedExpert]) -> None:
    """Publishes under their own keys those experts that are in storage under the other one (`PlannedExpert.same`).

    Raises:
        WriteError: the disk is full or fails.
    """
    for expert in experts:
        if expert.same is not None and adopt_expert(expert.config.storage, expert.key, expert.same):
            log.info("%s: expert %s of a run that would have stopped is taken", expert.task, expert.same)
