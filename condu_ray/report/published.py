"""Figures that papers report, each with its source and what it was measured on, to stand beside measured ones.

They were measured by their authors, with other models, data or code than a run's: they are no part of any statistic,
and they are shown only beside figures of the same protocol, shots and data sets (`fitting`).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from condu_ray.config import Protocol
from condu_ray.metrics import continual_metrics
from condu_ray.recipes import ORDER_1

#: ZSCL's whole matrices (ICCV 2023, Table 3): MTIL order I, [session][task] in percent, with the figures as printed.
MATRICES = Path(__file__).parent / "published_figures" / "mtil.json"

_CONDU = "ConDU (ICLR 2026, arXiv 2503.10705)"
_ZERO_SHOT = (24.3, 88.4, 68.2, 44.6, 54.9, 71.0, 88.5, 59.4, 89.0, 64.7, 65.2)
"""OpenAI's ViT-B/16 on the sets of order I."""
_HEADS = ("method", "transfer", "average", "last", "backward_transfer", "std_over_orders")
_FIGURES: dict[str, tuple[dict[str, Any], tuple[tuple[str | float | None, ...], ...]]] = {
    "mtil": (
        {"source": _CONDU, "setting": "order I, CLIP ViT-B/16", "protocol": "task", "shots": None, "order": ORDER_1},
        (("condu", 70.8, 78.8, 87.1, None, None), ("condu-lora", 70.3, 78.3, 86.2, None, None)),
    ),
    "few_shot": (
        {
            "source": _CONDU, "setting": "order I, five images a class, CLIP ViT-B/16", "protocol": "task", "shots": 5,
            "order": ORDER_1,
        },
        (("condu", 70.0, 72.3, 76.6, None, None), ("condu-lora", 70.3, 72.7, 77.4, None, None)),
    ),
    "task_agnostic": (
        {
            "source": _CONDU, "setting": "order I, task not known, CLIP ViT-B/16", "protocol": "own", "shots": None,
            "order": ORDER_1,
        },
        (("condu", None, 78.1, 86.4, None, None), ("condu-lora", None, 78.0, 85.1, None, None)),
    ),
    "coin": (
        {
            "source": "PAM (arXiv 2506.03189)",
            "setting": "CoIN: 6 visual question answering tasks, PaliGemma; Last is its ACC", "protocol": "task",
            "shots": None, "order": (),
        },
        (("pam", None, None, 49.89, -19.45, 1.66), ("sequential", None, None, 43.36, -39.51, 8.18)),
    ),
}  # fmt: skip
"""By benchmark: what all of its rows share, and rows of `_HEADS`."""

BENCHMARKS = (*_FIGURES, "zero_shot")
"""What `published_rows` knows."""
LeftOut = tuple[Mapping[str, Any], str]
"""A row that is not shown, and why."""


def published_rows(benchmark: str) -> list[dict[str, Any]]:
    """Returns what papers report on a benchmark.

    Args:
        benchmark: `mtil`, `few_shot` (five images a class), `task_agnostic`, `zero_shot` (MTIL's sets) or `coin`.

    Returns:
        One dict a method of a paper, with the same keys in all:

        - `benchmark`; `method`: its name here; `source`: the paper; `setting`: order, model, and what else matters;
        - `protocol`; `shots`: training images a class, None: all; `order`: data sets by their names here, in the order
          of learning; empty where they are none of ours;
        - `transfer`, `average`, `last`, `backward_transfer`: percent, as printed; None where the paper gives none, but
          the backward transfer of a whole matrix, which ZSCL does not print, is computed from it;
        - `std_over_orders`: standard deviation over three task orders (PAM's), else None;
        - `accuracy`: the whole matrix (percent, rows are sessions, columns as in `order`), else None.

    Raises:
        ValueError: There is no such benchmark.
    """
    if benchmark not in BENCHMARKS:
        raise ValueError(f"no figures are published here for {benchmark!r}; give one of {', '.join(BENCHMARKS)}")
    if benchmark == "zero_shot":
        setting = "order I, CLIP ViT-B/16 by OpenAI, not trained"
        about = _FIGURES["mtil"][0] | {"source": "ZSCL (ICCV 2023), public notebook", "setting": setting}
        row = {"method": "zero-shot", "transfer": 69.4, "average": 65.3, "last": 65.3}
        return [_whole(benchmark, about, row | {"accuracy": [list(_ZERO_SHOT)] * len(ORDER_1)})]
    about, figures = _FIGURES[benchmark]
    known = {"benchmark": benchmark, **about, "accuracy": None}
    rows = [{**known, **dict(zip(_HEADS, figure, strict=True))} for figure in figures]
    if benchmark == "mtil":
        content = json.loads(MATRICES.read_text(encoding="utf-8"))
        about = about | {"source": content["source"].partition(":")[0]}
        rows += [_whole(benchmark, about, row) for row in content["rows"]]
    return rows


def _whole(benchmark: str, about: Mapping[str, Any], row: Mapping[str, Any]) -> dict[str, Any]:
    """A row that has a whole matrix; what is not printed is computed from it."""
    found = {"backward_transfer": continual_metrics(row["accuracy"]).backward_transfer}
    return {"benchmark": benchmark, **about, **dict.fromkeys(_HEADS), **row, **found}


def zero_shot(paper: str | None) -> dict[str, Any] | None:
    """Returns the published zero-shot accuracies behind a paper's figures, by which its set-up is known.

    Args:
        paper: `Experiment.paper`.

    Returns:
        A row of `published_rows`, and `model`, the architecture; None for no paper.
    """
    return None if paper is None else {**published_rows("zero_shot")[0], "model": "ViT-B-16"}


def every_row() -> list[dict[str, Any]]:
    """Returns the published rows of all benchmarks."""
    return [row for benchmark in BENCHMARKS for row in published_rows(benchmark)]


def fitting(
    protocols: Iterable[Protocol],
    shots: Iterable[int | None],
    orders: Iterable[Sequence[str]],
    *,
    whole: bool = True,
) -> tuple[list[dict[str, Any]], list[LeftOut]]:
    """Returns the published rows that are of the same things as what was measured, and those that are not.

    Args:
        protocols: by which something was measured.
        shots: training images a class of what was measured; None: all.
        orders: orders of learning that were measured.
        whole: whether anything of it was trained on all training images, none held out for validation.

    Returns:
        Rows of all benchmarks: those of which protocol, shots, data sets and order are among the measured ones; and
        the others, each with the first of these that differs.
    """
    orders, shots, protocols = list(map(tuple, orders)), set(shots), set(protocols)
    kept: list[dict[str, Any]] = []
    left_out: list[LeftOut] = []
    for row in every_row():
        order = tuple(row["order"])
        if set(order) not in [set(other) for other in orders]:
            why = "other data sets"
        elif order not in orders:
            why = "another order of the data sets"
        elif row["shots"] not in shots:
            why = f"{row['shots'] or 'all'} training images a class"
        elif row["protocol"] not in protocols:
            why = f"protocol {row['protocol']}"
        elif not whole:
            why = "trained on all training images, none held out for validation"
        else:
            kept.append(row)
            continue
        left_out.append((row, why))
    return kept, left_out
