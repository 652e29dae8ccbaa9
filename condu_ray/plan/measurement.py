"""Measurements: one (state, task, label space) each, with an identity by which it is never measured twice.

Loading this loads no torch, for the process that shares measurements among evaluators needs none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from condu_ray.config import Experiment, content_hash
from condu_ray.store.ledger import ROOT, Entry

if TYPE_CHECKING:
    from condu_ray.benchmark import Task
    from condu_ray.methods import Method, ModelState

Space = Literal["task", "union"]
"""Label space: the task's own classes (task known), or those of all tasks of the run."""
VERSION = "2"
"""Raised whenever measurements change."""


@dataclass(frozen=True)
class Measurement:
    """A method's state after a session, measured on one task, over the task's own or all classes.

    Attributes:
        config: the run's settings, with an absolute storage folder.
        method: the method.
        entry: the session.
        task: whose test images.
        seen: whether the state has learned the task.
        space: label space.
        key: what it is known again by (`measurement_key`).
    """

    config: Experiment
    method: str
    entry: Entry
    task: str
    seen: bool
    space: Space
    key: str


def routed(method: Method, seen: bool, space: Space) -> bool:
    """Whether a measurement is predicted by the nearest experts: the task is not learned yet, or not known."""
    return method.routes and (not seen or space == "union")


def label_spaces(config: Experiment, method: Method) -> list[Space]:
    """Returns the label spaces that a method is measured over: `union` only where it needs no task identity."""
    union = config.label_space == "union" and (method.one_model or method.routes)
    return ["task", "union"] if union else ["task"]


def measurement_key(
    config: Experiment,
    backbone: str,
    precision: str,
    method: Method,
    state: ModelState,
    task: Task,
    seen: bool,
    space: Sequence[Task] = (),
) -> str:
    """Returns the identity of a measurement: the weights or the aggregation, the test data, and how it is measured.

    Args:
        config: the run's configuration.
        backbone: theta0's fingerprint.
        precision: `fp32` or `bf16`.
        method: the method.
        state: its state.
        task: whose test images.
        seen: whether the state has learned it.
        space: all tasks for the union of their classes; empty for the task's own.
    """
    weights: list[Any] = [ROOT if method.skips_trigger(state) else method.weights(state, task.name)]
    if routed(method, seen, "union" if space else "task"):
        weights = ["aggregated", state.id, config.inference.identity()]
    if space:  # which classes there are, in which order the tasks come does not count
        weights.append(sorted(content_hash([other.classes, other.templates]) for other in space))
    measured = [config.evaluation.max_images, precision]
    return content_hash([VERSION, backbone, weights, task.test_fingerprint, measured])[:24]
