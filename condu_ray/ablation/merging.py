"""Variants of the unify rule on a run's experts: how well each expert is brought back, session by session."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict
from itertools import islice
from typing import Any

from condu_ray.ablation.cost import Footprint
from condu_ray.benchmark import Task
from condu_ray.learn.evaluate import Evaluator
from condu_ray.learn.features import PRETRAINED, Weights
from condu_ray.merging import DeltaSource, UnifiedDelta, reconstruction
from condu_ray.merging.variants import Variant, loaded, newest, variants
from condu_ray.methods import get
from condu_ray.plan.stored_method import StoredMethod


def ablate_merging(run: StoredMethod, evaluator: Evaluator, sessions: Collection[int]) -> dict[str, Any]:
    """Merges a stored run's experts by all variants, with the run's own options for the rules that have some.

    Args:
        run: a run whose experts are in storage; they all started from theta0. Weight deltas are merged.
        evaluator: its backbone, images a task and precision.
        sessions: numbers from 1 of the sessions after which accuracy is measured.

    Returns:
        Results as `condu_ray.report.ablation_report.write_merging` takes them.
    """
    options, deltas = run.config.merging, run.deltas
    chosen = variants(
        arithmetic_scale=options.arithmetic_scale, ties_density=options.ties_density, ties_scale=options.ties_scale,
        magmax_scale=options.magmax_scale, rescaler=options.rescaler,
    )  # fmt: skip
    own = _own(run)
    bounds = measure_bounds(run, evaluator)
    rows = measure_variants(deltas, chosen, evaluator=evaluator, tasks=run.tasks, bounds=bounds, sessions=sessions)
    unified = UnifiedDelta.empty()
    for task, source in deltas.items():
        unified = unified.unify(task, loaded(source))
    footprint = Footprint.of(unified.unified, evaluator.features.backbone.model)
    return run.describe() | {
        "variants": {
            name: {"formula": variant.formula, "part": variant.part, "own": name in own}
            for name, variant in chosen.items()
        },
        "bounds": bounds,
        "rows": rows,
        "summary": summarise(rows, bounds),
        "storage": footprint.table(),
        "measured": {"tasks": len(deltas), "counted": footprint.unified(len(deltas)), "stored": unified.nbytes},
    }


def _own(run: StoredMethod) -> set[str]:
    """Variants that methods of the run are; merges of LoRA's factors are none, for weight deltas are merged here."""
    methods = [get(name, run.config) for name in run.config.method]
    alike = [one for one in methods if (one.adapter, one.form) == (run.method.adapter, "delta")]
    return {one.name.removesuffix("-lora") for one in alike}


def parse_sessions(text: str, count: int, flag: str = "--sessions") -> list[int]:
    """Reads `--sessions`.

    Args:
        text: `all`, or numbers from 1, `last` and `doubling` (1, 2, 4, 8, ... and the last), comma-separated.
        count: sessions of the run.
        flag: what it was given as, for the message.

    Returns:
        Numbers of sessions, from 1, in order.

    Raises:
        ValueError: something else, or a session that the run has not.
    """
    found: set[int] = set()
    for part in (part.strip() for part in text.split(",")):
        if part == "all":
            found.update(range(1, count + 1))
        elif part == "last":
            found.add(count)
        elif part == "doubling":
            found.update({1 << k for k in range(count.bit_length())} | {count})
        elif part.isascii() and part.isdigit() and 1 <= int(part) <= count:
            found.add(int(part))
        else:
            raise ValueError(f"{flag} {text}: {part!r} is not all, last, doubling, or a number from 1 to {count}")
    return sorted(found)


def measure_bounds(run: StoredMethod, evaluator: Evaluator) -> dict[str, dict[str, float]]:
    """Returns `zero_shot` and `individual` accuracy (percent) of every task: theta0's, and its own expert's."""
    found = {}
    for task in run.tasks:
        own = Weights(f"individual/{task.name}", lambda name=task.name: loaded(run.deltas[name]))  # type: ignore[misc]
        both = {"zero_shot": PRETRAINED, "individual": own}
        found[task.name] = {kind: evaluator.known(task, weights).percent for kind, weights in both.items()}
    return found


def measure_variants(
    deltas: Mapping[str, DeltaSource],
    rules: Mapping[str, Variant],
    *,
    evaluator: Evaluator | None = None,
    tasks: Sequence[Task] = (),
    bounds: Mapping[str, Mapping[str, float]] | None = None,
    sessions: Collection[int] = (),
    about: str = "",
) -> list[dict[str, Any]]:
    """Merges experts by every variant, and compares what each learned task is served with its own expert.

    Args:
        deltas: task -> its expert's delta, or what loads it, in the order of learning.
        rules: variants to merge by.
        evaluator: measures accuracy after some sessions; None for none.
        tasks: the same tasks, for the evaluator.
        bounds: theirs, by `measure_bounds`.
        sessions: numbers from 1 of the sessions after which accuracy is measured.
        about: begins the line that is printed after every session.

    Returns:
        A dict for each variant, session (from 1) and task learned by then: `variant`, `session`, `task`, `position`
        (0-based), `relative_l2`, `sign_agreement`, `cosine`, `rescaler` (or None), and where it was measured
        `accuracy` (percent), `over_individual` (points above the task's own expert) and `kept`, the share
        (accuracy - zero-shot) / (individual - zero-shot), None where fine-tuning gained nothing.
    """
    rows: list[dict[str, Any]] = []
    kept: dict[str, Any] = dict.fromkeys(rules)
    for session in range(1, len(deltas) + 1):
        learned = dict(islice(deltas.items(), session))
        for name, variant in rules.items():
            kept[name] = variant.merge(kept[name], learned)
            rescalers = getattr(kept[name], "rescalers", {})
            for position, task in enumerate(learned):
                served = variant.serve(kept[name], task)
                row = {"variant": name, "session": session, "task": task, "position": position}
                row |= asdict(reconstruction(loaded(learned[task]), served))
                row["rescaler"] = rescalers.get(task)
                if evaluator is not None and session in sessions:
                    identity = f"{name}/{session}" if variant.one_model else f"{name}/{session}/{task}"
                    weights = Weights(identity, lambda served=served: served)  # type: ignore[misc]
                    row |= _against(evaluator.known(tasks[position], weights).percent, (bounds or {})[task])
                rows.append(row)
        print(f"{about}session {session} of {len(deltas)}: {newest(learned)[0]} by {len(rules)} variants")
    return rows


def summarise(rows: Sequence[Mapping[str, Any]], bounds: Mapping[str, Mapping[str, float]]) -> list[dict[str, Any]]:
    """Means over the learned tasks, of every variant after every session.

    Args:
        rows: of `measure_variants`.
        bounds: of `measure_bounds`; empty where no accuracy was measured.

    Returns:
        A dict for each variant and session: the means of the rows' measures, and `kept` as the share of what
        fine-tuning gained over all learned tasks together (a mean of shares would be that of the task with the
        smallest gain).
    """
    groups: dict[tuple[str, int], list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["variant"], row["session"]), []).append(row)
    found = []
    for (variant, session), group in groups.items():
        summary: dict[str, Any] = {"variant": variant, "session": session, "tasks": len(group)}
        for measure in ("relative_l2", "sign_agreement", "cosine", "accuracy", "over_individual"):
            values = [row[measure] for row in group if row.get(measure) is not None]
            summary[measure] = math.fsum(values) / len(values) if values else None
        if summary["accuracy"] is not None:
            gained = math.fsum(_gain(bounds[row["task"]]) for row in group)
            above = math.fsum(row["accuracy"] - bounds[row["task"]]["zero_shot"] for row in group)
            summary["kept"] = above / gained if gained > 0 else None
        found.append(summary)
    return found


def _against(accuracy: float, bound: Mapping[str, float]) -> dict[str, float | None]:
    gain = _gain(bound)
    kept = (accuracy - bound["zero_shot"]) / gain if gain > 0 else None
    return {"accuracy": accuracy, "over_individual": accuracy - bound["individual"], "kept": kept}


def _gain(bound: Mapping[str, float]) -> float:
    return bound["individual"] - bound["zero_shot"]
