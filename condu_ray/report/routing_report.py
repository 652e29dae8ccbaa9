"""Writes the ablation of routing: JSON for programs, CSV for tables, Markdown and pictures for people.

Results are one dict, with `run`, `method`, `tasks`, `config`, `versions` and `command` beside: `rows` (dicts of
`session`, `protocol`, `rule`, `asked`, `learned`, `unlearned` in percent, `learned_gain` and `unlearned_gain` over the
paper's rule and `share` of the task known, each with its 95 % interval), `transfer` (dicts of `protocol`, `rule`,
`accuracy`, `over_paper` and `over_zero_shot`: of unlearned tasks, the mean over the sessions), `curves` (dicts of
`session`, `rule`, `auroc`, `area` and `points` of learned and unlearned accuracy) and `routing` (`session`, `tasks`,
`confusion` by router, `calibration`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from condu_ray.report import routing_plots
from condu_ray.report.text import (
    counted,
    csv_text,
    escaped,
    flowing,
    json_text,
    markdown_page,
    markdown_table,
    number_text,
    provenance,
    write,
)
from condu_ray.store.location import Place

_TEXT = """Percent, tasks counting alike. *Own*: the tested task's classes; *∪*: those of all tasks. The task is never
known, but in the row of that name. *Gain*: points above the paper's rule on the same images, with the 95 % interval of
a paired bootstrap over each task's images. *Of known*: ∪ on learned tasks as a share of what their own experts reach
over their own classes. *Asked*: experts that encode an image under ∪, theta0 not counted."""
_CURVE_TEXT = """Accuracy over the union of all classes as images count as new ever more often: of learned tasks
upwards, of unlearned ones to the right. AUROC: how well a rule tells images of unlearned tasks from those of learned
ones; area: under the curve. Weights are learned on learned tasks, each held out in turn."""
_CALIBRATION_TEXT = """Expected calibration error of P(task) on learned tasks' test images, in points, at temperature 1
and at the one from images that are kept out of the router's sums."""


def write_routing(results: Mapping[str, Any], folder: Place, stem: str = "routing") -> list[Place]:
    """Writes the ablation.

    Args:
        results: as the module describes them.
        folder: where the files go; made if it does not exist.
        stem: of the files' names.

    Returns:
        `<stem>.json`, `.csv`, `.md`, `<stem>-confusion.png`, and `<stem>-curves.png` where a task was not learned.
    """
    written = [write(folder / f"{stem}.json", json_text(results) + "\n"), write(folder / f"{stem}.csv", _csv(results))]
    written.append(routing_plots.confusion(results, folder / f"{stem}-confusion.png"))
    parts = [
        f"# Routing, {escaped(results['method'])} of {escaped(results['run'])}",
        f"{counted(len(results['tasks']), 'task')}: {', '.join(map(escaped, results['tasks']))}.",
        flowing(_TEXT),
    ]
    for session in sorted({row["session"] for row in results["rows"]}):
        parts += [f"## After {counted(session, 'task')}", markdown_table(*_table(results, session), left=1)]
    if results.get("transfer"):
        parts += ["## Unlearned tasks, the mean over these sessions", markdown_table(*_transfer(results), left=1)]
    if results["curves"]:
        written.append(routing_plots.curves(results, folder / f"{stem}-curves.png"))
        parts += [
            "## Learned against unlearned",
            flowing(_CURVE_TEXT),
            f"![Accuracy on learned against unlearned tasks]({stem}-curves.png)",
            markdown_table(*_novelty(results), left=1),
        ]
    parts += [
        "## Who is asked",
        f"![Tasks by tasks: where images go]({stem}-confusion.png)",
        flowing(_CALIBRATION_TEXT),
        markdown_table(
            ["Router", "Temperature", "Before", "After"],
            [
                [
                    found["router"],
                    number_text(found["temperature"], 3),
                    number_text(found["before"], 1),
                    number_text(found["after"], 1),
                ]
                for found in results["routing"]["calibration"]
            ],
            left=1,
        ),
        *provenance(results),
    ]
    return [*written, write(folder / f"{stem}.md", markdown_page(parts))]


def _table(results: Mapping[str, Any], session: int) -> tuple[list[str], list[list[str]]]:
    found = {(row["protocol"], row["rule"]): row for row in results["rows"] if row["session"] == session}
    heads = ["Rule", "Learned, own", "Learned, ∪", "Gain", "Of known", "Unlearned, own", "Gain", "Unlearned, ∪", "Gain"]
    rows = []
    for name in dict.fromkeys(rule for _, rule in found):
        own, union = found.get(("own", name), {}), found.get(("union", name), {})
        cells = [number_text(own.get("learned"), 1), number_text(union.get("learned"), 1)]
        cells += [_with_interval(union.get("learned_gain")), _with_interval(union.get("share"))]
        for found_by in (own, union):
            cells += [number_text(found_by.get("unlearned"), 1), _with_interval(found_by.get("unlearned_gain"))]
        rows.append([escaped(name), *cells, number_text(union.get("asked"), 1)])
    return [*heads, "Asked"], rows


def _transfer(results: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    found = {(row["protocol"], row["rule"]): row for row in results["transfer"]}
    heads = ["Rule", "Own", "Over zero-shot", "Over the paper's", "∪", "Over zero-shot", "Over the paper's"]
    rows = []
    for name in dict.fromkeys(rule for _, rule in found):
        rows.append([escaped(name)])
        for protocol in ("own", "union"):
            row = found[protocol, name]
            rows[-1] += [
                number_text(row["accuracy"], 1),
                *map(_with_interval, (row["over_zero_shot"], row["over_paper"])),
            ]
    return heads, rows


def _novelty(results: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    sessions = sorted({found["session"] for found in results["curves"]})
    cells = {(found["rule"], found["session"]): found for found in results["curves"]}
    heads = ["Novelty", *(f"AUROC after {session}" for session in sessions), *(f"area after {s}" for s in sessions)]
    rows = []
    for rule in dict.fromkeys(rule for rule, _ in cells):
        rows.append([rule, *(number_text(cells[rule, session]["auroc"], 3) for session in sessions)])
        rows[-1] += [number_text(cells[rule, session]["area"], 1) for session in sessions]
    return heads, rows


def _with_interval(values: Sequence[float] | None) -> str:
    if values is None:
        return "–"
    value, low, high = (number_text(one, 1) for one in values)
    return f"{value} ({low} ... {high})"


def _csv(results: Mapping[str, Any]) -> str:
    plain = ("session", "protocol", "rule", "asked", "learned", "unlearned")
    wide = ("learned_gain", "unlearned_gain", "share")
    ends = ("", "_low", "_high")
    table: list[list[Any]] = [[*plain, *(f"{name}{end}" for name in wide for end in ends)]]
    for row in results["rows"]:
        table.append([row[name] for name in plain] + [one for name in wide for one in row[name] or (None,) * 3])
    return csv_text(table)
