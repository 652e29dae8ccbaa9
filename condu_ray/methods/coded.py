"""ConDU's frame with more faithful task codes: signs of a shared magnitude, or singular vectors by a budget of bits."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

from condu_ray.merging.codes import low_rank
from condu_ray.merging.codes.values import Coded, LowRankDeltas, SignedDeltas
from condu_ray.merging.delta import Delta, fingerprint
from condu_ray.methods.base import LoadExpert, ModelState
from condu_ray.methods.merged import Decoupled
from condu_ray.methods.registry import register
from condu_ray.methods.stored_code import StoredCode
from condu_ray.store.location import Place
from condu_ray.vlm.rowwise import PREFIX, LowRankExpert


def text_counts(times: float) -> Callable[[str], float]:
    """Returns how often a tensor's squared error counts, by its name, where the text tower's does so many times."""
    return lambda name: 1.0 if name.startswith(PREFIX) else times


class CodedMethod(Decoupled):
    """Experts from theta0, each kept as a code; a learned task by its code, others by a mixture of the experts."""

    asks = "gaussian", "mixture"
    VALUE: ClassVar[type[Coded]]

    def merged(self, model: Any) -> Delta:
        """Nothing stands for all tasks together.

        Raises:
            NotImplementedError: always.
        """
        raise NotImplementedError(f"{self.name} keeps no one adapter for all tasks")

    def initial(self) -> Coded:
        """No task."""
        return self.VALUE.empty()

    def save(self, model: Coded, folder: Path) -> None:
        """A file a task, and one of what they share."""
        model.save(folder)

    def load(self, folder: Path) -> Coded:
        """Reads them back bit for bit."""
        return self.VALUE.load(folder)

    def skips_trigger(self, state: ModelState) -> bool:
        """Never: that is how ConDU's public code measures ConDU's triggers."""
        return False


@register(
    "condu-sign", "ours, on ConDU, arxiv.org/abs/2503.10705, and BitDelta, Liu et al., 2024, arxiv.org/abs/2402.10193"
)
class ConduSign(CodedMethod):
    """One magnitude for all tasks; of each a sign a parameter and a factor a row, which are kept for ever.

    From ConDU: the frame. From BitDelta: signs in place of values; the factor a row, the magnitude shared by the tasks,
    and the mixture of experts by which other images are predicted, are ours. Every order of the same tasks gives the
    same bits. A bit a parameter and task, as `condu`, beside the magnitude; a new task moves the sizes of what serves
    the earlier ones, never their signs.
    """

    VALUE = SignedDeltas

    def merge(self, state: ModelState, task: str, expert: str, load: LoadExpert) -> SignedDeltas:
        """Signs and row norms of the new delta; its magnitude is added to that of all, on a grid of integers."""
        model: SignedDeltas = state.model
        return model.unify(task, load(expert))


@register(
    "condu-svd", "ours, on ConDU, arxiv.org/abs/2503.10705, and TSV-C, Gargiulo et al., 2025, arxiv.org/abs/2412.00081"
)
class ConduSvd(CodedMethod):
    """Each task's delta by quantised singular vectors, in `merging.bits` bits a parameter: recommended.

    From ConDU: the frame. From TSV-C: truncated singular vectors of each matrix. Ours are the mixture of experts by
    which other images are predicted, and how bits are shared out: over tensors, components and entries, by what each
    saves in squared error, and on signs of the rest where these save more. A task's code depends neither on the order
    nor on the other tasks, and to forget a task is to delete a file. What it loses grows with the rank of what was
    learned: longer training, and narrower models, want more bits.
    """

    VALUE = LowRankDeltas

    def low_rank(self, state: ModelState, task: str) -> LowRankExpert | None:
        """The task's code, unless it has signs of the rest in the image tower."""
        model: LowRankDeltas = state.model
        found = low_rank.products(model.codes[task], PREFIX)
        return None if found is None else LowRankExpert(found)

    def content(self, state: ModelState, task: str) -> str:
        """By the task's code, which no later session changes."""
        model: LowRankDeltas = state.model
        return f"{model.KIND}/{fingerprint(model.codes[task])}" if task in model.codes else super().content(state, task)

    def merge_settings(self) -> dict[str, Any]:
        """The budget, whatever its value, and how it is spent."""
        options = self.config.merging
        return {"bits": options.bits} | options.identity(include={"residual_signs", "text_weight"})

    def merge(self, state: ModelState, task: str, expert: str, load: LoadExpert) -> LowRankDeltas:
        """A code of the new delta; the others' are untouched."""
        model, options = state.model, self.config.merging
        found: LowRankDeltas = model.unify(
            task, load(expert), bits=options.bits, signs=options.residual_signs, weight=text_counts(options.text_weight)
        )
        return found

    def merge_from(self, storage: Place, state: ModelState, task: str, expert: str) -> LowRankDeltas:
        """As `merge`; an expert's code is computed once, for all runs and orders, and then read."""
        model, stored = state.model, StoredCode(storage, expert, self.merge_settings())
        code = stored.load()
        if code is not None:
            kept: LowRankDeltas = model.keep(task, code)
            return kept
        made: LowRankDeltas = super().merge_from(storage, state, task, expert)
        stored.save(task, made.codes[task])
        return made


@register("condu-sign-lora", ConduSign.paper)
class ConduSignLora(ConduSign):
    """`condu-sign` with LoRA experts, whose weight deltas it keeps, whatever `lora.merge` says.

    From ConDU: that experts may be LoRA.
    """

    adapter = "lora"


@register("condu-svd-lora", ConduSvd.paper)
class ConduSvdLora(ConduSvd):
    """`condu-svd` with LoRA experts, whose weight deltas it keeps, whatever `lora.merge` says.

    From ConDU: that experts may be LoRA. Their rank bounds what there is to keep.
    """

    adapter = "lora"
