"""Tables of a sweep for other programs: CSV of every trial and of every group, and a LaTeX table for a paper."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from condu_ray.config import Protocol
from condu_ray.metrics import COMPARED, COSTS, METRICS
from condu_ray.report.protocols import PROTOCOLS, named
from condu_ray.report.records import Record
from condu_ray.report.statistics import Spread, spread
from condu_ray.report.text import as_number, csv_text, latex, rounded

#: Methods that are bounds, never the best of a table: no training at all, and a model for each task.
BOUNDS = ("zero-shot", "individual")


def group_spread(trials: Sequence[Record], metric: str, protocol: Protocol) -> Spread:
    """Returns the spread of a metric over the trials of a group.

    Args:
        trials: Trials of one group.
        metric: Field of `ContinualMetrics`.
        protocol: Trials that were not measured by it are left out.

    Returns:
        The spread over all trials (percent); `worst` and `best` are names of orders, by their means over the seeds.
    """
    better = METRICS[metric].higher_is_better
    whole = spread({trial.key: trial.metric(metric, protocol) for trial in trials}, higher_is_better=better)
    orders = spread(order_means(trials, metric, protocol), higher_is_better=better)
    return Spread(whole.count, whole.mean, whole.std, whole.low, whole.high, orders.worst, orders.best)


def order_means(trials: Sequence[Record], metric: str, protocol: Protocol) -> dict[str, float]:
    """Returns, by order's name, the mean of a metric (percent) over the seeds; nan where it was not measured."""
    by_order: dict[str, list[float]] = {}
    for trial in trials:
        value = trial.metric(metric, protocol)
        by_order.setdefault(trial.order_name, []).extend([] if math.isnan(value) else [value])
    return {name: sum(values) / len(values) if values else math.nan for name, values in by_order.items()}


def best_groups(spreads: Mapping[str, Spread], bounds: Sequence[str], metric: str) -> set[str]:
    """Returns the groups to print in bold: the best mean as printed, and what prints the same.

    Args:
        spreads: By group, the spread of the metric.
        bounds: Groups that are not compared.
        metric: Field of `ContinualMetrics`.
    """
    printed = {
        group: rounded(found.mean, METRICS[metric].digits)
        for group, found in spreads.items()
        if group not in bounds and not math.isnan(found.mean)
    }
    if len(printed) < 2:
        return set()
    best = (max if METRICS[metric].higher_is_better else min)(printed.values())
    return {group for group, value in printed.items() if value == best}


def summary_csv(groups: Mapping[str, Sequence[Record]]) -> str:
    """Returns a CSV table with a row for each group, protocol and metric; numbers as they are, nan as nothing."""
    settings = _setting_names(groups)
    heads = ["method", *settings.values(), "protocol", "measured_on", "metric"]
    rows = [[*heads, "mean", "std", "min", "max", "worst_order", "best_order", "n"]]
    for trials in groups.values():
        first = trials[0]
        for protocol in protocols_of(trials):
            for metric in METRICS:
                found = group_spread(trials, metric, protocol)
                numbers = [found.mean, found.std, found.low, found.high]
                values = [_plain(first.settings.get(key)) for key in settings]
                orders = [found.worst or "", found.best or ""]
                about = [first.method, *values, protocol, first.measured_on, metric]
                rows.append([*about, *map(_plain, numbers), *orders, str(found.count)])
    return csv_text(rows)


def trials_csv(groups: Mapping[str, Sequence[Record]]) -> str:
    """Returns a CSV table with a row a trial: what it was, its metrics by each protocol, and what it cost."""
    settings = _setting_names(groups)
    trials = [trial for found in groups.values() for trial in found]
    columns = {named(metric, one): (metric, one) for one in protocols_of(trials) for metric in METRICS}
    rows = [["trial", "method", *settings.values(), "order_name", "order", "seed", "measured_on", *columns, *COSTS]]
    for trial in trials:
        metrics = [_plain(trial.metric(metric, protocol)) for metric, protocol in columns.values()]
        values = [_plain(trial.settings.get(key)) for key in settings]
        what = [trial.trial, trial.method, *values, trial.order_name, ",".join(trial.order), str(trial.seed)]
        what.append(trial.measured_on)
        rows.append([*what, *metrics, *(_plain(trial.costs[key]) for key in COSTS)])
    return csv_text(rows)


def summary_tex(
    groups: Mapping[str, Sequence[Record]],
    name: str,
    protocol: Protocol,
    published: Sequence[Mapping[str, Any]] = (),
    part: str = "",
) -> str:
    """Returns a LaTeX table for `booktabs`: mean and standard deviation a group, the best mean in bold.

    Args:
        groups: Trials by group; those without a trial under the protocol are left out.
        name: The sweep's name, for the caption.
        protocol: What is shown.
        published: Rows of `condu_ray.report.published` of that protocol, set apart below a rule and never in bold.
        part: How many images of each task were measured, where these are not all.
    """
    kept = measured_groups(groups, protocol)
    bounds = bound_groups(kept)
    heads = " & ".join(METRICS[metric].heading for metric in COMPARED)
    cells: dict[str, list[str]] = {group: [] for group in kept}
    for metric in COMPARED:
        spreads = {group: group_spread(trials, metric, protocol) for group, trials in kept.items()}
        bold = best_groups(spreads, bounds, metric)
        for group, found in spreads.items():
            cells[group].append(_tex_cell(found, METRICS[metric].digits, group in bold))
    rows = [
        f"{latex(group)} & {' & '.join(cells[group])} \\\\" for group in sorted(kept, key=lambda g: g not in bounds)
    ]
    if bounds and len(bounds) < len(kept):
        rows.insert(len(bounds), r"\midrule")
    for source in dict.fromkeys(row["source"] for row in published):
        of = ", of all test images" if part else ""
        words = rf"\emph{{published{of}: {latex(source)}}}"
        rows += [r"\midrule", rf"\multicolumn{{{len(COMPARED) + 1}}}{{l}}{{{words}}} \\"]
        for row in published:
            if row["source"] == source:
                figures = [
                    _tex_number(as_number(row.get(metric)), published_decimals(row, metric)) for metric in COMPARED
                ]
                rows.append(f"{latex(row['method'])} & {' & '.join(figures)} \\\\")
    trials = [trial for found in kept.values() for trial in found]
    orders, seeds = len({trial.order for trial in trials}), len({trial.seed for trial in trials})
    count = f"{orders} task order{'' if orders == 1 else 's'}{f' and {seeds} seeds' if seeds > 1 else ''}"
    if orders * seeds > 1:  # of one trial there is no deviation
        count = rf"mean $\pm$ standard deviation over {count}"
    count += f", in percent; protocol {protocol}{images_in(trials)}{f', {part}' if part else ''}"
    lines = [
        "% needs \\usepackage{booktabs}",
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{latex(name)}: {count}.}}",
        rf"\begin{{tabular}}{{l{'r' * len(COMPARED)}}}",
        r"\toprule",
        rf"Method & {heads} \\",
        r"\midrule",
        *rows,
        r"\bottomrule",
        r"\end{tabular}",
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"


def measured_groups(groups: Mapping[str, Sequence[Record]], protocol: Protocol) -> dict[str, Sequence[Record]]:
    """Returns the groups that have a trial under a protocol."""
    return {group: trials for group, trials in groups.items() if protocol in protocols_of(trials)}


def protocols_of(trials: Iterable[Record]) -> list[Protocol]:
    """Returns the protocols by which any of the trials was measured, in the order of tables."""
    found = {protocol for trial in trials for protocol in trial.metrics}
    return [protocol for protocol in PROTOCOLS if protocol in found]


def images_in(trials: Iterable[Record]) -> str:
    """Returns the images that trials were measured on, for headings; "" where these are test images alone."""
    found = sorted({trial.measured_on for trial in trials})
    return "" if found == ["test"] else f", {' and '.join(found)} images"


def bound_groups(groups: Mapping[str, Sequence[Record]]) -> list[str]:
    """Returns the groups of the methods that are bounds."""
    return [group for group, trials in groups.items() if trials[0].method in BOUNDS]


def published_decimals(row: Mapping[str, Any], metric: str) -> int:
    """Returns how many decimals of a published figure to print: one, or two where the paper has them."""
    return METRICS[metric].digits if row.get(metric) is None or round(row[metric], 1) == row[metric] else 2


def _tex_cell(found: Spread, decimals: int, bold: bool) -> str:
    deviation = "" if math.isnan(found.std) else rf" {{\scriptsize $\pm$ {found.std:.{decimals}f}}}"
    return f"{_tex_number(found.mean, decimals, bold)}{deviation}"


def _tex_number(value: float, decimals: int, bold: bool = False) -> str:
    if math.isnan(value):
        return "--"
    text = f"{rounded(value, decimals):.{decimals}f}"
    return rf"$\mathbf{{{text}}}$" if bold else f"${text}$"


def _setting_names(groups: Mapping[str, Sequence[Record]]) -> dict[str, str]:
    """Varied settings by their column, a name that no other column has."""
    keys = sorted({key for trials in groups.values() for trial in trials for key in trial.settings})
    return {key: f"settings.{key}" for key in keys}


def _plain(value: Any) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, float):
        return repr(int(value)) if value.is_integer() else repr(value)
    return value if isinstance(value, str) else json.dumps(value, default=str)
