"""What a method's state serves: all that a prediction or an export needs of a run, wherever it was read from."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache, partial
from typing import Any
from weakref import WeakSet

from torch import Tensor

from condu_ray.benchmark.label_space import Labels
from condu_ray.learn.features import PRETRAINED, Weights
from condu_ray.learn.prototype_store import load_moments
from condu_ray.learn.routing import Routing, prototypes_of
from condu_ray.methods import Method, ModelState
from condu_ray.methods.base import LoadExpert
from condu_ray.names import nearest
from condu_ray.plan.kept_deltas import KeptDeltas
from condu_ray.plan.stored_run import StoredRun
from condu_ray.store.experts import load_expert
from condu_ray.use.about import about
from condu_ray.vlm.model import Backbone, load_backbone
from condu_ray.vlm.novelty import Known

log = logging.getLogger(__name__)
_SWAPPED: WeakSet[Any] = WeakSet()
"""Models whose weights a predictor swaps: who takes what they are now for theta0 takes an expert for it."""


class UseError(ValueError):
    """What cannot be served, predicted or exported; the message says what to give."""


@dataclass(frozen=True)
class Served:
    """A method's state after a session.

    Attributes:
        name: what it is called: run, method and session.
        method: the method.
        state: its state.
        backbone: at theta0, loaded for this alone.
        precision: `fp32` or `bf16`, as the run measured.
        labels: classes and templates of every task of the run, in the order of learning; those after
            `len(state.tasks)` are not learned yet.
        load: loads an expert's weight delta by its key.
        prototypes: loads a learned task's class prototypes [C, D].
        known: loads a learned task's moments and prompts; None where there are none to load.
        factors: loads an expert's LoRA factors by its key; None where there are none to load.
        about: what is known of the run, for cards and manifests: settings, data fingerprints, metrics; JSON values.
    """

    name: str
    method: Method
    state: ModelState
    backbone: Backbone
    precision: str
    labels: tuple[Labels, ...]
    load: LoadExpert
    prototypes: Callable[[str], Tensor]
    factors: LoadExpert | None = None
    known: Callable[[str], Known] | None = None
    about: Mapping[str, Any] = field(default_factory=dict)
    _kept: KeptDeltas = field(default_factory=KeptDeltas, repr=False, compare=False)

    @property
    def batch_size(self) -> int:
        """Images a forward pass of the run's evaluators."""
        return self.method.config.evaluation.batch_size

    def weights(self, task: str) -> Weights:
        """Returns the weights that answer for a task, named as evaluators name them; its delta is kept for a while."""
        name = self.method.weights(self.state, task)
        made = partial(self.method.delta, self.state, task, self.load)
        return Weights(name, lambda: self._kept.get(name, made))  # a switch of experts then costs a copy

    def decoupled(self, task: str) -> Weights:
        """As `weights`, the delta made at once and kept by who asked alone."""
        made = self.method.delta(self.state, task, self.load)
        return Weights(self.method.weights(self.state, task), lambda: made)

    def serving(self, task: str) -> Weights:
        """As `weights`; theta0 where the run's settings have a learned task served by it all the same."""
        return PRETRAINED if self.method.skips_trigger(self.state) else self.weights(task)

    def routing(self) -> Routing:
        """Returns what routing knows of the learned tasks.

        Raises:
            UseError: this has prototypes alone.
        """
        self.check_routing()
        assert self.known is not None
        return Routing(
            {task: self.known(task) for task in self.state.tasks},
            {task: self.prototypes(task) for task in self.state.tasks},
            self.method.inference,
            float(self.backbone.model.logit_scale.detach().exp()),
            self.temperatures,
        )

    @property
    def temperatures(self) -> Mapping[str, float]:
        """Learned task to its expert's temperature, where the run measured it on images held out of training."""
        return self.about.get("temperatures", {})

    def check_routing(self) -> None:
        """Refuses pictures of unknown tasks where there is not what the router is made of.

        Raises:
            UseError: says so.
        """
        options = self.method.inference
        if options.learns_routing and self.known is None:
            raise UseError(
                f"{self.name}: has prototypes alone, and its pictures are routed by --inference.router "
                f"{options.router}, --inference.aggregation {options.aggregation}; export it again, or name the task"
            )

    def task(self, name: str) -> Labels:
        """Returns the words of one of the run's tasks.

        Raises:
            UseError: there is no such task.
        """
        for labels in self.labels:
            if labels.name == name:
                return labels
        raise UseError(f"{self.name}: has no task {name!r}{nearest(name, [one.name for one in self.labels])}")

    def to(self, device: str) -> Served:
        """Returns the same with what the method keeps on a device, so that a switch of experts copies nothing there."""
        model = self.state.model
        moved = model.to(device) if hasattr(model, "to") and device != "cpu" else model
        return replace(self, state=replace(self.state, model=moved), _kept=KeptDeltas())


def at_theta0(served: Served) -> Served:
    """Returns the same with a backbone that is at theta0: where a predictor swaps the weights of its own, another one.

    Raises:
        UseError: what the backbone was loaded from has changed since.
    """
    if served.backbone.model not in _SWAPPED:
        return served
    backbone = load_backbone(served.backbone.spec)
    if backbone.fingerprint != served.backbone.fingerprint:
        raise UseError(
            f"{served.name}: {backbone.spec.name} has other weights now than when it was loaded; load it anew"
        )
    return replace(served, backbone=backbone)


def to_swap(served: Served) -> Served:
    """As `at_theta0`, for a predictor, which alone swaps this backbone's weights from now on."""
    found = at_theta0(served)
    _SWAPPED.add(found.backbone.model)
    return found


def chosen_method(found: StoredRun, method: str | None) -> str:
    """Returns the method of a run that is meant: the one that is named, or its only one.

    Raises:
        UseError: the run has several, or none of that name.
    """
    names = list(found.methods)
    if method is None and len(names) == 1:
        return names[0]
    if method is None:
        raise UseError(f"{found.config.run_name}: has several methods; name one by method: {', '.join(names)}")
    if method not in names:
        raise UseError(f"{found.config.run_name}: has no method {method!r}{nearest(method, names)}")
    return method


def served_run(found: StoredRun, method: str | None = None, session: int | None = None) -> Served:
    """Returns what a run serves.

    Args:
        found: the run, finished or not.
        method: which of its methods; None: its only one.
        session: 0-based; None or -1: the last that is committed.

    Raises:
        UseError: the run has no such method, or nothing is committed yet.
        ValueError: there is no such session.
        ArtifactError: the state is damaged.
    """
    name = chosen_method(found, method)
    one, config = found.methods[name], found.config
    if not one.entries:
        raise UseError(f"{config.run_name}: {name} {one.why_none}")
    if session in (None, -1):
        warn_of_fewer(config.run_name, name, len(one.entries), one.why_fewer)
    state = found.state(name, -1 if session is None else session)
    backbone, options = load_backbone(found.plan.checked.spec), one.method.inference
    tasks = {task.name: task for task in found.tasks}

    def prototypes(task: str) -> Tensor:
        return prototypes_of(config.storage, backbone.fingerprint, tasks[task], options)

    def known(task: str) -> Known:
        return Known(*load_moments(config.storage, backbone.fingerprint, tasks[task], images=options.prototype_images))

    return Served(
        name=f"{config.run_name}/{name}, session {len(state.tasks)} of {len(found.tasks)}",
        method=one.method,
        state=state,
        backbone=backbone,
        precision=found.plan.precision,
        labels=tuple(Labels(task.name, task.classes, task.templates) for task in found.tasks),
        load=partial(load_expert, config.storage),
        prototypes=prototypes,
        factors=partial(load_expert, config.storage, form="factors"),
        known=known,
        about=about(found, one.method, state),
    )


@cache
def warn_of_fewer(run: str, method: str, count: int, why: str) -> None:
    """Says once why an earlier state answers than the run had committed.

    Args:
        run: its name.
        method: whose state it is.
        count: sessions that count.
        why: `StoredMethod.why_fewer`; empty: none.
    """
    if why:
        log.warning("%s/%s answers as after session %d: %s", run, method, count, why)
