"""Writes the report of a run: `results.json` for programs, `report.md` and pictures for people.

Results are one dict:

- `tasks`: T names, in the order in which they were learned;
- `methods`: by name, a dict with, of protocol `task`, `accuracy` (percent, T rows of T values: [t][i] is task i after
  session t) and the metrics `transfer`, `average`, `last`, `backward_transfer`, `forgetting` (percent); with the same
  of other protocols under their names (`own`, `union`, `xtail`), as far as measured; with `seconds`, and optionally
  `bits` and `bits_changed` (on disk, a task and parameter, over all parameters and over those that changed) and
  `reconstruction` (a row per session, of one {"task", "relative_l2", "sign_agreement"} for each task learned by then,
  with "relative_l2_error" where it is an estimate)
  and `calibration` (of the last session, one {"task", "temperature", "before", "after"} a task: the expected
  calibration error of its own expert, in points, at temperature 1 and at the fitted one, None where there is none);
- `read`: what they are of, `backbone` (theta0's fingerprint) and `tasks` (by name a hash of images, classes and
  templates); earlier versions say nothing of it;
- `protocols`: those that were asked for; `measured_on`: `test` or `validation` images (earlier versions: `test`);
  `precision`: `fp32` or `bf16`, of training and measuring (left out by earlier versions);
- optionally `routing`: `tasks`, `confusion` (by router T rows of T values: the share in percent of each task's test
  images that each task is the likeliest of) and `methods` (by router the names of the methods that ask it);
- optionally `probes`: theta0's accuracy on what is never learned, percent by name; a method has `probes` too: by name,
  percent after each session;
- optionally `zero_shot`: as `condu_ray.report.zero_shot` describes it;
- `run`, `recipe`, `seed`, `config`, `versions`, `command`, and `backbone` (what it is and what was decided for it, a
  line each; runs of earlier versions have none).

A value that does not exist (Transfer of one task) is nan or None, and null in the file; so what was read back from
`results.json` gives the same report.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from condu_ray.metrics import FLATTEST, METRICS, SHARPEST
from condu_ray.report.protocols import described, images_of, matrices, measured, named
from condu_ray.report.run_summary import summary_rows, whole_columns
from condu_ray.report.text import (
    as_matrix,
    as_number,
    counted,
    escaped,
    json_text,
    markdown_page,
    markdown_table,
    number_text,
    provenance,
    write,
)
from condu_ray.report.zero_shot import verdict, zero_shot_rows
from condu_ray.store.location import Place


def write_report(results: Mapping[str, Any], folder: Place, pictures: bool = True) -> list[Place]:
    """Writes the report of a run; each file is replaced as a whole, and the numbers are written first.

    Args:
        results: The results, as the module describes them.
        folder: Where the files go; made if it does not exist.
        pictures: Whether to write more than `results.json`.

    Returns:
        The files: `results.json`, `report.md`; `metrics.png` and `accuracy.png`, of other protocols than `task`
        `own_metrics.png` and so on; of the first protocol a `matrix-<method>.png` a method; and `routing.png` where
        there is a router.

    Raises:
        ValueError: If `tasks` or `methods` is missing, or an accuracy matrix has not the shape (T, T). What could
            be written as JSON is in `results.json` even then.
    """
    written = [write(folder / "results.json", json_text(results) + "\n")]
    for key in ("tasks", "methods"):
        if not results.get(key):
            raise ValueError(f"results have no {key!r}; a report needs at least one")
    tasks, methods = results["tasks"], results["methods"]
    for name, entry in methods.items():
        try:
            found = matrices(entry)
            if not found:
                raise KeyError("accuracy")
            for part in found.values():
                as_matrix(part["accuracy"], len(tasks))
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"method {name!r}: no usable 'accuracy' ({error})") from error
    if not pictures:
        return written
    # Late, for trials of sweeps draw nothing and are processes of their own.
    from condu_ray.report.metrics_plot import metrics_bars
    from condu_ray.report.routing_plots import confusion
    from condu_ray.report.run_plots import accuracy_over_sessions, heat_map

    names = _picture_names(methods)
    written.append(write(folder / "report.md", _markdown(results, names)))
    for protocol in measured(methods.values()):
        written.append(metrics_bars(results, folder / named("metrics.png", protocol), protocol))
        written.append(accuracy_over_sessions(results, folder / named("accuracy.png", protocol), protocol))
    if results.get("routing"):
        written.append(confusion(results, folder / "routing.png"))
    for name, entry in methods.items():
        protocol, part = next(iter(matrices(entry).items()))
        written.append(heat_map(part["accuracy"], tasks, f"{name}, protocol {protocol}", folder / names[name]))
    return written


def _picture_names(methods: Iterable[str]) -> dict[str, str]:
    """A file name a method, safe in paths and links, and never the same twice (even where case does not count)."""
    names: dict[str, str] = {}
    for method in methods:
        stem = name = f"matrix-{re.sub(r'[^A-Za-z0-9._-]+', '-', method)}"
        copy = 2
        while f"{name}.png".lower() in (taken.lower() for taken in names.values()):
            name, copy = f"{stem}-{copy}", copy + 1
        names[method] = f"{name}.png"
    return names


def _at_most(results: Mapping[str, Any]) -> str:
    """How many of each task's images were measured, where these are not all."""
    most = ((results.get("config") or {}).get("evaluation") or {}).get("max_images")
    return f", at most {most} a task" if most else ""


def _markdown(results: Mapping[str, Any], pictures: Mapping[str, str]) -> str:
    tasks, methods = list(results["tasks"]), results["methods"]
    meanings = {column.heading: column.meaning for column in (METRICS | whole_columns(results)).values()}
    meanings["Transfer"] += ": what is kept of zero-shot ability"
    parts = [
        f"# Report of {escaped(results.get('run', 'a run'))}",
        f"Recipe {escaped(results.get('recipe', 'not named'))}, seed {escaped(results.get('seed', 'not named'))}, "
        f"{counted(len(tasks), 'task')}: {', '.join(map(escaped, tasks))}. "
        f"Measured on {escaped(results.get('measured_on', 'test'))} images{_at_most(results)}.",
    ]
    images = images_of(results)
    protocols = measured(methods.values())
    for protocol in protocols:
        parts += [
            f"## Methods, protocol {protocol}{images}",
            described(protocol),
            _summary(summary_rows(results, protocol)),
        ]
        if protocol == protocols[0]:
            parts += [
                "\n".join(f"- **{heading}**: {meaning}." for heading, meaning in meanings.items()),
                f"All but the {' and '.join(whole_columns(results))} are in percent; – means that the value does not "
                "exist (a single task has no Transfer).",
            ]
        if lacking := [name for name in methods if protocol not in matrices(methods[name])]:
            parts.append(f"Not measured, for they need the task's identity: {', '.join(map(escaped, lacking))}.")
        picture = named("metrics.png", protocol)
        parts.append(f"![Transfer, Average and Last of each method, protocol {protocol}]({picture})")
    if probes := results.get("probes"):
        parts += ["## Probes", _PROBES, _probes(results, probes)]
    if compared := results.get("zero_shot"):
        rows = [[escaped(cell) for cell in row.values()] for row in zero_shot_rows(compared)]
        heads = list(zero_shot_rows(compared)[0])
        parts += [
            "## Zero-shot, published and measured",
            f"{escaped(verdict(compared))}.",
            markdown_table(heads, rows, left=1),
        ]
    parts += [
        "## Accuracy over the sessions",
        *(
            f"![Accuracy on each task after each session, protocol {protocol}]({named('accuracy.png', protocol)})"
            for protocol in protocols
        ),
        *_routing(results),
        *_calibration(results),
        "## Accuracy matrices",
        "A row is the model after a session, a column a task; bold is the session that learns the task, right of it "
        "are the tasks that are not learned yet.",
    ]
    for name, entry in methods.items():
        parts.append(f"### {escaped(name)}")
        for number, (protocol, part) in enumerate(matrices(entry).items()):
            matrix = _matrix(as_matrix(part["accuracy"], len(tasks)).tolist(), tasks)
            parts += [f"Protocol `{protocol}`{images}:", matrix]
            if not number:
                parts.append(f"![Accuracy matrix of {escaped(name)}, protocol {protocol}]({pictures[name]})")
        if entry.get("reconstruction"):
            parts += ["Reconstruction of each expert's delta, relative L2 error / share of signs that agree:"]
            parts.append(_reconstruction(entry["reconstruction"], tasks))
            errors = [one.get("relative_l2_error") or 0.0 for session in entry["reconstruction"] for one in session]
            if largest := max(errors):
                parts.append(f"Estimated from sampled positions; the largest standard error is {largest:.2g}.")
    return markdown_page([*parts, *provenance(results)])


def _routing(results: Mapping[str, Any]) -> list[str]:
    """Whose experts are asked for an image of which task, after the last session."""
    found = results.get("routing")
    if not found:
        return []
    asked = "; ".join(
        f"`{router}` is asked by {', '.join(map(escaped, names))}" for router, names in found["methods"].items()
    )
    return [
        "## Who is asked",
        f"Of each task's images, in percent, the task that the router holds for the likeliest once all are learned; "
        f"{asked}.",
        "![Tasks by tasks: where images go](routing.png)",
    ]


def _calibration(results: Mapping[str, Any]) -> list[str]:
    """How much the experts' probabilities can be believed, before and after a temperature each."""
    found = {name: entry["calibration"] for name, entry in results["methods"].items() if entry.get("calibration")}
    if not found:
        return []
    share = (results.get("config") or {}).get("validation_share")
    text = "Expected calibration error of each task's own expert over the task's classes after the last session, points"
    if share and results.get("measured_on") == "validation":
        text += ": at temperature 1, and at the one fitted on the same held-out images, which flatters it."
    elif share:
        text += ": at temperature 1, and at the one fitted on the task's held-out images (in brackets); mixtures and "
        text += "`Predictor` use it."
    else:
        text += ", at temperature 1: no image was held out of training (`--validation_share`), so that no temperature "
        text += "can be fitted, and probabilities are used as they are."
    named = {one["task"] for ones in found.values() for one in ones}
    tasks = [task for task in results["tasks"] if task in named]
    rows = []
    for name, ones in found.items():
        by_task = {one["task"]: one for one in ones}  # what an earlier release measured has none
        cells = [by_task.get(task, {}) for task in tasks]
        rows.append([escaped(name), *(_calibrated(one) for one in [*cells, _mean(cells)])])
    heads = ["Method", *map(escaped, tasks), "mean"]
    edges = [f"{name}'s of {one['task']}" for name, ones in found.items() for one in ones if _at_edge(one)]
    remark = (
        f"At the edge of the temperatures that are tried ({SHARPEST:g} to {FLATTEST:g}), so that none was found: "
        f"{', '.join(map(escaped, edges))}. The held-out images say of such an expert that it is never wrong, or no "
        "better than chance; more of them (`--validation_share`) may say otherwise."
    )
    return ["## Calibration", text, markdown_table(heads, rows, left=1), *([remark] if edges else [])]


def _at_edge(one: Mapping[str, Any]) -> bool:
    temperature = as_number(one.get("temperature"))
    return temperature < 1.001 * SHARPEST or temperature > 0.999 * FLATTEST


def _calibrated(one: Mapping[str, Any]) -> str:
    before, after = (number_text(one.get(key), 1) for key in ("before", "after"))
    if one.get("after") is None:
        return before
    return f"{before} → {after}" + (f" ({number_text(one['temperature'], 2)})" if one.get("temperature") else "")


def _mean(tasks: Sequence[Mapping[str, Any]]) -> dict[str, float | None]:
    values = {key: [as_number(one.get(key)) for one in tasks] for key in ("before", "after")}
    means = {key: sum(found) / len(found) for key, found in values.items()}
    return {key: None if math.isnan(mean) else mean for key, mean in means.items()}


_PROBES = (
    "Accuracy on what is never learned, measured as tasks are that are not learned yet: what is kept of unrelated "
    "zero-shot ability."
)


def _probes(results: Mapping[str, Any], pretrained: Mapping[str, float]) -> str:
    heads = ["Probe", "Method", "Pretrained", *(f"After {number + 1}" for number in range(len(results["tasks"])))]
    rows = [
        [escaped(probe), escaped(name), *(number_text(value, 1) for value in (theta0, *entry["probes"][probe]))]
        for probe, theta0 in pretrained.items()
        for name, entry in results["methods"].items()
        if probe in entry.get("probes", {})
    ]
    return markdown_table(heads, rows, left=2)


def _summary(rows: Sequence[Mapping[str, str]]) -> str:
    return markdown_table(list(rows[0]), [[escaped(cell) for cell in row.values()] for row in rows], left=1)


def _matrix(accuracy: Sequence[Sequence[float]], tasks: Sequence[str]) -> str:
    rows = []
    for session, row in enumerate(accuracy):
        cells = [number_text(value, 1) for value in row]
        cells[session] = f"**{cells[session]}**"
        rows.append([f"{session + 1} {escaped(tasks[session])}", *cells])
    return markdown_table(["After session", *map(escaped, tasks)], rows, left=1)


def _reconstruction(sessions: Sequence[Sequence[Mapping[str, Any]]], tasks: Sequence[str]) -> str:
    rows = []
    for session, entries in enumerate(sessions):
        by_task = {entry["task"]: entry for entry in entries}
        cells = []
        for task in tasks:
            found = by_task.get(task)
            numbers = [number_text(found.get(key), 3) for key in ("relative_l2", "sign_agreement")] if found else []
            cells.append(" / ".join(numbers))
        rows.append([f"{session + 1}", *cells])
    return markdown_table(["After session", *map(escaped, tasks)], rows, left=1)
