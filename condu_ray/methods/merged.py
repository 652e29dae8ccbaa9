"""Base of the methods that merge experts: what a session keeps is made from experts, and serves tasks as a delta."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from condu_ray.merging import UnifiedDelta
from condu_ray.merging.codes.values import Coded
from condu_ray.merging.delta import Delta
from condu_ray.merging.tally import Tally
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


class Tallied(Merged):
    """All experts merged at once, at every session: those before are counted, and what counts them is `new_tally`'s."""

    def new_tally(self) -> Tally:
        """Returns what counts the experts."""
        raise NotImplementedError

    def merge(self, state: ModelState, task: str, expert: str, load: LoadExpert) -> Any:
        """All deltas so far, of which those before are counted."""
        return state.counted.merge(self.new_tally(), state, task, expert, load)


class Decoupled(Merged):
    """Something of every task's own, of which its delta is made; unlearned tasks by several experts."""

    one_model = False
    routes = True

    def adapter_of(self, model: UnifiedDelta | Coded, task: str) -> Delta:
        """What is kept of the task says: ConDU, section 3.2, "Decouple", or its code."""
        return model.decouple(task)

    def weights(self, state: ModelState, task: str) -> str:
        """By state, for a session may change what serves any task, and in it by task."""
        return f"{state.id}/{task}"


class Unified(Decoupled):
    """One unified delta with a trigger (mask and rescaler) a task; unlearned tasks by the nearest experts."""

    FILE = "unified.safetensors"

    def merged(self, model: UnifiedDelta) -> Delta:
        """The unified delta without any mask."""
        return model.unified

    def save(self, model: UnifiedDelta, folder: Path) -> None:
        """Unified delta, triggers and rescalers in one file."""
        model.save(folder / self.FILE)

    def load(self, folder: Path) -> UnifiedDelta:
        """Reads it back bit for bit."""
        return UnifiedDelta.load(folder / self.FILE)
