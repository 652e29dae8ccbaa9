"""PAM: the new adapter starts from the global one, is aligned with it while it trains, and is averaged into it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from condu_ray.config import Experiment
from condu_ray.learn.lesson import Lesson
from condu_ray.learn.objective import Objective
from condu_ray.merging.align import align_, conflicts, top_positions
from condu_ray.merging.delta import Delta
from condu_ray.merging.tally import Tally
from condu_ray.methods.base import LoadExpert, Method, ModelState
from condu_ray.methods.merged import Merged
from condu_ray.methods.registry import get, register
from condu_ray.options import Lora
from condu_ray.store.experts import Form

PAPER = "PAM, Sokar et al., 2025, arxiv.org/abs/2506.03189"


class Aligned(Objective):
    """Plain loss; every `align_every` steps, positions whose sign left the global adapter's start again.

    Args:
        lesson: its `start` is the global adapter g.
    """

    def __init__(self, lesson: Lesson) -> None:
        super().__init__(lesson)
        assert lesson.start is not None
        self._options = lesson.config.pam
        self._global = {name: tensor.to(lesson.device) for name, tensor in lesson.start.items()}
        self._top = top_positions(self._global, self._options.top_percent)
        self._base: dict[str, Tensor] | None = None
        if lesson.parameters.keys() <= lesson.theta0.keys():  # the whole model: its adapter is theta - theta0
            self._base = {name: lesson.theta0[name].to(lesson.device) for name in lesson.parameters}

    def after_step(self, step: int, optimizer: torch.optim.Optimizer) -> None:
        """Aligns every `align_every` steps, but not after the last: nothing would be trained from there."""
        if (step + 1) % self._options.align_every == 0 and step + 1 < self.lesson.settings.steps:
            self._align(optimizer)

    def state(self) -> Mapping[str, Tensor]:
        """Nothing: what it aligns with is the lesson's start."""
        return {}

    @torch.no_grad()
    def _align(self, optimizer: torch.optim.Optimizer) -> None:
        parameters, top, to = self.lesson.parameters, self._top, self._options.align_to
        states = {name: optimizer.state[parameter] for name, parameter in parameters.items()}
        if self._base is None:
            align_({name: p.detach() for name, p in parameters.items()}, self._global, top, to=to, states=states)
            return
        adapter = {name: p - self._base[name] for name, p in parameters.items()}
        moved = conflicts(adapter, self._global, top)
        align_(adapter, self._global, top, to=to, states=states)
        for name, parameter in parameters.items():  # the others keep their bits: theta0 + (theta - theta0) would not
            parameter.copy_(torch.where(moved[name], self._base[name] + adapter[name], parameter))


@register("pam", PAPER)
class Pam(Method):
    """Trains from the global adapter with alignment; merges by the running mean, or by another method's rule.

    From the paper: LoRA of rank 32 (`pam.rank` of the recipes of MTIL), the start, the alignment of the top half, the
    mean of factors. There is no public code, and no rate for CLIP: rate and scale are ours.
    """

    starts_from = "state"
    keeps_model = True
    aligns = True

    def __init__(self, config: Experiment | None = None) -> None:
        super().__init__(config)
        rule = get(self.config.pam.merge, self.config)
        assert isinstance(rule, Merged)
        self.rule = rule
        self.routes, self.one_model = rule.routes, rule.one_model  # type: ignore[misc]

    @property
    def adapter(self) -> Literal["lora", "full"]:
        """LoRA factors (the paper) or the whole model."""
        return self.config.pam.adapter

    @property
    def lora(self) -> Lora:
        """Its own rank, scale and rate, where it has some."""
        own = self.config.pam.model_dump(include={"rank", "scale", "lr"}, exclude_none=True)
        return self.config.lora.model_copy(update=own | ({"lr_by_task": {}} if "lr" in own else {}))

    @property
    def form(self) -> Form:
        """Factors are averaged as factors."""
        return "factors" if self.adapter == "lora" else "delta"

    def expert_settings(self, position: int) -> dict[str, Any]:
        """The alignment matters from the second task on; the first is trained plainly."""
        options = self.config.pam.identity(include={"align_every", "top_percent", "align_to"})
        return super().expert_settings(position) | (options if self.aligns and position else {})

    def objective(self, lesson: Lesson) -> Objective:
        """Plain for the first task and without alignment."""
        return Aligned(lesson) if self.aligns and lesson.position else Objective(lesson)

    @property
    def divides(self) -> bool:
        """Alignment is between steps."""
        return True

    def start(self, state: ModelState) -> Delta:
        """The global adapter g."""
        return self.rule.merged(state.model)

    def merge_settings(self) -> dict[str, Any]:
        """The rule and its options, and the adapter."""
        found = {"merge": self.config.pam.merge, "adapter": self.adapter} | self.rule.merge_settings()
        return found | ({"scale": self.lora.scale} if self.adapter == "lora" else {})

    def initial(self) -> Any:
        """As the rule begins."""
        return self.rule.initial()

    def new_tally(self) -> Tally | None:
        """The rule's."""
        return self.rule.new_tally()

    def merge(self, state: ModelState, task: str, expert: str, load: LoadExpert) -> Any:
        """G <- ((t-1) g + a) / t, or the rule's own."""
        return self.rule.merge(state, task, expert, load)

    def save(self, model: Any, folder: Path) -> None:
        """As the rule does."""
        self.rule.save(model, folder)

    def load(self, folder: Path) -> Any:
        """As the rule does."""
        return self.rule.load(folder)

    def delta(self, state: ModelState, task: str, expert: LoadExpert) -> Delta | None:
        """theta0 + g for every task, unless the rule has a trigger a task."""
        return self.as_delta(self.rule.adapter_of(state.model, task))

    def weights(self, state: ModelState, task: str) -> str:
        """As the rule names them; the state's identity tells the methods apart."""
        return self.rule.weights(state, task)


@register("pam-full", PAPER)
class PamFull(Pam):
    """PAM on the whole model's delta in place of LoRA factors, which the paper has not."""

    adapter = "full"


@register("pam-noalign", PAPER)
class PamNoAlign(Pam):
    """PAM without its alignment: train from the global adapter, then average; the paper's ablation."""

    aligns = False
