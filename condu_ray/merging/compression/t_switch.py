"""T-Switch (Qi et al., CVPR 2025, arXiv 2412.00054): which values count, their signs, and one size a tensor.

Formulas as in the authors' code (github.com/lfy-123/Binary-Task-Switch, `merge_vit/merge_vit.py`), read in 2026, with
the share of 0.7 that its scripts drop.
"""

from __future__ import annotations

import torch
from torch import Tensor

from condu_ray.merging.compression.packed import Code, check_one, live, live_count, whole
from condu_ray.merging.delta import Delta
from condu_ray.merging.trigger import pack, unpack


@torch.no_grad()
def compress(delta: Delta, *, drop: float = 0.7, task: str | None = None) -> Code:
    """Makes the code of one delta.

    Of the P values of a tensor that are above 0 the ``int(P * (1 - drop))`` largest count, of those below 0 as many by
    their own number, and all that equal the smallest of these; where that would be none, all of this sign do. In their
    place is the sign times the root mean square of those that count. A tensor of no dimension is kept as it is.

    Args:
        delta: Any floating dtype.
        drop: Share of values that do not count, in [0, 1).
        task: Name of the task, for messages.

    Returns:
        Of each tensor ``active`` (one bit a value), ``signs`` (one bit a value that counts) and ``scale`` (float32);
        ``kept`` of one of no dimension.

    Raises:
        DeltaError: As :func:`~condu_ray.merging.compression.packed.check_one`.
        ValueError: ``drop`` is not in [0, 1).
    """
    if not 0 <= drop < 1:
        raise ValueError(f"drop is {drop}, it must be in [0, 1)")
    check_one(delta, task)
    code: Code = {}
    for name, values in live(code, delta):
        if delta[name].ndim == 0:
            code[f"{name}/kept"] = delta[name].detach().clone()
        elif values.numel():
            active = _active(values, drop) | _active(-values, drop)
            kept = values[active]
            code[f"{name}/active"] = pack(active)
            code[f"{name}/signs"] = pack(kept > 0)
            code[f"{name}/scale"] = (kept.double().square().sum() / max(1, kept.numel())).sqrt().float()
    return code


@torch.no_grad()
def decode(code: Code, like: Delta) -> dict[str, Tensor]:
    """Brings a delta back, in the layout of ``like``: scale times sign where values count, else 0."""
    found = {}
    for name, tensor in like.items():
        if tensor.ndim == 0:
            found[name] = code[f"{name}/kept"].clone()
            continue
        values = torch.zeros(live_count(code, name, tensor), device=tensor.device)
        if values.numel():
            active = unpack(code[f"{name}/active"], (values.numel(),))
            signs = unpack(code[f"{name}/signs"], (int(active.sum()),))
            values[active] = torch.where(signs, code[f"{name}/scale"], -code[f"{name}/scale"])
        found[name] = whole(code, name, values, tensor)
    return found


def _active(values: Tensor, drop: float) -> Tensor:
    """Whether a value is above 0 and among the largest of these."""
    positive = values[values > 0]
    count = int(positive.numel() * (1 - drop))
    if not count:
        return values > 0
    return values >= torch.topk(positive, count, sorted=False).values.min()
