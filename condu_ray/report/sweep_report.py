"""Writes the report of a sweep over task orders from its stored records: numbers, tables, pictures, a page for people.

`condu_ray.report.records` says what a record is. Nothing here is measured; the same records, in the same order, give
the same bytes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from condu_ray.config import Protocol
from condu_ray.metrics import COMPARED, COSTS, METRICS
from condu_ray.report.protocols import named
from condu_ray.report.published import LeftOut
from condu_ray.report.records import Record, by_group, check_records
from condu_ray.report.statistics import PairedTest, paired_tests
from condu_ray.report.sweep_page import Groups, orders_by_name, sweep_page, total_cost
from condu_ray.report.sweep_plots import accuracy_by_position, forgetting_curve, methods_over_orders, order_heat_map
from condu_ray.report.sweep_tables import (
    group_spread,
    measured_groups,
    order_means,
    protocols_of,
    summary_csv,
    summary_tex,
    trials_csv,
)
from condu_ray.report.text import json_text, write
from condu_ray.store.location import Place


def sweep_report(
    records: Iterable[Mapping[str, Any]],
    folder: Place,
    *,
    name: str,
    published: Sequence[Mapping[str, Any]] = (),
    left_out: Sequence[LeftOut] = (),
    part: str = "",
    extra: Mapping[str, Any] | None = None,
) -> list[Place]:
    """Writes the report of a sweep; each file is replaced as a whole, and the numbers are written first.

    Args:
        records: The trials' records, as `condu_ray.report.records` describes them. Methods and orders come in the
            order of the records.
        folder: Where the files go; made if it does not exist.
        name: The sweep's name.
        published: Rows of `condu_ray.report.published.fitting`: printed apart, no part of any statistic.
        left_out: Rows that it left out, and why.
        part: How many images of each task were measured, where these are not all; published figures are of all.
        extra: What else to keep, such as `config`, `versions`, `command`; printed at the end of the page.

    Returns:
        The files: `sweep.json` (all numbers), `summary.csv`, `trials.csv`, `summary.tex`, `report.md`, and the pictures
        `methods_over_orders.png` (`own_methods_over_orders.png` and so on of other protocols than `task`) and, of the
        first protocol, `accuracy_by_position.png`, `forgetting_curve.png` and `order_heat_map.png`.

    Raises:
        ValueError: There is no record, or one is not usable; the message names the trial.
    """
    trials = check_records(records)
    groups = by_group(trials)
    protocols = protocols_of(trials)
    comparisons = {one: {metric: _compare(groups, metric, one) for metric in COMPARED} for one in protocols}
    tex = [
        summary_tex(groups, name, one, [row for row in published if row["protocol"] == one], part) for one in protocols
    ]
    texts = {
        "sweep.json": json_text(_numbers(name, groups, comparisons, published, extra)) + "\n",
        "summary.csv": summary_csv(groups),
        "trials.csv": trials_csv(groups),
        "summary.tex": "\n".join(tex),
        "report.md": sweep_page(name, groups, comparisons, published, left_out, part, extra),
    }
    written = [write(folder / file, text) for file, text in texts.items()]
    for protocol in protocols:
        kept = measured_groups(groups, protocol)
        shown = {
            METRICS[metric].heading: {
                group: [trial.metric(metric, protocol) for trial in kept[group]] for group in kept
            }
            for metric in COMPARED
        }
        written.append(methods_over_orders(shown, folder / named("methods_over_orders.png", protocol), protocol))
    main = protocols[0]
    kept = measured_groups(groups, main)
    matrices = {group: [one.accuracy[main] for one in kept[group] if main in one.accuracy] for group in kept}
    last = {group: order_means(found, "last", main) for group, found in kept.items()}
    written.append(accuracy_by_position(matrices, folder / "accuracy_by_position.png", main))
    written.append(forgetting_curve(matrices, folder / "forgetting_curve.png", main))
    written.append(order_heat_map(last, folder / "order_heat_map.png", main))
    return written


def _compare(groups: Groups, metric: str, protocol: Protocol) -> list[PairedTest]:
    measured = {
        group: {trial.key: trial.metric(metric, protocol) for trial in trials}
        for group, trials in measured_groups(groups, protocol).items()
    }
    return paired_tests(measured)


def _numbers(
    name: str,
    groups: Groups,
    comparisons: Mapping[Protocol, Mapping[str, Sequence[PairedTest]]],
    published: Sequence[Mapping[str, Any]],
    extra: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """All that the report says, as `sweep.json` has it."""
    summary = []
    for group, trials in groups.items():
        found: dict[str, Any] = {
            one: {metric: dataclasses.asdict(group_spread(trials, metric, one)) for metric in METRICS}
            for one in comparisons
        }
        costs = {key: total_cost(trials, key) for key in COSTS}
        about = {"group": group, "method": trials[0].method, "settings": trials[0].settings, "trials": len(trials)}
        summary.append({**about, **found, "costs": costs})
    tests: dict[str, Any] = {}
    for protocol, by_metric in comparisons.items():
        tests[protocol] = {
            metric: [{**dataclasses.asdict(test), "verdict": test.verdict()} for test in tested]
            for metric, tested in by_metric.items()
        }
    stored = [_trial(trial) for trials in groups.values() for trial in trials]
    orders = orders_by_name(groups)
    return {
        "name": name, "orders": orders, "groups": summary, "comparisons": tests, "trials": stored,
        "published": published, "extra": extra,
    }  # fmt: skip


def _trial(trial: Record) -> dict[str, Any]:
    """A trial's numbers; those of `task` have plain names."""
    about = {
        key: getattr(trial, key)
        for key in ("trial", "method", "group", "settings", "order_name", "seed", "measured_on")
    }
    found: dict[str, Any] = {named("metrics", one): dataclasses.asdict(part) for one, part in trial.metrics.items()}
    found |= {named("accuracy", one): matrix for one, matrix in trial.accuracy.items()}
    return {**about, **found, **trial.costs}
