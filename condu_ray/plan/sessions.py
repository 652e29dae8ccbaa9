"""The plan of a method: every expert's key and every state's identity are known before anything is trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from condu_ray.benchmark import Task
from condu_ray.benchmark.references import load_references
from condu_ray.config import Experiment
from condu_ray.methods import Method
from condu_ray.plan.expert import PlannedExpert
from condu_ray.store.experts import expert_key
from condu_ray.store.layout import expert_folder, session_folder
from condu_ray.store.ledger import ROOT, Entry, state_id
from condu_ray.store.location import Place


@dataclass(frozen=True)
class PlannedSession:
    """One session of a method.

    Attributes:
        position: 0-based place of the task.
        task: the task's name.
        expert: what is trained; None where nothing is.
        parent: identity of the state before.
        state: identity of the state after.
    """

    position: int
    task: str
    expert: PlannedExpert | None
    parent: str
    state: str

    @property
    def entry(self) -> Entry:
        """What the ledger will say of it, but for the time that its merge takes."""
        key = self.expert.key if self.expert else None
        return Entry(self.position, self.task, key, self.parent, self.state, 0.0)


@dataclass(frozen=True)
class MethodPlan:
    """A method and its sessions in the order of the tasks."""

    method: Method
    sessions: tuple[PlannedSession, ...]

    @property
    def experts(self) -> list[PlannedExpert]:
        """Experts that the method needs, in order."""
        return [session.expert for session in self.sessions if session.expert is not None]


WORDS = {"words": 2}
"""What keys say of experts that are trained with words of a tokenizer of Hugging Face's: earlier releases drew others
(SigLIP's were all one prompt), and their experts are not to be found again."""


PARTS = {"drawn in parts": 2}
"""What they say where a batch goes in parts (`training.accumulate`) against a text tower that leaves units out: earlier
releases left out others going back, so that the gradients were wrong."""


def plan_method(
    method: Method,
    config: Experiment,
    tasks: Sequence[Task],
    backbone: str,
    precision: str,
    foreign: bool = False,
    drops_out: bool = False,
) -> MethodPlan:
    """Chains the keys of experts and states of one method over the tasks.

    Args:
        method: the method.
        config: the run's configuration.
        tasks: in the order of learning.
        backbone: theta0's fingerprint.
        precision: resolved training precision.
        foreign: whether the backbone's tokenizer is one of Hugging Face's.
        drops_out: whether its text tower leaves units out while it is trained.
    """
    config = config.absolute()
    words = WORDS if foreign and method.draws_words else {}
    parts = PARTS if drops_out and method.training.accumulate > 1 else {}
    references = load_references(config.distillation).fingerprint if "reference" in method.needs else ""
    sessions: list[PlannedSession] = []
    parent, earlier = ROOT, tuple[tuple[str, str], ...]()
    for position, task in enumerate(tasks):
        expert = None
        if method.starts_from != "nothing":
            start = earlier[-1][1] if earlier and method.starts_from == "previous" else None
            state = parent if method.starts_from == "state" and position else None
            key_of = partial(
                expert_key,
                backbone=backbone,
                data=task.train_fingerprint,
                task=task.name,
                precision=precision,
                seed=config.seed,
                start=start or state,
                added=method.expert_identity(position) | words | parts,
            )
            key, same = key_of(training=method.training), None
            if method.training.on_nan != "stop" and not (start or state):
                same = key_of(training=method.training.model_copy(update={"on_nan": "stop"}))
            needs: Place | None = None
            if start is not None:
                needs = expert_folder(config.storage, start)
            elif state is not None:
                needs = session_folder(config.run_folder, method.name, position - 1, earlier[-1][0], state)
            planned = (config, method.name, task.name, position, key, start, state, needs, earlier, same, references)
            expert = PlannedExpert(*planned)
            if (imported := config.imported.get(task.name)) is not None:  # it is in storage, and is never trained
                expert = PlannedExpert(config, method.name, task.name, position, imported, earlier=earlier)
            earlier = (*earlier, (task.name, expert.key))
        key_or_theta0 = expert.key if expert else backbone
        identity = state_id(parent, method.name, task.name, key_or_theta0, method.state_identity())
        sessions.append(PlannedSession(position, task.name, expert, parent, identity))
        parent = identity
    return MethodPlan(method, tuple(sessions))
