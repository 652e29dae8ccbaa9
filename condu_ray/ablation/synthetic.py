"""Long sequences without images or training: random deltas, merged at every session or at once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from condu_ray.ablation.merging import measure_variants
from condu_ray.merging.variants import variants
from condu_ray.store.provenance import command, provenance

RULES = ("condu", "emr")
"""The rule at every session, and the same rule once on all original deltas."""
SCALE = 1e-3
"""Standard deviation of a position, of the order of a fine-tuned CLIP's."""


def shared_gaussian(task: int, numel: int, correlation: float, seed: int) -> dict[str, Tensor]:
    """One synthetic delta: `sqrt(rho) * common + sqrt(1 - rho) * own`, both Gaussian, so that any two correlate by rho.

    Args:
        task: 0-based number of the task.
        numel: positions.
        correlation: rho in [0, 1].
        seed: of the sequence.

    Returns:
        One tensor `w`, float32 [numel], of standard deviation `SCALE`; equal arguments give equal bytes.
    """
    common, own = (
        torch.randn(numel, generator=torch.Generator().manual_seed(1_000_003 * seed + which)) for which in (0, task + 1)
    )
    return {"w": SCALE * (math.sqrt(correlation) * common + math.sqrt(1 - correlation) * own)}


def ablate_synthetic(tasks: int, numel: int, correlations: str, seed: int) -> dict[str, Any]:
    """Merges synthetic sequences as the command line asks for them.

    Args:
        tasks: length of a sequence.
        numel: positions of a delta.
        correlations: rho of each sequence, comma-separated.
        seed: of all sequences.

    Returns:
        Results as `condu_ray.report.ablation_report.write_synthetic` takes them.

    Raises:
        ValueError: as `measure_synthetic`, or a correlation is no number.
    """
    try:
        rhos = [float(part) for part in correlations.split(",")]
    except ValueError as error:
        raise ValueError(f"--rho {correlations}: not numbers from 0 to 1, comma-separated") from error
    rows = measure_synthetic(tasks, numel, rhos, seed)
    found = {"tasks": tasks, "numel": numel, "seed": seed, "rows": rows}
    return found | {"versions": provenance(), "command": command()}


def measure_synthetic(tasks: int, numel: int, correlations: Sequence[float], seed: int) -> list[dict[str, Any]]:
    """Merges synthetic sequences by ConDU's rule at every session, and once.

    Args:
        tasks: length of a sequence, at least 2.
        numel: positions of a delta, at least 1.
        correlations: rho of each sequence, in [0, 1].
        seed: of all sequences.

    Returns:
        The rows of `measure_variants`, each with its `correlation`.

    Raises:
        ValueError: an argument is out of range.
    """
    if tasks < 2 or numel < 1:
        raise ValueError(f"--synthetic {tasks} --numel {numel}: at least 2 tasks of at least 1 position")
    if not correlations or not all(0 <= rho <= 1 for rho in correlations):
        raise ValueError(f"--rho {','.join(map(str, correlations))}: correlations are in [0, 1], at least one")
    rules = {name: variant for name, variant in variants().items() if name in RULES}
    rows = []
    for rho in correlations:
        deltas = {f"task {t + 1}": partial(shared_gaussian, t, numel, rho, seed) for t in range(tasks)}
        found = measure_variants(deltas, rules, about=f"rho {rho:g}, ")
        rows += [{"correlation": rho} | row for row in found]
    return rows
