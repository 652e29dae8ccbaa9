"""What serves the tasks of a state, made once while there is room, and how near to the experts that is."""

from __future__ import annotations

from collections import OrderedDict
from functools import partial
from typing import TypeVar

from condu_ray.learn.features import Weights
from condu_ray.merging import reconstruction
from condu_ray.merging.delta import Delta
from condu_ray.merging.fidelity_sample import Estimate, Sample, estimate
from condu_ray.methods import Method, ModelState
from condu_ray.plan.kept_deltas import KeptDeltas
from condu_ray.plan.measurement import judged
from condu_ray.store.experts import load_expert, load_sample

DELTAS = 2**29
"""Bytes of deltas that are kept for the next cell of a row: of a small model all experts, of a large one the last."""
SAMPLES, FOUND = 128, 1024
"""Samples and estimates that are kept, at most: some 0.8 MB and some bytes each."""
K = TypeVar("K")
V = TypeVar("V")


class Fidelity:
    """Deltas that serve tasks, and what was found of them when they were made."""

    def __init__(self) -> None:
        self._deltas = KeptDeltas(DELTAS)
        self._samples: OrderedDict[str, Sample] = OrderedDict()
        self._found: OrderedDict[tuple[str, str], Estimate] = OrderedDict()

    def weights(self, method: Method, state: ModelState, task: str) -> Weights:
        """Returns the weights that answer for a task; its delta is compared with its expert wherever it is made."""
        return Weights(method.content(state, task), partial(self._delta, method, state, task))

    def of(self, method: Method, state: ModelState, task: str) -> dict[str, float]:
        """Returns `relative_l2`, `sign_agreement` and, of an estimate, `relative_l2_error` of a learned task.

        Raises:
            ArtifactError: the expert is missing or damaged.
        """
        if method.config.evaluation.fidelity == "whole":
            delta = self._delta(method, state, task)
            assert delta is not None, "a method that merges has a delta for a learned task"
            here = {name: tensor.cpu() for name, tensor in delta.items()}
            whole = reconstruction(load_expert(method.config.storage, state.expert_of(task)), here)
            return {"relative_l2": whole.relative_l2, "sign_agreement": whole.sign_agreement}
        key = self._key(method, state, task)
        if key not in self._found:  # its features were there already
            self._made(method, state, task)
        return vars(self._found[key]).copy()

    def _delta(self, method: Method, state: ModelState, task: str) -> Delta | None:
        made = partial(self._made, method, state, task)
        found: Delta | None = self._deltas.get(method.content(state, task), made)
        return found

    def _made(self, method: Method, state: ModelState, task: str) -> Delta | None:
        delta = method.delta(state, task, partial(load_expert, method.config.storage))
        estimated = method.config.evaluation.fidelity == "sample" and any(
            judged(method, task in state.tasks, protocol) for protocol in method.config.protocol
        )
        # What is served of a task that nothing was trained for (`zero-shot`) has no expert to be compared with.
        if delta is not None and estimated and (key := self._key(method, state, task)) not in self._found:
            _keep(self._found, key, estimate(self._sample(method, state.expert_of(task)), delta), FOUND)
        return delta

    def _key(self, method: Method, state: ModelState, task: str) -> tuple[str, str]:
        return method.content(state, task), state.expert_of(task) if task in state.tasks else ""

    def _sample(self, method: Method, expert: str) -> Sample:
        if expert not in self._samples:
            _keep(self._samples, expert, load_sample(method.config.storage, expert), SAMPLES)
        return self._samples[expert]


def _keep(kept: OrderedDict[K, V], key: K, value: V, most: int) -> None:
    kept[key] = value
    while len(kept) > most:
        kept.popitem(last=False)
