"""Bits against accuracy: every way to keep a run's experts, what it takes on disk and what it keeps of fine-tuning."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from condu_ray.benchmark import Task
from condu_ray.learn.evaluate import Evaluator
from condu_ray.learn.features import PRETRAINED, Weights
from condu_ray.merging import reconstruction
from condu_ray.merging.keeping import Keeper, parameters
from condu_ray.merging.variants import loaded
from condu_ray.plan.stored_method import StoredMethod

Bools = NDArray[np.bool_]
SHARED_AT = (11, 100)
"""Numbers of tasks at which what they share is divided by as many."""
RESAMPLES = 2000


def correct(evaluator: Evaluator, task: Task, weights: Weights) -> Bools:
    """Returns which test images of a task a model gets right, its classes known: bool [N]."""
    features = evaluator.features
    logits = features.image(weights, task) @ features.text(weights, task).T
    found: Bools = (logits.argmax(dim=1) == features.labels(task)).numpy()
    return found


def share_kept(
    right: Mapping[str, Bools], zero_shot: Mapping[str, Bools], individual: Mapping[str, Bools]
) -> dict[str, float | None]:
    """The share kept of what fine-tuning gained, over all tasks together, with its interval.

    The sum over the tasks of (accuracy - zero-shot) over that of (individual - zero-shot). The interval is that of the
    middle 95 % of `RESAMPLES` bootstraps: images of each task are drawn anew, the same for all three models, so that it
    says how far these images decide, and nothing about other tasks or seeds.

    Args:
        right: task -> which images are right, by what is measured.
        zero_shot: the same by theta0.
        individual: the same by each task's own expert.

    Returns:
        `kept`, `low` and `high`; None where fine-tuning gained nothing.
    """
    draw = np.random.default_rng(0)
    above, gained = np.zeros(RESAMPLES + 1), np.zeros(RESAMPLES + 1)
    for task, found in right.items():
        outcomes_3N = np.stack([found, zero_shot[task], individual[task]]).astype(float)
        # Images that the three models answer alike are one kind, and drawn together.
        kinds_3K, counts_K = np.unique(outcomes_3N, axis=1, return_counts=True)
        count = len(found)
        # The first row is the images as they are.
        times = np.concatenate([counts_K[None], draw.multinomial(count, counts_K / count, RESAMPLES)])
        above += times @ (kinds_3K[0] - kinds_3K[1]) / count
        gained += times @ (kinds_3K[2] - kinds_3K[1]) / count
    if gained[0] <= 0:
        return {"kept": None, "low": None, "high": None}
    usable = gained > 0
    shares = above[usable] / gained[usable]
    low, high = np.quantile(shares[1:], (0.025, 0.975))
    return {"kept": float(shares[0]), "low": float(low), "high": float(high)}


def ablate_bits(
    run: StoredMethod,
    evaluator: Evaluator,
    rules: Mapping[str, Keeper],
    sessions: Collection[int],
    so_far: Callable[[dict[str, Any]], object] = lambda results: None,
) -> dict[str, Any]:
    """Keeps a stored run's experts by every rule.

    Args:
        run: a run whose experts are in storage; they all started from theta0.
        evaluator: its backbone, images a task and precision.
        rules: by name.
        sessions: numbers of tasks after which is measured.
        so_far: given the results after each rule, of those that were measured.

    Returns:
        Results as `condu_ray.report.bits_report.write_bits` takes them.
    """
    deltas = run.deltas
    zero_shot = {task.name: correct(evaluator, task, PRETRAINED) for task in run.tasks}
    individual = {
        task.name: correct(evaluator, task, Weights(f"individual/{task.name}", lambda n=task.name: loaded(deltas[n])))  # type: ignore[misc]
        for task in run.tasks
    }
    print(f"theta0 and {len(run.tasks)} experts are measured on {sum(map(len, zero_shot.values()))} images")
    bounds = {
        task: {"zero_shot": 100 * float(zero_shot[task].mean()), "individual": 100 * float(individual[task].mean())}
        | {"images": len(zero_shot[task])}
        for task in deltas
    }
    rows: list[dict[str, Any]] = []

    def results() -> dict[str, Any]:
        order = list(rules)
        about = {
            name: {"formula": rules[name].formula, "step": rules[name].step, "family": rules[name].family or name}
            for name in order
            if any(row["rule"] == name for row in rows)
        }
        found = sorted(rows, key=lambda row: (row["tasks"], order.index(row["rule"])))
        return run.describe() | {"rules": about, "rows": found, "bounds": bounds, "resamples": RESAMPLES}

    for name, rule in rules.items():
        seen: dict[str, dict[str, Any]] = {}
        for count in sorted(sessions, reverse=rule.alone):  # what depends on nobody else is measured once
            learned = dict(islice(deltas.items(), count))
            if not rule.alone or not seen:
                seen = _of_rule(name, rule, learned, run.tasks, evaluator)
            found = {task: seen[task] for task in learned}
            row: dict[str, Any] = {"rule": name, "tasks": count, "relative_l2": _mean(found, "relative_l2")}
            row |= {key: _mean(found, key) for key in ("bits", "bits_changed", "seconds_to_read")}
            shared = next(iter(seen.values()))["shared_bits"]
            row |= {"shared_bits": shared}
            row |= {f"bits_at_{tasks}": row["bits"] + shared / tasks for tasks in SHARED_AT}
            right = {task: one["right"] for task, one in found.items()}
            row["accuracy"] = 100 * sum(float(one.mean()) for one in right.values()) / len(right)
            row |= share_kept(right, {t: zero_shot[t] for t in right}, {t: individual[t] for t in right})
            rows.append(row)
            kept = "" if row["kept"] is None else f", {100 * row['kept']:.1f} % kept"
            print(f"{name}, {count} tasks: {row['bits']:.3f} bits{kept}, relative L2 {row['relative_l2']:.3f}")
        so_far(results())
    return results()


def _of_rule(
    name: str, rule: Keeper, deltas: Mapping[str, Any], tasks: tuple[Task, ...], evaluator: Evaluator
) -> dict[str, dict[str, Any]]:
    """Returns what is measured of each task."""
    kept, found = rule.keep(deltas), {}
    for task in tasks[: len(deltas)]:
        begin = time.perf_counter()
        served = kept.decode(task.name)
        seconds = time.perf_counter() - begin
        own = loaded(deltas[task.name])
        count, changed = parameters(own)
        bits = 8 * kept.nbytes(task.name)
        found[task.name] = {
            "bits": bits / count,
            "bits_changed": bits / max(changed, 1),
            "shared_bits": 8 * kept.shared_nbytes / count,
            "seconds_to_read": seconds,
            "relative_l2": reconstruction(own, served).relative_l2,
            "right": correct(
                evaluator,
                task,
                Weights(f"{name}/{len(deltas)}/{task.name}", lambda served=served: served),  # type: ignore[misc]
            ),
        }
    return found


def _mean(found: Mapping[str, Mapping[str, Any]], key: str) -> float:
    return sum(one[key] for one in found.values()) / len(found)
