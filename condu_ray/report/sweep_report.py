"""Writes the report of a sweep over task orders from its stored records: numbers, tables, pictures, a page for people.

`condu_ray.report.records` says what a record is. Nothing here is measured; the same records, in the same order, give
the same bytes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from condu_ray.metrics import COMPARED, COSTS, METRICS
from condu_ray.report.records import by_group, check_records
from condu_ray.report.statistics import PairedTest, paired_tests
from condu_ray.report.sweep_page import SPACES, Groups, orders_by_name, sweep_page, total_cost
from condu_ray.report.sweep_plots import accuracy_by_position, forgetting_curve, methods_over_orders, order_heat_map
from condu_ray.report.sweep_tables import group_spread, order_means, summary_csv, summary_tex, trials_csv
from condu_ray.report.text import json_text, write
from condu_ray.store.location import Place


def sweep_report(
    records: Iterable[Mapping[str, Any]],
    folder: Place,
    *,
    name: str,
    published: Sequence[Mapping[str, Any]] = (),
    extra: Mapping[str, Any] | None = None,
) -> list[Place]:
    """Writes the report of a sweep; each file is replaced as a whole, and the numbers are written first.

    Args:
        records: The trials' records, as `condu_ray.report.records` describes them. Methods and orders come in the
            order of the records.
        folder: Where the files go; made if it does not exist.
        name: The sweep's name.
        published: Rows of `condu_ray.report.published.published_rows`: printed apart, no part of any statistic.
        extra: What else to keep, such as `config`, `versions`, `command`; printed at the end of the page.

    Returns:
        The files: `sweep.json` (all numbers), `summary.csv`, `trials.csv`, `summary.tex`, `report.md`, and the pictures
        `methods_over_orders.png`, `accuracy_by_position.png`, `forgetting_curve.png` and `order_heat_map.png`.

    Raises:
        ValueError: There is no record, or one is not usable; the message names the trial.
    """
    trials = check_records(records)
    groups = by_group(trials)
    spaces = [space for space in SPACES if any(trial.matrix(space) is not None for trial in trials)]
    comparisons = {space: {metric: _compare(groups, metric, space) for metric in COMPARED} for space in spaces}
    tex = [summary_tex(groups, name, () if space == "union" else published, space) for space in spaces]
    texts = {
        "sweep.json": json_text(_numbers(name, groups, comparisons, published, extra)) + "\n",
        "summary.csv": summary_csv(groups),
        "trials.csv": trials_csv(groups),
        "summary.tex": "\n".join(tex),
        "report.md": sweep_page(name, groups, comparisons, published, extra),
    }
    written = [write(folder / file, text) for file, text in texts.items()]
    shown = {
        METRICS[metric].heading: {group: [trial.metric(metric) for trial in found] for group, found in groups.items()}
        for metric in COMPARED
    }
    matrices = {group: [trial.accuracy for trial in found] for group, found in groups.items()}
    last = {group: order_means(found, "last") for group, found in groups.items()}
    written.append(methods_over_orders(shown, folder / "methods_over_orders.png"))
    written.append(accuracy_by_position(matrices, folder / "accuracy_by_position.png"))
    written.append(forgetting_curve(matrices, folder / "forgetting_curve.png"))
    written.append(order_heat_map(last, folder / "order_heat_map.png"))
    return written


def _compare(groups: Groups, metric: str, space: str) -> list[PairedTest]:
    measured = {
        group: {trial.key: trial.metric(metric, space) for trial in trials}
        for group, trials in groups.items()
        if any(trial.matrix(space) is not None for trial in trials)
    }
    return paired_tests(measured)


def _numbers(
    name: str,
    groups: Groups,
    comparisons: Mapping[str, Mapping[str, Sequence[PairedTest]]],
    published: Sequence[Mapping[str, Any]],
    extra: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """All that the report says, as `sweep.json` has it."""
    summary = []
    for group, trials in groups.items():
        found = {
            space: {metric: dataclasses.asdict(group_spread(trials, metric, space)) for metric in METRICS}
            for space in comparisons
        }
        costs = {key: total_cost(trials, key) for key in COSTS}
        about = {"group": group, "method": trials[0].method, "settings": trials[0].settings, "trials": len(trials)}
        summary.append({**about, **found, "costs": costs})
    tests = {
        space: {
            metric: [{**dataclasses.asdict(test), "verdict": test.verdict()} for test in found]
            for metric, found in by_metric.items()
        }
        for space, by_metric in comparisons.items()
    }
    stored = [
        {
            **{key: getattr(trial, key) for key in ("trial", "method", "group", "settings", "order_name", "seed")},
            "metrics": dataclasses.asdict(trial.metrics),
            "union_metrics": None if trial.union_metrics is None else dataclasses.asdict(trial.union_metrics),
            "accuracy": trial.accuracy,
            "union": trial.union,
            **trial.costs,
        }
        for trials in groups.values()
        for trial in trials
    ]
    orders = orders_by_name(groups)
    return {
        "name": name, "orders": orders, "groups": summary, "comparisons": tests, "trials": stored,
        "published": published, "extra": extra,
    }  # fmt: skip
