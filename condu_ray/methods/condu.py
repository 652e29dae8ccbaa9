"""ConDU: every task's delta goes into one unified delta, from which a mask and a scalar bring its expert back."""

from __future__ import annotations

from typing import Any

from condu_ray.merging import UnifiedDelta
from condu_ray.methods.base import LoadExpert, ModelState
from condu_ray.methods.merged import Unified
from condu_ray.methods.registry import register
from condu_ray.store.experts import Form

PAPER = "ConDU, Gao et al., ICLR 2026, arxiv.org/abs/2503.10705"


@register("condu", PAPER)
class Condu(Unified):
    """Tune each expert from theta0, decouple the old ones, unify all; unseen tasks by the nearest experts.

    From the paper: all formulas. From the code: a sum of exactly 0 elects the negative sign, theta0 is the first of
    five candidates, hyperparameters. Where the two differ `--as_published true` follows the code: rescaler,
    aggregation, the text part of prototypes, and the first session's evaluation (condu_ray/CONSTANTS.md).
    """

    by_range = True

    def merge_settings(self) -> dict[str, Any]:
        """The rescaler's formula."""
        return self.config.merging.identity(include={"rescaler"})

    def initial(self) -> UnifiedDelta:
        """No task, no delta."""
        return UnifiedDelta.empty()

    def merge(self, state: ModelState, task: str, expert: str, load: LoadExpert) -> UnifiedDelta:
        """ConDU, section 3.2, "Unify": sign election, signed maximum, masks and rescalers, in one pass."""
        model: UnifiedDelta = state.model
        return model.unify(task, load(expert), rescaler=self.config.merging.rescaler)


@register("condu-lora", PAPER)
class ConduLora(Condu):
    """The same with LoRA experts; merges their weight deltas, or their factors with `--lora.merge factors`.

    From the paper: that experts may be LoRA. From the code: rank 64 on the MLPs' linears, both factors from
    N(0, 0.01^2), the factor 1 / sqrt(rank) of B A. They differ: the code merges A and B, of which each pair may be
    turned without a change of its product, so that the default is the weight delta.
    """

    adapter = "lora"

    @property
    def form(self) -> Form:
        """Weight deltas mean the same for every expert; the public code merges A and B."""
        return self.config.lora.merge

    def merge_settings(self) -> dict[str, Any]:
        """The rescaler, and in which form experts are merged."""
        return super().merge_settings() | self.config.lora.identity(include={"merge", "scale"})
