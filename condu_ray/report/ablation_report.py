"""Writes what ablations measured: JSON for programs, CSV for tables, Markdown and pictures for people.

Results are one dict each, with `run`, `method`, `tasks`, `config`, `versions` and `command` beside:

- inference: `options` (dicts of `aggregation`, `top_k`, `include_pretrained`, `prototypes`, `transfer`, `average`,
  `last` and `union` with the last three), `marks` (name -> the four fields of an option), `cost` (dicts of `experts`,
  `batch`, `swapped`, `held`, `swapped_latency`, `held_latency`), `memory` (dicts of `experts`, `unified`, `whole`);
- merging: `variants` (name -> `formula`, `part`, and `own`: whether a method of the run does so, which earlier releases
  left out), `rows` and `summary` as `condu_ray.ablation.merging` has them,
  `bounds` (task -> `zero_shot`, `individual`), `storage` (dicts of `tasks`, `unified`, `experts`, `share`),
  `measured` (`tasks`, `counted` and `stored` bytes);
- synthetic: `rows`, with `correlation`, and `tasks`, `numel`, `seed`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from condu_ray.metrics import HEADLINE, METRICS
from condu_ray.report import inference_plots, merging_plots
from condu_ray.report.text import (
    as_number,
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

_OPTION = ("aggregation", "top_k", "include_pretrained", "prototypes")
_OPTIONS_TEXT = """Percent, sorted by Transfer. K counts theta0 where it is a candidate (with K = 1 it is then the only
one: zero-shot prediction). Within its own classes a learned task is predicted by its own expert, so that Last is the
same for all options; ∪ is the union of the classes of all tasks, where every image is aggregated."""
_COST_TEXT = """theta0 encodes the images and routes them, then K experts encode every one of them: the most that K
candidates can cost. Medians of passes within one process, nothing kept but the class features. *Swapped*: each expert
is put together from unified delta and trigger into one working model at its turn; *held*: that is left out, as with K
whole models in memory. Bytes are counted, beside theta0's model: unified delta, K triggers and the working model
against K whole models."""
_VARIANTS_TEXT = """All variants merge the same experts. Relative L2 error, share of equal signs and cosine compare what
a task is served with and its own expert's delta. Then accuracy, the points above the task's own expert, and the share
kept of what fine-tuning gained, (accuracy - zero-shot) / (individual - zero-shot), over all tasks together. Factors,
densities and lambda's formula are the run's own; what its methods do is marked."""
_SYNTHETIC_TEXT = """No images and no training: Gaussian deltas that share a component, so that any two correlate by
rho. *condu* unifies at every session, *emr* all original deltas at once. Both are held against each task's original
delta."""


def write_inference(results: Mapping[str, Any], folder: Place, stem: str = "inference") -> list[Place]:
    """Writes the ablation of the aggregated prediction.

    Args:
        results: as the module describes them.
        folder: where the files go; made if it does not exist.
        stem: of the files' names.

    Returns:
        `<stem>.json`, `.csv`, `.md`, `.png` (the options) and `<stem>-cost.png`.
    """
    options = sorted(results["options"], key=lambda found: as_number(found["transfer"]), reverse=True)
    written = _data(results, [_flat_option(found, results["marks"]) for found in options], folder, stem)
    written.append(inference_plots.options_by_k(results, folder / f"{stem}.png"))
    written.append(inference_plots.cost(results, folder / f"{stem}-cost.png"))
    columns = [*HEADLINE, *(f"union_{metric}" for metric in HEADLINE)]
    rows = [
        [escaped(found["mark"]), found["aggregation"], str(found["top_k"])]
        + ["yes" if found["include_pretrained"] else "no", found["prototypes"]]
        + [number_text(found[column], 1) for column in columns]
        for found in (_flat_option(each, results["marks"]) for each in options)
    ]
    names = [METRICS[metric].heading for metric in HEADLINE]
    heads = ["", "Aggregation", "K", "theta0", "Prototypes", *names, *(f"∪ {name}" for name in names)]
    parts = [
        f"# Aggregated prediction, {escaped(results['method'])} of {escaped(results['run'])}",
        _tasks(results),
        flowing(_OPTIONS_TEXT),
        markdown_table(heads, rows, left=5),
        f"![Transfer, and Last over the union, by number of candidates]({stem}.png)",
        "## Seconds and bytes of K experts",
        f"Batches of {results['cost'][0]['batch']} images, and of one: {flowing(_COST_TEXT)}",
        markdown_table(*_cost_table(results), left=0),
        f"![Images a second and bytes by number of experts]({stem}-cost.png)",
        *provenance(results),
    ]
    return [*written, write(folder / f"{stem}.md", markdown_page(parts))]


def write_merging(results: Mapping[str, Any], folder: Place, stem: str = "merging") -> list[Place]:
    """Writes the ablation of the unify rule.

    Args:
        results: as the module describes them.
        folder: where the files go; made if it does not exist.
        stem: of the files' names.

    Returns:
        `<stem>.json`, `.csv`, `.md`, and pictures `<stem>-error.png`, `-variants.png`, `-storage.png` and, where
        accuracy was measured, `-kept.png`.
    """
    written = _data(results, results["rows"], folder, stem)
    measured = any(found.get("kept") is not None for found in results["summary"])
    pictures = {
        "kept": (merging_plots.accuracy_kept, "Share of what fine-tuning gained that is kept, by session"),
        "error": (merging_plots.error_by_session, "Relative L2 error of every task's delta, by session"),
        "variants": (merging_plots.variant_bars, "Variants after the last session"),
        "storage": (merging_plots.storage_growth, "Bytes by number of tasks"),
    }
    drawn = {}
    for name, (draw, title) in pictures.items():
        if name != "kept" or measured:
            written.append(draw(results, folder / f"{stem}-{name}.png"))
            drawn[name] = f"![{title}]({stem}-{name}.png)"
    final = max(found["session"] for found in results["summary"])
    parts = [
        f"# Unify rule, on the experts of {escaped(results['method'])} of {escaped(results['run'])}",
        _tasks(results),
        flowing(_VARIANTS_TEXT),
        f"After session {final}, means over the learned tasks:",
        markdown_table(*_variant_table(results, final), left=3),
        drawn["variants"],
        "## First tasks over the sessions",
        *(
            [drawn["kept"], "Share kept, over all learned tasks together, in percent, after session:",
             markdown_table(*_kept_table(results), left=1)]
            if measured
            else ["No accuracy was measured, or fine-tuning gained nothing."]
        ),
        "## Reconstruction over the sessions",
        drawn["error"],
        "Mean relative L2 error over the learned tasks, after session:",
        markdown_table(*_session_table(results, "relative_l2", 3), left=1),
        "## Accuracy of theta0 and of each expert",
        markdown_table(
            ["Task", "Zero-shot", "Individual"],
            [[escaped(task), *(number_text(found[key], 1) for key in ("zero_shot", "individual"))]
             for task, found in results["bounds"].items()],
            left=1,
        ),
        "## Storage",
        f"Unified delta and triggers (a bit a parameter and task) against all experts' deltas, counted. For "
        f"{results['measured']['tasks']} tasks the formula gives {results['measured']['counted']:,} bytes, and "
        f"`UnifiedDelta.nbytes` is {results['measured']['stored']:,}.",
        markdown_table(
            ["Tasks", "Unified, MB", "Experts, MB", "Share"],
            [[str(found["tasks"]), *(f"{found[key] / 1e6:,.1f}" for key in ("unified", "experts")),
              f"{100 * found['share']:.1f} %"] for found in results["storage"]],
            left=0,
        ),
        drawn["storage"],
        *provenance(results),
    ]  # fmt: skip
    return [*written, write(folder / f"{stem}.md", markdown_page(parts))]


def write_synthetic(results: Mapping[str, Any], folder: Place) -> list[Place]:
    """Writes the merges of synthetic sequences.

    Args:
        results: as the module describes them.
        folder: where the files go; made if it does not exist.

    Returns:
        `synthetic.json`, `.csv`, `.md` and `.png`.
    """
    written = _data(results, results["rows"], folder, "synthetic")
    written.append(merging_plots.synthetic(results, folder / "synthetic.png"))
    final = {}
    for row in results["rows"]:
        if row["session"] == results["tasks"] and row["position"] in (0, results["tasks"] - 1):
            final[row["correlation"], row["variant"], row["position"]] = row
    rows = [
        [f"{rho:g}", escaped(variant), "first" if position == 0 else "last"]
        + [number_text(row[key], 3) for key in ("relative_l2", "sign_agreement", "cosine")]
        for (rho, variant, position), row in final.items()
    ]
    parts = [
        f"# Synthetic sequences of {results['tasks']} tasks",
        flowing(_SYNTHETIC_TEXT),
        f"Deltas of {results['numel']:,} positions, seed {results['seed']}; after session {results['tasks']}:",
        markdown_table(["rho", "Rule", "Task", "Relative L2", "Equal signs", "Cosine"], rows, left=3),
        "![Relative L2 error of the first tasks by session](synthetic.png)",
        *provenance(results),
    ]
    return [*written, write(folder / "synthetic.md", markdown_page(parts))]


def _data(results: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], folder: Place, stem: str) -> list[Place]:
    columns = list(dict.fromkeys(key for row in rows for key in row))
    table = csv_text([columns, *([row.get(key) for key in columns] for row in rows)])
    return [write(folder / f"{stem}.json", json_text(results) + "\n"), write(folder / f"{stem}.csv", table)]


def _flat_option(found: Mapping[str, Any], marks: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """One row of the CSV file: `top_k` is "all" for None, `mark` names whose option it is."""
    fields = {key: found[key] for key in _OPTION}
    whose = ", ".join(name for name, option in marks.items() if all(option[key] == fields[key] for key in _OPTION))
    flat = {"mark": whose} | fields | {"top_k": "all" if fields["top_k"] is None else fields["top_k"]}
    flat |= {metric: found[metric] for metric in HEADLINE}
    return flat | {f"union_{metric}": found["union"][metric] for metric in HEADLINE}


def _cost_table(results: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    heads = ["K", "Swapped, images/s", "Held, images/s", "Swapped, ms an image", "Held, ms an image"]
    rows = []
    for found, memory in zip(results["cost"], results["memory"], strict=True):
        speed = [f"{found[key]:,.0f}" for key in ("swapped", "held")]
        latency = [f"{1000 * found[key]:.1f}" for key in ("swapped_latency", "held_latency")]
        rows.append(
            [str(found["experts"]), *speed, *latency, *(f"{memory[k] / 1e6:,.1f}" for k in ("unified", "whole"))]
        )
    return [*heads, "Unified and triggers, MB", "Whole models, MB"], rows


def _variant_table(results: Mapping[str, Any], session: int) -> tuple[list[str], list[list[str]]]:
    heads = ["", "Variant", "What it does", "Relative L2", "Equal signs", "Cosine"]
    heads += ["Accuracy", "− individual", "Kept, %"]
    rows = []
    for found in results["summary"]:
        if found["session"] == session:
            kept = None if found.get("kept") is None else 100 * found["kept"]
            measures = [number_text(found[key], 3) for key in ("relative_l2", "sign_agreement", "cosine")]
            measures += [number_text(found[key], 1) for key in ("accuracy", "over_individual")]
            variant = results["variants"][found["variant"]]
            named = ["this run" if variant.get("own") else "", escaped(found["variant"]), escaped(variant["formula"])]
            rows.append([*named, *measures, number_text(kept, 1)])
    return heads, rows


def _kept_table(results: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    in_percent = [
        found | {"kept": None if found.get("kept") is None else 100 * found["kept"]}
        for found in results["summary"]
        if found["accuracy"] is not None
    ]
    return _session_table({"summary": in_percent}, "kept", 1)


def _session_table(results: Mapping[str, Any], measure: str, digits: int) -> tuple[list[str], list[list[str]]]:
    cells = {(found["variant"], found["session"]): found[measure] for found in results["summary"]}
    names, sessions = list(dict.fromkeys(name for name, _ in cells)), sorted({session for _, session in cells})
    rows = [
        [escaped(name), *(number_text(cells.get((name, session)), digits) for session in sessions)] for name in names
    ]
    return ["Variant", *map(str, sessions)], rows


def _tasks(results: Mapping[str, Any]) -> str:
    return f"{counted(len(results['tasks']), 'task')}: {', '.join(map(escaped, results['tasks']))}."
