"""What a method is: where training starts, what it adds, how an expert is merged, which weights answer for a task."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal

from condu_ray.config import Experiment, Training
from condu_ray.learn.lesson import Lesson
from condu_ray.learn.objective import Objective
from condu_ray.merging.delta import Delta
from condu_ray.merging.tally import Tally
from condu_ray.methods.counted import Counted
from condu_ray.options import Inference, Lora
from condu_ray.store.experts import Form, load_expert
from condu_ray.store.ledger import ROOT
from condu_ray.store.location import Place
from condu_ray.vlm.lora import materialise
from condu_ray.vlm.rowwise import LowRankExpert

LoadExpert = Callable[[str], Delta]
"""From an expert's key to its delta, or to its factors for a method whose `form` is `factors`."""


@dataclass(frozen=True)
class ModelState:
    """A method's state after some sessions.

    Attributes:
        id: identity in the ledger's chain.
        tasks: tasks learned, in order.
        experts: their experts' keys (None each for a method that trains nothing).
        model: what the method itself keeps, such as the unified delta; None for a method that keeps nothing.
        counted: what the next merge has of the experts so far; no part of the state, and shared by all of one history.
    """

    id: str = ROOT
    tasks: tuple[str, ...] = ()
    experts: tuple[str | None, ...] = ()
    model: Any = None
    counted: Counted = field(default_factory=Counted, compare=False, repr=False)

    def after(self, identity: str, task: str, expert: str | None, model: Any) -> ModelState:
        """Returns the state after one more session."""
        return replace(self, id=identity, tasks=(*self.tasks, task), experts=(*self.experts, expert), model=model)

    def expert_of(self, task: str) -> str:
        """Returns the key of a learned task's expert."""
        key = self.experts[self.tasks.index(task)]
        assert key is not None, "only methods that train ask for experts"
        return key

    @property
    def latest(self) -> str:
        """The key of the expert learned last."""
        return self.expert_of(self.tasks[-1])

    def sources(self, task: str, expert: str, load: LoadExpert) -> dict[str, partial[Delta]]:
        """Returns all tasks so far and one more, in order, each with what loads its expert's delta."""
        keys = (*self.experts, expert)
        return {name: partial(load, str(key)) for name, key in zip((*self.tasks, task), keys, strict=True)}


def outside(method: type) -> bool:
    """Whether a class is neither of this package nor of Python itself."""
    top = method.__module__.partition(".")[0]
    return top != __name__.partition(".")[0] and top not in sys.stdlib_module_names


class Method:
    """Base of all methods; the defaults are those of a method that keeps nothing and serves theta0.

    Args:
        config: the run's configuration, for the method's options.
    """

    name: ClassVar[str]
    paper: ClassVar[str]
    starts_from: ClassVar[Literal["pretrained", "previous", "state", "nothing"]] = "pretrained"
    """Weights that task t's training starts from: theta0 (the experts do not depend on the order), the expert of task
    t-1, the merged state of t-1 (`start`), or no training at all."""
    needs: ClassVar[frozenset[Literal["reference", "exemplars"]]] = frozenset()
    """What training wants beside its task: reference images, or exemplars of earlier tasks."""
    keeps_model: ClassVar[bool] = False
    """Whether `merge` makes something of its own that a session has to store."""
    routes: ClassVar[bool] = False
    """Whether an image of an unknown or unlearned task is predicted by the K experts nearest by prototype."""
    asks: ClassVar[tuple[Literal["prototype", "gaussian", "ridge"], Literal["weighted", "mean", "mixture"]]] = (
        "prototype", "weighted",
    )  # fmt: skip
    """Router and aggregation of a method that routes, where the settings leave them to it (`auto`)."""
    by_range: ClassVar[bool] = False
    """Whether what it keeps is a unified delta, which several actors may merge (`merging.shards`)."""
    draws_words: ClassVar[bool] = False
    """Whether training draws words of the backbone's tokenizer (`plan.sessions.WORDS`)."""
    one_model: ClassVar[bool] = True
    """Whether the same weights answer for every task, so that no task identity is needed."""

    def __init__(self, config: Experiment | None = None) -> None:
        self.config = config or Experiment()

    # Training

    @property
    def adapter(self) -> Literal["lora", "full"]:
        """What is trained: the whole model, or LoRA factors."""
        return "full"

    @property
    def lora(self) -> Lora:
        """Form and rates of the adapters of a method that trains some."""
        return self.config.lora

    @property
    def training(self) -> Training:
        """Hyperparameters; adapters have a learning rate of their own."""
        training, lora = self.config.training, self.lora
        if self.adapter == "full":
            return training
        return training.model_copy(update={"lr": lora.lr or 10 * training.lr, "lr_by_task": lora.lr_by_task})

    @property
    def adds_images(self) -> bool:
        """Whether a step has other images beside the task's, `distillation.batch_size` of them."""
        return False

    def expert_settings(self, position: int) -> dict[str, Any]:
        """Returns what the expert at a 0-based position depends on beyond plain fine-tuning; JSON values."""
        return self.lora.identity(exclude={"lr", "lr_by_task", "merge"}) if self.adapter == "lora" else {}

    def objective(self, lesson: Lesson) -> Objective:
        """Returns the objective of one lesson; plain wherever `expert_settings` is empty."""
        return Objective(lesson)

    def start(self, state: ModelState) -> Delta:
        """Returns the adapter that training starts from, for `starts_from = "state"` after the first task."""
        raise NotImplementedError(f"{self.name} does not start from its state")

    @property
    def divides(self) -> bool:
        """Whether a step's loss is the mean of its parts' (`training.accumulate`): so where the objective is plain."""
        return type(self).objective is Method.objective

    # Identity

    @property
    def source(self) -> str | None:
        """Hash of the modules that a method from outside is written in; None for those of this package.

        Raises:
            ValueError: a module is no file.
        """
        modules = sorted({one.__module__ for one in type(self).__mro__ if outside(one)})
        digest = hashlib.sha256()
        for name in modules:
            path = getattr(sys.modules[name], "__file__", None)
            if path is None:
                raise ValueError(f"method {self.name}: module {name} is no file, so a change of it would go unnoticed")
            digest.update(Path(path).read_bytes())
        return digest.hexdigest()[:24] if modules else None

    def expert_identity(self, position: int) -> dict[str, Any]:
        """Returns what an expert's key has of the method: its settings, and where it is one of its own, the source."""
        own, settings = type(self), self.expert_settings(position)
        plain = own.objective is Method.objective and (own.expert_settings is Method.expert_settings or not settings)
        return settings if plain or self.source is None else settings | {"module_source": self.source}

    def state_identity(self) -> dict[str, Any]:
        """Returns what a state's identity has of the method: the merge's settings, and the source."""
        settings = self.merge_settings() if self.keeps_model else {}
        return settings if self.source is None else settings | {"module_source": self.source}

    # Merging

    @property
    def form(self) -> Form:
        """The form of experts that `merge` takes."""
        return "delta"

    def merge_settings(self) -> dict[str, Any]:
        """Returns the options that the merged state depends on; JSON values."""
        return {}

    def initial(self) -> Any:
        """Returns what the method keeps before the first session."""
        return None

    def merge(self, state: ModelState, task: str, expert: str, load: LoadExpert) -> Any:
        """Returns what the method keeps after one more task.

        Args:
            state: the state before.
            task: the task just learned.
            expert: its expert's key.
            load: loads any expert so far in the method's `form`.
        """
        return None

    def merge_from(self, storage: Place, state: ModelState, task: str, expert: str) -> Any:
        """As `merge`, with the experts of a storage folder."""
        return self.merge(state, task, expert, lambda key: load_expert(storage, key, self.form))

    def new_tally(self) -> Tally | None:
        """Returns an empty tally of a rule that merges all experts at once; None where `merge` needs no such thing."""
        return None

    def save(self, model: Any, folder: Path) -> None:
        """Writes what the method keeps into a session's folder."""

    def load(self, folder: Path) -> Any:
        """Reads back what `save` wrote."""
        return None

    # Prediction

    @property
    def inference(self) -> Inference:
        """How an image of an unknown or unlearned task is predicted: the settings, `auto` replaced by the method's."""
        return self.config.inference.resolved(*self.asks)

    def delta(self, state: ModelState, task: str, expert: LoadExpert) -> Delta | None:
        """Returns the weight delta that answers for `task` in `state`; None stands for theta0.

        Args:
            state: any state.
            task: a task, learned or not.
            expert: loads an expert's weight delta.
        """
        return None

    def low_rank(self, state: ModelState, task: str) -> LowRankExpert | None:
        """Returns what `delta` does for the image tower, as products of narrow matrices; None: there is no such form.

        Args:
            state: any state.
            task: a learned task.
        """
        return None

    def weights(self, state: ModelState, task: str) -> str:
        """Names the weights that `delta` returns: equal names are equal weights, so that nothing is measured twice."""
        return ROOT

    def content(self, state: ModelState, task: str) -> str:
        """Names the weights by what they are made of; equal for the weights that sessions leave as they were.

        `weights` unless a method knows better: what is computed with weights is kept under this name, while what was
        measured keeps the other, so that it is found again.
        """
        return self.weights(state, task)

    def skips_trigger(self, state: ModelState) -> bool:
        """Whether a learned task is predicted by theta0 for all that: `evaluation.first_session pretrained`."""
        return self.routes and len(state.tasks) == 1 and self.config.evaluation.first_session == "pretrained"

    def as_delta(self, merged: Delta) -> Delta:
        """Returns the weight delta of something merged in the method's `form`."""
        return materialise(merged, self.lora.scale) if self.form == "factors" else merged
