"""ConDU: every task's delta goes into one unified delta, from which a mask and a scalar bring its expert back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from condu_ray.merging import UnifiedDelta
from condu_ray.methods.base import Delta, LoadExpert, Method, ModelState
from condu_ray.methods.registry import register

FILE = "unified.safetensors"


@register("condu", "ConDU, Gao et al., ICLR 2026, arxiv.org/abs/2503.10705")
class Condu(Method):
    """Tune each expert from theta0, decouple the old ones, unify all; unseen tasks by the nearest experts."""

    keeps_model = True
    aggregates_unseen = True

    def initial(self) -> UnifiedDelta:
        """No task, no delta."""
        return UnifiedDelta.empty()

    def merge(self, model: UnifiedDelta, task: str, delta: Delta, settings: dict[str, Any]) -> UnifiedDelta:
        """Section 2, "Unify": sign election, signed maximum, masks and rescalers, in one pass."""
        return model.unify(task, delta, rescaler=settings["rescaler"])

    def save(self, model: UnifiedDelta, folder: Path) -> None:
        """Unified delta, triggers and rescalers in one file."""
        model.save(folder / FILE)

    def load(self, folder: Path) -> UnifiedDelta:
        """Reads it back bit for bit."""
        return UnifiedDelta.load(folder / FILE)

    def delta(self, state: ModelState, task: str, expert: LoadExpert) -> Delta | None:
        """Section 2, "Decouple": lambda_i * (M_i . u)."""
        unified: UnifiedDelta = state.model
        return unified.decouple(task)

    def weights(self, state: ModelState, task: str) -> str:
        """A decoupled expert changes with every session."""
        return f"{state.id}/{task}"
