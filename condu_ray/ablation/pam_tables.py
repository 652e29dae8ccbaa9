"""Tables of the study of PAM's alignment, from its records, as files of results have them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import fmean, stdev
from typing import Any

import numpy as np

from condu_ray.ablation.pam_settings import SETTINGS
from condu_ray.report.statistics import holm, signed_rank_p

Record = Mapping[str, Any]


def effects(records: Sequence[Record], command: str, setting: str) -> dict[str, Any]:
    """Returns what alignment changes, a row a setting: Last, its spread over orders, and BWT, paired by order.

    Args:
        records: as `condu_ray.ablation.pam.study` returns them; those of a setting that lost its numbers do not count.
        command: what measures it again.
        setting: what it was measured with, in a line.
    """
    rows, tested = [], []
    for name, about, plain, aligned in _pairs(records):
        orders = [order for order in aligned if order in plain]
        cells: list[Any] = [f"`{name}`", about, len(orders)]
        for metric in ("last", "bwt"):
            before, after = ([one[order][metric] for order in orders] for one in (plain, aligned))
            differences = np.subtract(after, before)
            cells += [_spread(before), _spread(after), float(differences.mean()), signed_rank_p(differences)]
        rows.append(cells)
    for column in (6, 10):
        adjusted = holm(np.array([row[column] for row in rows]))
        tested.append([float(value) for value in adjusted])
    for row, last, bwt in zip(rows, *tested, strict=True):
        row.insert(7, last)
        row.append(bwt)
    heads = ["Last without", "Last with", "difference", "p", "adjusted p"]
    return {
        "title": "What PAM's alignment changes",
        "columns": ["setting", "what differs", "orders", *heads, *(head.replace("Last", "BWT") for head in heads[:2]),
                    "difference of BWT", "p of BWT", "adjusted p of BWT"],
        "rows": rows,
        "decimals": dict.fromkeys(("difference", "difference of BWT"), 2)
        | dict.fromkeys(("p", "adjusted p", "p of BWT", "adjusted p of BWT"), 3),
        "command": command,
        "setting": setting,
    }  # fmt: skip


def inside(records: Sequence[Record], command: str, setting: str) -> dict[str, Any]:
    """Returns what happens in training and at the merge, a row a setting without and with alignment: means, percent."""
    rows = []
    for name, _, plain, aligned in _pairs(records):
        seen = ("without", plain), ("with", aligned)
        rows += [[f"`{name}`", kind, *_inside(list(found.values()))] for kind, found in seen]
    return {
        "title": "What happens inside PAM",
        "columns": ["setting", "alignment", "in conflict", "in conflict, B A", "one sign", "one sign, B A", "norm kept",
                    "norm kept, B A", "expert", "after its merge", "at the end"],
        "rows": rows,
        "command": command,
        "setting": setting,
    }  # fmt: skip


def _pairs(records: Sequence[Record]) -> Iterable[tuple[str, str, dict[str, Record], dict[str, Record]]]:
    """Yields each setting's name, its words, and its records by order, without alignment and with it."""
    by_name: dict[str, dict[str, Record]] = {}
    by_form: dict[tuple[Any, ...], dict[str, Record]] = {}
    for one in records:
        if not one.get("lost"):
            of = by_name.setdefault(one["setting"], {}) if one["align"] else by_form.setdefault(_form(one), {})
            of[one["order"]] = one
    for setting in SETTINGS:
        aligned = by_name.get(setting.name, {})
        plain = by_form.get(_form(next(iter(aligned.values()))), {}) if aligned else {}
        if aligned.keys() & plain.keys():
            yield setting.name, setting.about, plain, aligned


def _form(record: Record) -> tuple[Any, ...]:
    """What two records have in common that differ by alignment alone."""
    return tuple(record["options"][key] for key in ("adapter", "lr", "rank", "steps", "tasks", "merge"))


def _inside(found: Sequence[Record]) -> list[float | None]:
    """Means over orders and sessions, in percent."""

    def mean(value: Callable[[Record], Iterable[float]]) -> float | None:
        values = [number for one in found for number in value(one)]
        return 100 * fmean(values) if values else None

    def looks(kind: str) -> Callable[[Record], Iterable[float]]:
        return lambda one: (share for session in one["conflicts"] for share in session.get(kind, ()))

    def merges(kind: str, key: str) -> Callable[[Record], Iterable[float]]:
        return lambda one: (session[kind][key] for session in one["merges"] if kind in session)

    def percent(key: str) -> float:
        return fmean(one[key][task] for one in found for task in one["tasks"][1:])

    kinds = ("adapter", "product")
    return [
        *(mean(looks(kind)) for kind in kinds),
        *(mean(merges(kind, "top_signs")) for kind in kinds),
        *(mean(merges(kind, "kept")) for kind in kinds),
        *(percent(key) for key in ("expert", "learned", "final")),
    ]


def _spread(values: Sequence[float]) -> str:
    return f"{fmean(values):.1f}" + (f" ± {stdev(values):.1f}" if len(values) > 1 else "")
