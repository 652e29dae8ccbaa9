"""Base of the methods that merge experts: what a session keeps is made from experts, and serves tasks as a delta."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from condu_ray.merging import UnifiedDelta
from condu_ray.merging.delta import Delta
from condu_ray.methods.base import LoadExpert, Method, ModelState
from condu_ray.store.artifacts import save_tensors


class Merged(Method):
    """One merged adapter for all tasks, a dict of tensors in the method's `form`."""

    keeps_model = True
    FILE = "merged.safetensors"

    def merged(self, model: Any) -> Delta:
        """Returns the one adapter that stands for all tasks; what PAM's next task starts from."""
        found: dict[str, Tensor] = model
        return found

    def adapter_of(self, model: Any, task: str) -> Delta:
        """Returns the adapter that answers for a task."""
        return self.merged(model)

    def save(self, model: Any, folder: Path) -> None:
        """Writes the adapter's tensors."""
        save_tensors(folder / self.FILE, model)

    def load(self, folder: Path) -> Any:
        """Reads them back bit for bit."""
        return load_file(folder / self.FILE)

    def delta(self, state: ModelState, task: str, expert: LoadExpert) -> Delta | None:
        """The merged adapter as a weight delta."""
        return self.as_delta(self.adapter_of(state.model, task))

    def weights(self, state: ModelState, task: str) -> str:
        """A merged model changes with every session, and is the same for all tasks."""
        return state.id


class Unified(Merged):
    """One unified delta with a trigger (mask and rescaler) a task; unlearned tasks by the nearest experts."""

    one_model = False
    routes = True
    FILE = "unified.safetensors"

    def merged(self, model: UnifiedDelta) -> Delta:
        """The unified delta without any mask."""
        return model.unified

    def adapter_of(self, model: UnifiedDelta, task: str) -> Delta:
        """ConDU, section 3.2, "Decouple": lambda_i * (M_i . u)."""
        return model.decouple(task)

    def save(self, model: UnifiedDelta, folder: Path) -> None:
        """Unified delta, triggers and rescalers in one file."""
        model.save(folder / self.FILE)

    def load(self, folder: Path) -> UnifiedDelta:
        """Reads it back bit for bit."""
        return UnifiedDelta.load(folder / self.FILE)

    def weights(self, state: ModelState, task: str) -> str:
        """A decoupled expert changes with every session."""
        return f"{state.id}/{task}"
