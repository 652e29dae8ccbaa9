"""Units of measurement: one (state, task, label space) each, with an identity by which it is never measured twice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from condu_ray.benchmark import Task
from condu_ray.config import Experiment, content_hash
from condu_ray.methods import Method, ModelState
from condu_ray.plan.sessions import MethodPlan
from condu_ray.store.ledger import Entry

Space = Literal["task", "union"]
"""Label space: the task's own classes (task known), or those of all tasks of the run."""
VERSION = "2"
"""Raised whenever measurements change."""


@dataclass(frozen=True)
class Unit:
    """One measurement: a method's state after a session, on one task, over the task's own or all classes."""

    method: str
    entry: Entry
    task: str
    seen: bool
    space: Space
    key: str


def routed(method: Method, seen: bool, space: Space) -> bool:
    """Whether a unit is predicted by the nearest experts: the task is not learned yet, or not known."""
    return method.routes and (not seen or space == "union")


def label_spaces(config: Experiment, method: Method) -> list[Space]:
    """Returns the label spaces that a method is measured over: `union` only where it needs no task identity."""
    union = config.label_space == "union" and (method.one_model or method.routes)
    return ["task", "union"] if union else ["task"]


def unit_key(
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
    weights: list[Any] = [method.weights(state, task.name)]
    if routed(method, seen, "union" if space else "task"):
        weights = ["aggregated", state.id, config.inference.model_dump()]
    if space:  # which classes there are, in which order the tasks come does not count
        weights.append(sorted(content_hash([other.classes, other.templates]) for other in space))
    measured = [config.evaluation.max_images, precision]
    return content_hash([VERSION, backbone, weights, task.test_fingerprint, measured])[:24]


def session_units(
    config: Experiment, plan: MethodPlan, entry: Entry, tasks: Sequence[Task], backbone: str, precision: str
) -> list[Unit]:
    """Returns the measurements of a committed session: one a task and label space.

    Args:
        config: the run's configuration.
        plan: the method and its sessions.
        entry: the session.
        tasks: all tasks of the run.
        backbone: theta0's fingerprint.
        precision: `fp32` or `bf16`.
    """
    learned = plan.steps[: entry.position + 1]
    experts = tuple(step.item.key if step.item else None for step in learned)
    state = ModelState(entry.state, tuple(step.task for step in learned), experts)
    units = []
    for space in label_spaces(config, plan.method):
        for task in tasks:
            seen, among = task.name in state.tasks, tasks if space == "union" else ()
            key = unit_key(config, backbone, precision, plan.method, state, task, seen, among)
            units.append(Unit(plan.method.name, entry, task.name, seen, space, key))
    return units
