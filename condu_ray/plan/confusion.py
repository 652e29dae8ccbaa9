"""Which learned task each router of a run takes test images for, from what storage has already: nothing is encoded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from condu_ray.benchmark import Task
from condu_ray.config import Experiment
from condu_ray.learn.feature_store import FeatureStore
from condu_ray.learn.prototype_store import has_prototypes
from condu_ray.learn.routing import load_routing
from condu_ray.methods import Method
from condu_ray.options import Inference
from condu_ray.plan.measurement import protocols, routed
from condu_ray.vlm.gaussian import Totals
from condu_ray.vlm.routers import Kind, Router

_IMAGES = 4096
"""Images that are routed at a time: a router compares each with all classes."""


def routing_confusion(
    config: Experiment,
    fingerprint: str,
    preprocess: Mapping[str, Any],
    tasks: Sequence[Task],
    methods: Sequence[Method],
) -> dict[str, Any] | None:
    """Returns where the images of each task go once all of them are learned.

    Args:
        config: the run's settings, with its storage.
        fingerprint: theta0's.
        preprocess: open_clip's PreprocessCfg as a dict.
        tasks: all of the run.
        methods: all of the run.

    Returns:
        `tasks`, `confusion` (by router T rows in percent: the share of a task's images that each task is the likeliest
        of) and `methods` (by router the names of those that ask it); None where the run routes no learned task, whose
        test images it then has no features of, though another run may have left some; or storage lacks them.

    Raises:
        ArtifactError: what is there is damaged.
    """
    asked: dict[Kind, Inference] = {}
    names: dict[str, list[str]] = {}
    for method in methods:
        if any(routed(method, True, protocol) for protocol in protocols(config, method)):
            router = method.inference.router
            assert router != "auto", "resolved"
            asked.setdefault(router, method.inference)
            names.setdefault(router, []).append(method.name)
    images = config.inference.prototype_images
    stores = [encoded(config, fingerprint, preprocess, task) for task in tasks] if asked else [None]
    if None in stores or not all(has_prototypes(config.storage, fingerprint, task, images) for task in tasks):
        return None
    found = zip(tasks, stores, strict=True)
    features = [store.load("image", task, "fp32", _count(config, task)) for task, store in found if store]
    confusion: dict[str, list[list[float]]] = {}
    for kind, inference in asked.items():
        known = load_routing(config.storage, fingerprint, tasks, inference, 1.0)
        totals = Totals({task: one.moments for task, one in known.tasks.items()})
        judge = Router(kind, totals, inference.router_means, known.prototypes)
        columns = torch.tensor([[task.name for task in tasks].index(one) for one in judge.names])
        rows = []
        for feature_ND in features:
            assert feature_ND is not None, "it is there"
            best = [columns[judge.scores(part).argmax(dim=1)] for part in feature_ND.split(_IMAGES)]
            counts = torch.bincount(torch.cat(best), minlength=len(tasks))
            rows.append((100 * counts.double() / len(feature_ND)).tolist())
        confusion[kind] = rows
    return {"tasks": [task.name for task in tasks], "confusion": confusion, "methods": names}


def encoded(config: Experiment, fingerprint: str, preprocess: Mapping[str, Any], task: Task) -> FeatureStore | None:
    """Returns where theta0's features of a task's measured test images are, by whichever kind of device; None: nowhere.

    Args:
        config: the run's settings, with its storage.
        fingerprint: theta0's.
        preprocess: open_clip's PreprocessCfg as a dict.
        task: the task.
    """
    stores = (FeatureStore(config.storage, fingerprint, preprocess, device) for device in ("cpu", "cuda"))
    return next((store for store in stores if store.has("image", task, "fp32", _count(config, task))), None)


def _count(config: Experiment, task: Task) -> int:
    return min(task.test_rows, config.evaluation.max_images or task.test_rows)
