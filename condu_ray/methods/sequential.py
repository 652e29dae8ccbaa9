"""Methods that go on from the last task's weights: plain fine-tuning, and WiSE-FT's interpolation."""

from __future__ import annotations

from typing import Any

from condu_ray.merging.averaging import interpolate
from condu_ray.merging.delta import Delta
from condu_ray.methods.base import LoadExpert, Method, ModelState
from condu_ray.methods.merged import Merged
from condu_ray.methods.registry import register


@register("sequential", "plain fine-tuning, the lower bound of ZSCL, Zheng et al., ICCV 2023, arxiv.org/abs/2303.06628")
class Sequential(Method):
    """theta_t is trained from theta_(t-1), and the latest model serves all tasks; forgetting is what it shows.

    From ZSCL's table and script: the row "continual FT", both encoders trained, class prompts encoded anew every step.
    """

    starts_from = "previous"

    def delta(self, state: ModelState, task: str, expert: LoadExpert) -> Delta | None:
        """The latest model, whatever the task."""
        return expert(state.latest)

    def weights(self, state: ModelState, task: str) -> str:
        """The latest expert's key."""
        return state.latest


@register("wise-ft", "WiSE-FT, Wortsman et al., CVPR 2022, arxiv.org/abs/2109.01903")
class WiseFt(Merged):
    """After each task, (1 - alpha) theta_(t-1) + alpha theta_t; the next task starts from there.

    From the paper: the interpolation, alpha = 0.5. From ZSCL's script: one after every task, between the model before
    and after it, alpha = 0.8, which the recipes of MTIL have.
    """

    starts_from = "state"

    def merge_settings(self) -> dict[str, Any]:
        """Alpha."""
        return self.config.merging.identity(include={"wise_alpha"})

    def start(self, state: ModelState) -> Delta:
        """The interpolated model."""
        return self.merged(state.model)

    def merge(self, state: ModelState, task: str, expert: str, load: LoadExpert) -> Delta:
        """Interpolates between the model before and the expert, as deltas to theta0."""
        return interpolate(state.model, load(expert), self.config.merging.wise_alpha, task=task)
