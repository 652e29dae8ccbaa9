"""Synthetic deltas with spectra from flat to steep: where a delta's signs are the better thing to keep, where its SVD.

No images and no training: rules are told apart by their relative L2 alone, at numbers of tasks that no data set has.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from condu_ray.ablation.synthetic import SCALE
from condu_ray.merging import reconstruction
from condu_ray.merging.keeping import Keeper
from condu_ray.merging.variants import loaded
from condu_ray.store.provenance import command, provenance

MATRICES = 3
"""Of a delta; a rule with a budget may spend it where it buys most, so that one alone would not do."""


def spectral_delta(task: int, side: int, decay: float, seed: int) -> dict[str, Tensor]:
    """One synthetic delta of square matrices whose k-th singular value is proportional to k ** -decay.

    Singular vectors are those of Gaussian matrices, drawn anew for each task and matrix. With decay 0 a matrix is
    orthogonal, which nothing of a lower rank stands for; a Gaussian matrix lies between 0 and 0.5.

    Args:
        task: 0-based number of the task.
        side: rows and columns of a matrix.
        decay: exponent, 0 or more.
        seed: of the sequence.

    Returns:
        `MATRICES` tensors, float32 [side, side], of root mean square `SCALE`; equal arguments give equal bytes on one
        machine.
    """
    found = {}
    value_K = torch.arange(1, side + 1, dtype=torch.float64) ** -decay
    for number in range(MATRICES):
        draw = torch.Generator().manual_seed(1_000_003 * seed + MATRICES * task + number)
        gaussian = (torch.randn(side, side, generator=draw, dtype=torch.float64) for _ in range(2))
        left_RK, right_CK = (torch.linalg.qr(one)[0] for one in gaussian)
        matrix_RC = (left_RK * value_K) @ right_CK.T
        found[f"w{number + 1}"] = (SCALE * matrix_RC / matrix_RC.square().mean().sqrt()).float()
    return found


def ablate_spectra(
    tasks: int,
    side: int,
    decays: Sequence[float],
    rules: Mapping[str, Keeper],
    sessions: Collection[int],
    seed: int,
) -> dict[str, Any]:
    """Keeps synthetic deltas by every rule.

    Args:
        tasks: length of a sequence, at least 2.
        side: rows and columns of a matrix, at least 2.
        decays: exponent of the spectrum of each sequence, 0 or more.
        rules: by name.
        sessions: numbers of tasks after which is measured.
        seed: of all sequences.

    Returns:
        Results as `condu_ray.report.spectra_report.write_spectra` takes them: `rows` with `decay`, `tasks`, `rule`,
        `bits` a parameter and task, `shared_bits` a parameter, and `relative_l2`, the mean over the tasks.

    Raises:
        ValueError: an argument is out of range.
    """
    if tasks < 2 or side < 2:
        raise ValueError(f"--synthetic {tasks} --side {side}: at least 2 tasks of matrices with at least 2 rows")
    if not decays or not all(0 <= decay < float("inf") for decay in decays):
        raise ValueError(f"--decays {','.join(map(str, decays))}: exponents are 0 or more, at least one")
    rows = []
    for decay in decays:
        deltas = {f"task {t + 1}": partial(spectral_delta, t, side, decay, seed) for t in range(tasks)}
        for name, rule in rules.items():
            # What depends on nobody else is measured once, on the tasks of the longest sequence.
            for count in [max(sessions)] if rule.alone else sorted(sessions):
                found = _kept(rule, dict(islice(deltas.items(), count)))
                for session in sorted(sessions) if rule.alone else [count]:
                    rows.append({"decay": decay, "tasks": session, "rule": name} | found)
            last = rows[-1]
            print(f"decay {decay:g}, {name}: {last['bits']:.3f} bits, relative L2 {last['relative_l2']:.3f}")
    about = {name: {"formula": rule.formula, "family": rule.family or name} for name, rule in rules.items()}
    given = {"tasks": tasks, "side": side, "seed": seed}
    return {**given, "rules": about, "rows": rows, "versions": provenance(), "command": command()}


def _kept(rule: Keeper, deltas: Mapping[str, Callable[[], dict[str, Tensor]]]) -> dict[str, float]:
    kept = rule.keep(deltas)
    count = sum(tensor.numel() for tensor in loaded(next(iter(deltas.values()))).values())
    errors = [reconstruction(loaded(delta), kept.decode(task)).relative_l2 for task, delta in deltas.items()]
    return {
        "bits": 8 * sum(map(kept.nbytes, deltas)) / len(deltas) / count,
        "shared_bits": 8 * kept.shared_nbytes / count,
        "relative_l2": sum(errors) / len(errors),
    }
