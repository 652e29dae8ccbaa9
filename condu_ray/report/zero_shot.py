"""Measured zero-shot accuracies beside published ones, set by set: is the set-up the paper's?

What is compared is one dict: `source`, `published` and `measured` (percent by task).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from condu_ray.report.text import number_text, rounded

TOLERANCE = 1.0
"""Points by which a measured accuracy may be off: what other decoders and resizing make, or half precision."""
MANY = "most sets are off, so look first at the backbone: its activation (OpenAI's weights need QuickGELU) and the "
MANY += "transform (size, resampling, mean and std); then at templates, class names and test split"
SOME = "most sets are right, so look first at those that are off: their templates, class names and their order, and "
SOME += "their test split; then at the backbone's activation (QuickGELU) and the transform"


def differing(found: Mapping[str, Any]) -> list[str]:
    """Returns the tasks whose accuracy is off by more than `TOLERANCE`."""
    published, measured = found["published"], found["measured"]
    return [task for task in published if abs(measured[task] - published[task]) > TOLERANCE]


def zero_shot_rows(found: Mapping[str, Any]) -> list[dict[str, str]]:
    """Returns a table to print, a row a task and one of the means: column heading -> text."""
    published, measured = found["published"], found["measured"]
    off = differing(found)
    rows = [_row(task, published[task], measured[task], "off" if task in off else "") for task in published]
    first, second = (sum(values[task] for task in published) / len(published) for values in (published, measured))
    return [*rows, _row("mean", first, second, "")]


def verdict(found: Mapping[str, Any]) -> str:
    """Returns what the comparison says, and what the usual causes of a mismatch are."""
    published, measured, off = found["published"], found["measured"], differing(found)
    if not off:
        most = max(published, key=lambda task: abs(measured[task] - published[task]))
        largest = f"{measured[most] - published[most]:+.1f} points ({most})"
        return f"zero-shot accuracy is as published ({found['source']}), the largest difference {largest}"
    which = f"{', '.join(off)} {'is' if len(off) == 1 else 'are'} off by more than {TOLERANCE:g} point"
    causes = MANY if 2 * len(off) > len(published) else SOME
    return f"zero-shot accuracy is not as published ({found['source']}): {which}. Usual causes: {causes}"


def zero_shot_lines(found: Mapping[str, Any]) -> str:
    """Returns the table as lines of text."""
    rows = zero_shot_rows(found)
    table = [list(rows[0]), *(list(row.values()) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = []
    for first, *others in table:
        cells = [first.ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True))]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def _row(name: str, published: float, measured: float, remark: str) -> dict[str, str]:
    numbers = {"Published": number_text(published, 1), "Measured": number_text(measured, 1)}
    return {"Zero-shot": name} | numbers | {"Difference": f"{rounded(measured - published, 1):+.1f}", "": remark}
