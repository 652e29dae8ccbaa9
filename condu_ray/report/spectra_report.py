"""The report of synthetic spectra: relative L2 by rule, steepness and number of tasks, as a table and a picture.

Results: `rows` with `decay`, `tasks`, `rule`, `bits`, `shared_bits` and `relative_l2`; `rules` with `formula` and
`family`; `tasks`, `side`, `seed`, `versions`, `command`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from matplotlib.figure import Figure

from condu_ray.report.style import MUTED, PALETTE, line_style, save_figure, style_axes
from condu_ray.report.text import counted, escaped, flowing, json_text, markdown_page, markdown_table, provenance, write
from condu_ray.store.location import Place

_TEXT = """
Deltas of random square matrices whose k-th singular value falls as k to the power of -decay: with 0 the spectrum is
flat, and no matrix of low rank stands for it. Relative L2 is the size of what is lost over the size of the delta, the
mean over the tasks; 1 is what nothing at all would have. Bits are those of a parameter and task, the mean over
the decays; what all tasks share is not counted.
"""


def write_spectra(results: Mapping[str, Any], folder: Place) -> list[Place]:
    """Writes the report.

    Args:
        results: as the module describes them.
        folder: where the files go; made if it does not exist.

    Returns:
        `spectra.json`, `spectra-table.json` (the table as `condu_ray/report/results` has tables), `spectra.md` and
        `spectra.png`.
    """
    decays, counts = _seen(results, "decay"), _seen(results, "tasks")
    heads = ["rule", "tasks", "bits", *(f"decay {decay:g}" for decay in decays)]
    found = {(row["rule"], row["tasks"], row["decay"]): row for row in results["rows"]}
    rows: list[list[Any]] = [
        [rule, count, round(sum(found[rule, count, decay]["bits"] for decay in decays) / len(decays), 3)]
        + [round(found[rule, count, decay]["relative_l2"], 3) for decay in decays]
        for rule in results["rules"]
        for count in counts
    ]
    text, setting = flowing(_TEXT), f"Matrices of {results['side']} rows, seed {results['seed']}."
    table = {
        "title": f"Synthetic spectra, {' and '.join(map(str, counts))} tasks: relative L2",
        "about": [text],
        "columns": heads,
        "decimals": 3,
        "setting": setting,
        "command": results["command"],
        "rows": rows,
    }
    parts = [
        "# Where the sign wins and where the SVD",
        text,
        setting,
        markdown_table(heads, [[escaped(cell) for cell in row] for row in rows], left=1),
        "![Relative L2 by steepness of the spectrum, for each rule](spectra.png)",
        "\n".join(f"- **{escaped(name)}**: {escaped(rule['formula'])}." for name, rule in results["rules"].items()),
        *provenance(results),
    ]
    return [
        write(folder / "spectra.json", json_text(results) + "\n"),
        write(folder / "spectra-table.json", json_text(table) + "\n"),
        spectra(results, folder / "spectra.png"),
        write(folder / "spectra.md", markdown_page(parts)),
    ]


def spectra(results: Mapping[str, Any], path: Place) -> Place:
    """Draws relative L2 against the spectrum's decay, a line a rule, a panel a number of tasks."""
    counts, rules = _seen(results, "tasks"), list(results["rules"])
    figure = Figure(figsize=(3.9 * len(counts) + 2.4, 4.0), layout="constrained")
    panels = figure.subplots(1, len(counts), squeeze=False, sharey=True)[0]
    for panel, count in zip(panels, counts, strict=True):
        for order, rule in enumerate(rules):
            line = [row for row in results["rows"] if (row["rule"], row["tasks"]) == (rule, count)]
            bits = f"{sum(row['bits'] for row in line) / len(line):.2g}"
            panel.plot(
                [row["decay"] for row in line], [row["relative_l2"] for row in line],
                label=f"{rule} ({bits} bit{'' if bits == '1' else 's'})", lw=1.5, ms=5,
                mfc=None if order < len(PALETTE) else "white", **line_style(order),
            )  # fmt: skip
        panel.axhline(1, color=MUTED, lw=0.8, ls=(0, (4, 2)), zorder=1)
        panel.set_title(counted(count, "task"), fontsize=10, loc="left")
        style_axes(panel)
    panels[0].set_ylim(bottom=0)  # once all is drawn: what comes after it no longer widens an axis that panels share
    figure.supxlabel("decay of the singular values (0: flat)", fontsize=9)
    panels[0].set_ylabel("relative L2", fontsize=9)
    handles, texts = panels[-1].get_legend_handles_labels()
    figure.legend(handles, texts, loc="outside right center", frameon=False, fontsize=8)
    return save_figure(figure, path)


def _seen(results: Mapping[str, Any], key: str) -> list[Any]:
    return list(dict.fromkeys(row[key] for row in results["rows"]))
