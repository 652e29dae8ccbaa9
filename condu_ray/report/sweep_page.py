"""The page of a sweep's report, in Markdown."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from condu_ray.config import Protocol
from condu_ray.metrics import COMPARED, COSTS, METRICS
from condu_ray.report.protocols import described, named
from condu_ray.report.published import LeftOut
from condu_ray.report.records import Record
from condu_ray.report.statistics import PairedTest, pairs_needed
from condu_ray.report.sweep_tables import (
    best_groups,
    bound_groups,
    group_spread,
    images_in,
    measured_groups,
    order_means,
    published_decimals,
)
from condu_ray.report.text import appendix, counted, escaped, markdown_page, markdown_table, number_text, rounded

_LONG = 15  # comparisons that a page shows unfolded

#: Trials by group, a method with its varied settings.
Groups = Mapping[str, Sequence[Record]]


def sweep_page(
    name: str,
    groups: Groups,
    comparisons: Mapping[Protocol, Mapping[str, Sequence[PairedTest]]],
    published: Sequence[Mapping[str, Any]],
    left_out: Sequence[LeftOut],
    part: str,
    extra: Mapping[str, Any] | None,
) -> str:
    """Returns the page, as Markdown that links the pictures of `sweep_report`.

    Args:
        name: The sweep's name.
        groups: Trials by group.
        comparisons: By protocol that was measured, by metric, the tests of all pairs of groups.
        published: Rows of `condu_ray.report.published`, each shown under its protocol.
        left_out: Rows that are no figures of what was measured here, and why.
        part: How many images of each task were measured, where these are not all.
        extra: What else to print at the end, by heading.
    """
    orders = orders_by_name(groups)
    tasks = next(iter(orders.values()))
    seeds = sorted({trial.seed for trials in groups.values() for trial in trials})
    count = sum(map(len, groups.values()))
    images = " and ".join(sorted({trial.measured_on for trials in groups.values() for trial in trials}))
    parts = [
        f"# Sweep {escaped(name)}",
        f"{counted(len(groups), 'method')}, {counted(len(orders), 'order')} of {counted(len(tasks), 'task')}, "
        f"{'seed' if len(seeds) == 1 else 'seeds'} {', '.join(map(str, seeds))}: {counted(count, 'trial')}. "
        f"Measured on {images} images{f', {part}' if part else ''}. "
        "A method with other settings counts as one of its own.",
        *_missing(groups),
    ]
    for number, protocol in enumerate(comparisons):
        shown = images_in(trial for trials in groups.values() for trial in trials)
        parts += [f"## Methods over the orders, protocol {protocol}{shown}", described(protocol)]
        parts += [_summary_table(groups, protocol)]
        if not number:
            parts += [
                "Mean ± standard deviation over the trials, in percent; bold is the best mean (zero-shot and "
                "individual, which are bounds, are not compared). – means that the value does not exist.",
                "\n".join(f"- **{metric.heading}**: {metric.meaning}." for metric in METRICS.values()),
            ]
        picture = named("methods_over_orders.png", protocol)
        parts += [f"![Transfer, Average, Last and BWT of each method in each order, protocol {protocol}]({picture})"]
        parts += ["Worst and best order by Last (means over the seeds):", _extremes_table(groups, protocol)]
        parts += _published([row for row in published if row["protocol"] == protocol], part)
    parts += _left_out(left_out)
    main = next(iter(comparisons))
    parts += [
        f"![Last of each method in each order, protocol {main}](order_heat_map.png)",
        f"## What the position in the order does, protocol {main}",
        "Accuracy after the last session, by the position at which a task was learned; with few orders it also shows "
        "which tasks happened to stand there:",
        "![Accuracy after the last session by position](accuracy_by_position.png)",
        "Accuracy on a task some sessions after it was learned, minus that right after; fewer tasks have been learned "
        "long ago, so that the right end is the mean of few:",
        "![Change of accuracy by sessions since learning](forgetting_curve.png)",
    ]
    for protocol, by_metric in comparisons.items():
        parts += _comparisons(by_metric, protocol, len(seeds))
    parts += ["## Cost", _cost_table(groups), "Sums over the trials of a method; seconds are the mean of a trial."]
    parts += [
        "## Orders",
        "\n".join(f"- **{escaped(key)}**: {', '.join(map(escaped, o))}" for key, o in orders.items()),
    ]
    return markdown_page([*parts, *appendix(extra or {})])


def _missing(groups: Groups) -> list[str]:
    """What keeps means from being comparable: trials that other methods have."""
    every = {trial.key: trial for trials in groups.values() for trial in trials}
    lines = []
    for group, trials in groups.items():
        have = {trial.key for trial in trials}
        if lacking := [f"{trial.order_name} (seed {trial.seed})" for key, trial in every.items() if key not in have]:
            lines.append(f"- {escaped(group)}: {', '.join(map(escaped, lacking))}")
    if not lines:
        return []
    return ["**Trials are missing**, so that means below are over different orders:", "\n".join(lines)]


def _summary_table(groups: Groups, protocol: Protocol) -> str:
    measured = measured_groups(groups, protocol)
    spreads = {
        metric: {g: group_spread(trials, metric, protocol) for g, trials in measured.items()} for metric in METRICS
    }
    bold = {metric: best_groups(found, bound_groups(measured), metric) for metric, found in spreads.items()}
    rows = []
    for group in measured:
        row = [escaped(group)]
        for metric, found in spreads.items():
            one, decimals = found[group], METRICS[metric].digits
            mean = number_text(one.mean, decimals)
            mean = f"**{mean}**" if group in bold[metric] else mean
            row.append(mean if math.isnan(one.std) else f"{mean} ± {one.std:.{decimals}f}")
        rows.append([*row, str(spreads["last"][group].count)])
    return markdown_table(["Method", *(metric.heading for metric in METRICS.values()), "Trials"], rows, left=1)


def _extremes_table(groups: Groups, protocol: Protocol) -> str:
    rows = []
    for group, trials in groups.items():
        means = order_means(trials, "last", protocol)
        found = group_spread(trials, "last", protocol)
        if not found.count:
            continue
        measured = {order: value for order, value in means.items() if not math.isnan(value)}
        values = list(measured.values())
        row = [escaped(group), number_text(max(values) - min(values), 1)]
        same = "any" if len(values) > 1 else next(iter(measured))
        for order in (found.worst, found.best):
            row += [number_text(means[order] if order else values[0], 1), escaped(order or same)]
        rows.append(row)
    return markdown_table(["Method", "Range", "Worst", "in order", "Best", "in order"], rows, left=1)


def _comparisons(by_metric: Mapping[str, Sequence[PairedTest]], protocol: Protocol, seeds: int) -> list[str]:
    count = len(next(iter(by_metric.values())))
    if not count:
        return []
    parts = [
        f"## Do methods differ, protocol {protocol}?",
        "Wilcoxon's signed-rank test, exact and two-sided, on the differences (the first minus the second) at the same "
        f"order and seed; p adjusted by Holm for the {counted(count, 'comparison')} of a metric; significant at 0.05. "
        "It is about orders of these tasks, not about other tasks. Fewer than six unequal pairs can never reach 0.05, "
        f"and with {counted(count, 'comparison')} the smallest p is sure to do so only from {pairs_needed(count)} "
        f"pairs on.{' Pairs of one order with several seeds count as so many.' if seeds > 1 else ''}",
    ]
    for metric, tests in by_metric.items():
        heading = METRICS[metric].heading
        rows = [
            [
                f"{escaped(test.first)} against {escaped(test.second)}",
                _signed(test.difference, 2),
                str(test.pairs),
                number_text(test.p_value, 4),
                number_text(test.adjusted, 4),
                test.verdict(),
            ]
            for test in tests
        ]
        heads = [heading, "Difference", "Pairs", "p", "Adjusted p", "Significant"]
        table = markdown_table(heads, rows, left=1)
        if len(rows) > _LONG:
            table = f"<details><summary>{heading}: {len(rows)} comparisons</summary>\n\n{table}\n\n</details>"
        parts.append(table)
    return parts


def _cost_table(groups: Groups) -> str:
    rows = []
    for group, trials in groups.items():
        seconds = total_cost(trials, "seconds")
        mean = None if seconds is None else seconds / sum(trial.costs["seconds"] is not None for trial in trials)
        others = [number_text(total_cost(trials, key), cost.digits) for key, cost in COSTS.items() if key != "seconds"]
        rows.append([escaped(group), str(len(trials)), number_text(mean, COSTS["seconds"].digits), *others])
    return markdown_table(["Method", "Trials", *(cost.heading for cost in COSTS.values())], rows, left=1)


def _published(published: Sequence[Mapping[str, Any]], part: str) -> list[str]:
    if not published:
        return []
    rows = []
    for row in published:
        figures = [number_text(row.get(metric), published_decimals(row, metric)) for metric in COMPARED]
        rows.append([escaped(row["method"]), escaped(row["source"]), escaped(row.get("setting") or "–"), *figures])
    heads = ["Method", "Source", "Setting", *(METRICS[metric].heading for metric in COMPARED)]
    return [
        "### Published figures",
        "**Published, not measured here**: by their authors, with their model, data and code; no part of any mean or "
        f"test here. Percent.{f' **Of all test images, where those measured here are of {part}.**' if part else ''}",
        markdown_table(heads, rows, left=3),
    ]


def _left_out(rows: Sequence[LeftOut]) -> list[str]:
    if not rows:
        return []
    lines = [
        f"- {escaped(row['method'])}, {escaped(row['source'])}, {escaped(row['setting'])}: {why}" for row, why in rows
    ]
    return ["Published figures that are not shown, for they are of something else:", "\n".join(lines)]


def orders_by_name(groups: Groups) -> dict[str, tuple[str, ...]]:
    """Returns the tasks of every order of the sweep."""
    return {trial.order_name: trial.order for trials in groups.values() for trial in trials}


def total_cost(trials: Sequence[Record], key: str) -> float | None:
    """Returns the sum of a cost (a key of `COSTS`) over the trials that have it, None if none has."""
    known = [cost for trial in trials if (cost := trial.costs[key]) is not None]
    return sum(known) if known else None


def _signed(value: float, decimals: int) -> str:
    return "–" if math.isnan(value) else f"{rounded(value, decimals):+.{decimals}f}"
