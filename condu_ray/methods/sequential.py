"""Sequential fine-tuning: each task starts from the last one's weights, and the latest model serves all tasks."""

from __future__ import annotations

from condu_ray.methods.base import Delta, LoadExpert, Method, ModelState
from condu_ray.methods.registry import register


@register("sequential", "plain fine-tuning, the lower bound of ZSCL, Zheng et al., ICCV 2023, arxiv.org/abs/2303.06628")
class Sequential(Method):
    """theta_t is trained from theta_(t-1); forgetting is what it shows."""

    starts_from = "previous"

    def delta(self, state: ModelState, task: str, expert: LoadExpert) -> Delta | None:
        """The latest model, whatever the task."""
        latest = state.experts[-1]
        assert latest is not None
        return expert(latest)

    def weights(self, state: ModelState, task: str) -> str:
        """The latest expert's key."""
        return str(state.experts[-1])
