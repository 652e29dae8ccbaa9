"""Figures that papers report, each with its source, to stand beside measured ones.

They were measured by their authors, with other models, data or code than a run's: they are no part of any statistic.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from condu_ray.metrics import continual_metrics

#: ZSCL's whole matrices (ICCV 2023, Table 3): MTIL order I, [session][task] in percent, with the figures as printed.
MATRICES = Path(__file__).parent / "published_figures" / "mtil.json"

_CONDU = "ConDU (ICLR 2026, arXiv 2503.10705)"
_MTIL = "order I, CLIP ViT-B/16"
_HEADS = ("method", "transfer", "average", "last", "backward_transfer", "std_over_orders")
#: By benchmark: source, setting, and rows of `_HEADS`.
_FIGURES: dict[str, tuple[str, str, tuple[tuple[str | float | None, ...], ...]]] = {
    "mtil": (_CONDU, _MTIL, (("condu", 70.8, 78.8, 87.1, None, None), ("condu-lora", 70.3, 78.3, 86.2, None, None))),
    "few_shot": (
        _CONDU,
        "five images a class, CLIP ViT-B/16",
        (("condu", 70.0, 72.3, 76.6, None, None), ("condu-lora", 70.3, 72.7, 77.4, None, None)),
    ),
    "task_agnostic": (
        _CONDU,
        "task not known, CLIP ViT-B/16",
        (("condu", None, 78.1, 86.4, None, None), ("condu-lora", None, 78.0, 85.1, None, None)),
    ),
    "coin": (
        "PAM (arXiv 2506.03189)",
        "CoIN: 6 visual question answering tasks, PaliGemma; Last is its ACC",
        (("pam", None, None, 49.89, -19.45, 1.66), ("sequential", None, None, 43.36, -39.51, 8.18)),
    ),
}

#: What `published_rows` knows.
BENCHMARKS = tuple(_FIGURES)


def published_rows(benchmark: str) -> list[dict[str, Any]]:
    """Returns what papers report on a benchmark.

    Args:
        benchmark: `mtil`, `few_shot` (five images a class), `task_agnostic` (label space: the union of all tasks'
            classes), or `coin`.

    Returns:
        One dict a method of a paper, with the same keys in all:

        - `benchmark`; `method`: its name here; `source`: the paper; `setting`: order, model, and what else matters;
        - `transfer`, `average`, `last`, `backward_transfer`: percent, as printed; None where the paper gives none, but
          the backward transfer of a whole matrix, which ZSCL does not print, is computed from it;
        - `std_over_orders`: standard deviation over three task orders (PAM's), else None;
        - `tasks`, `accuracy`: the whole matrix (percent, rows are sessions) and the names of its columns, else None.

    Raises:
        ValueError: There is no such benchmark.
    """
    if benchmark not in _FIGURES:
        raise ValueError(f"no figures are published here for {benchmark!r}; give one of {', '.join(BENCHMARKS)}")
    source, setting, figures = _FIGURES[benchmark]
    known = {"benchmark": benchmark, "source": source, "setting": setting, "tasks": None, "accuracy": None}
    rows = [{**known, **dict(zip(_HEADS, figure, strict=True))} for figure in figures]
    if benchmark == "mtil":
        content = json.loads(MATRICES.read_text(encoding="utf-8"))
        known |= dict.fromkeys(_HEADS) | {"source": content["source"].partition(":")[0], "tasks": content["tasks"]}
        for row in content["rows"]:
            found = {"backward_transfer": continual_metrics(row["accuracy"]).backward_transfer}
            rows.append({**known, **row, **found})
    return rows
