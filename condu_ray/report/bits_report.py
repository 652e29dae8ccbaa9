"""Writes what `condu_ray.ablation.bits` measured: JSON for programs, a page and a picture for people.

Results are one dict: `rules` (name -> `formula`, `step`, `family`), `rows` (dicts of `rule`, `tasks`, `bits`,
`bits_changed`, `shared_bits`, `bits_at_11`, `bits_at_100`, `seconds_to_read`, `relative_l2`, `accuracy`, `kept`, `low`,
`high`; shares, not percent), `bounds` (task -> `zero_shot`, `individual`, `images`), `resamples`, and `run`, `method`,
`tasks`, `config`, `versions` and `command`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from condu_ray.report.style import MUTED, PALETTE, line_style, save_figure, style_axes
from condu_ray.report.text import (
    counted,
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

_TEXT = """Bits are those of a task's own files (of rules that are no method: of what they would write), a parameter:
over all parameters of the delta, and over those that training changed. What the tasks share comes on top: the two
columns behind have it divided by 11 and by 100 tasks. Kept is the share of what fine-tuning gained over zero-shot,
over all tasks together, every task known to the prediction, with the middle 95 % of {} paired bootstraps over the
test images. Read is the time in which a task's delta is made of what is kept."""
_STEPS = """From ConDU's rule to `condu-sign`, a step at a time on the same experts: without iteration, then with a
factor a row, then the sign of the task's own delta in place of a mask on what the tasks elected, then the magnitude
that they share."""
_HEADS = ("Rule", "Tasks", "Bits", "of changed", "with shared, T = 11", "T = 100", "Relative L2", "Accuracy", "Kept %",
          "95 %", "Read, s")  # fmt: skip

_TICKS = tuple(base * 10.0**power for power in range(-3, 3) for base in (1, 2, 5))


def write_bits(results: Mapping[str, Any], folder: Place, stem: str = "bits") -> list[Place]:
    """Writes the report.

    Args:
        results: as the module describes them.
        folder: where the files go; made if it does not exist.
        stem: of the files' names.

    Returns:
        `<stem>.json` (the results), `<stem>-table.json` (the table as `condu_ray/report/results` has tables),
        `<stem>.md` and `<stem>.png`.
    """
    rows = [_row(row) for row in results["rows"]]
    images = sum(bound["images"] for bound in results["bounds"].values())
    text = flowing(_TEXT.format(results["resamples"]))
    seed = results["config"].get("seed", "?")
    table = {
        "title": f"Bits against what is kept, {len(results['tasks'])} tasks",
        "about": [text],
        "columns": list(_HEADS),
        "decimals": {head: 3 for head in _HEADS[2:7]} | {"Read, s": 2},
        "setting": f"One seed ({seed}), {images:,} test images.",
        "command": results["command"],
        "rows": rows,
    }
    written = [
        write(folder / f"{stem}.json", json_text(results) + "\n"),
        write(folder / f"{stem}-table.json", json_text(table) + "\n"),
        frontier(results, folder / f"{stem}.png"),
    ]
    steps = [_row(row) for row in results["rows"] if results["rules"][row["rule"]]["step"]]
    parts = [
        f"# Bits against what is kept, experts of {escaped(results['method'])} of {escaped(results['run'])}",
        f"{counted(len(results['tasks']), 'task')}: {', '.join(map(escaped, results['tasks']))}; "
        f"{images:,} test images.",
        text,
        markdown_table(list(_HEADS), _escaped(rows), left=1),
        f"![Share kept by bits a parameter and task]({stem}.png)",
        "\n".join(f"- **{escaped(name)}**: {escaped(rule['formula'])}." for name, rule in results["rules"].items()),
        "## Why ConDU's rule loses",
        flowing(_STEPS),
        markdown_table(list(_HEADS), _escaped(steps), left=1),
        "## Bounds",
        markdown_table(
            ["Task", "Zero-shot", "Individual", "Images"],
            [
                [escaped(task), number_text(one["zero_shot"], 1), number_text(one["individual"], 1), str(one["images"])]
                for task, one in results["bounds"].items()
            ],
            left=1,
        ),
        *provenance(results),
    ]
    return [*written, write(folder / f"{stem}.md", markdown_page(parts))]


def frontier(results: Mapping[str, Any], path: Place) -> Place:
    """Draws the share kept by bits a parameter and task (logarithmic), a panel a number of tasks."""
    counts, shown = sorted({row["tasks"] for row in results["rows"]}), [row["bits"] or 1 for row in results["rows"]]
    families = list(dict.fromkeys(rule["family"] for rule in results["rules"].values()))
    figure = Figure(figsize=(4.6 * len(counts) + 1.8, 3.8), layout="constrained")
    panels = figure.subplots(1, len(counts), squeeze=False, sharey=True)[0]
    for panel, count in zip(panels, counts, strict=True):
        for order, family in enumerate(families):
            found = [
                row
                for row in results["rows"]
                if row["tasks"] == count and results["rules"][row["rule"]]["family"] == family
                and row["kept"] is not None
            ]  # fmt: skip
            if not found:
                continue
            shares = [100 * row["kept"] for row in found]
            if not all(row["bits"] for row in found):  # one model for all tasks has nothing of a task: a level
                level = line_style(order) | {"marker": "", "lw": 1.2}
                panel.axhline(shares[0], label=f"{family} (one model)", **level)
                continue
            errors = [
                [100 * (row["kept"] - row["low"]) for row in found],
                [100 * (row["high"] - row["kept"]) for row in found],
            ]
            panel.errorbar(
                [row["bits"] for row in found], shares, yerr=errors, label=family, ms=6, lw=1.5, capsize=2,
                elinewidth=0.8, mfc=None if order < len(PALETTE) else "white", **line_style(order),
            )  # fmt: skip
        panel.axhline(100, color=MUTED, lw=0.8, ls=(0, (4, 2)), zorder=1)
        panel.set_xscale("log")
        ticks = [tick for tick in _TICKS if min(shown) / 2 <= tick <= 2 * max(shown)]
        panel.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        panel.minorticks_off()
        panel.set_title(counted(count, "task"), fontsize=10, loc="left")
        style_axes(panel)
    figure.supxlabel("bits a parameter and task (what the tasks share not counted)", fontsize=9)
    panels[0].set_ylabel("kept of what fine-tuning gained, in %", fontsize=9)
    if panels[-1].get_legend_handles_labels()[0]:  # none where fine-tuning gained nothing
        panels[-1].legend(loc="center left", bbox_to_anchor=(1.02, 0.5), frameon=False, fontsize=8)
    return save_figure(figure, path)


def _row(row: Mapping[str, Any]) -> list[Any]:
    interval = "–" if row["kept"] is None else f"{100 * row['low']:.1f} to {100 * row['high']:.1f}"
    kept = None if row["kept"] is None else round(100 * row["kept"], 1)
    numbers = [row["bits"], row["bits_changed"], row["bits_at_11"], row["bits_at_100"], row["relative_l2"]]
    return [
        row["rule"], row["tasks"], *(round(number, 3) for number in numbers), round(row["accuracy"], 1), kept, interval,
        round(row["seconds_to_read"], 2),
    ]  # fmt: skip


def _escaped(rows: Sequence[Sequence[Any]]) -> list[list[str]]:
    return [[escaped("–" if cell is None else cell) for cell in row] for row in rows]
