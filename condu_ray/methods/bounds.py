"""The two bounds: one model a task, and no training at all."""

from __future__ import annotations

from condu_ray.merging.delta import Delta
from condu_ray.methods.base import LoadExpert, Method, ModelState
from condu_ray.methods.registry import register


@register("individual", "one fine-tuned model a task: the upper bound, T times the storage")
class Individual(Method):
    """Expert i answers for task i; a task not learned yet is answered by theta0."""

    one_model = False

    def delta(self, state: ModelState, task: str, expert: LoadExpert) -> Delta | None:
        """The task's own expert, untouched by any merge."""
        return expert(state.expert_of(task)) if task in state.tasks else None

    def weights(self, state: ModelState, task: str) -> str:
        """The expert's key, or theta0."""
        return state.expert_of(task) if task in state.tasks else super().weights(state, task)


@register("zero-shot", "CLIP, Radford et al., ICML 2021, arxiv.org/abs/2103.00020")
class ZeroShot(Method):
    """theta0 answers for every task."""

    starts_from = "nothing"
