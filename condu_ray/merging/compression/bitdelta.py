"""BitDelta (Liu et al., NeurIPS 2024, arXiv 2402.10193): of a matrix the signs, and the mean size of its values.

Formula as in the authors' code (github.com/FasterDecoding/BitDelta, `bitdelta/diff.py`), read in 2026; a value of 0 has
the sign +. Their second stage, which trains the scales by distillation on text, is left out. They compress the linears
of a language model's blocks; here that is every tensor of two or more dimensions, and the others are kept as they are.
"""

from __future__ import annotations

import torch
from torch import Tensor

from condu_ray.merging.compression.packed import Code, check_one, live, live_count, whole
from condu_ray.merging.delta import Delta
from condu_ray.merging.trigger import pack, unpack


@torch.no_grad()
def compress(delta: Delta, *, task: str | None = None) -> Code:
    """Makes the code of one delta.

    Args:
        delta: Any floating dtype.
        task: Name of the task, for messages.

    Returns:
        ``signs`` (one bit a value) and ``scale`` (float32) of every matrix, ``kept`` of every other tensor.

    Raises:
        DeltaError: As :func:`~condu_ray.merging.compression.packed.check_one`.
    """
    check_one(delta, task)
    code: Code = {}
    for name, values in live(code, delta):
        if delta[name].ndim < 2:
            code[f"{name}/kept"] = delta[name].detach().clone()
        elif values.numel():
            code[f"{name}/signs"] = pack(values >= 0)
            code[f"{name}/scale"] = values.abs().mean(dtype=torch.float64).float()
    return code


@torch.no_grad()
def decode(code: Code, like: Delta) -> dict[str, Tensor]:
    """Brings a delta back, in the layout of ``like``: scale times sign."""
    found = {}
    for name, tensor in like.items():
        if tensor.ndim < 2:
            found[name] = code[f"{name}/kept"].clone()
            continue
        values = torch.zeros(live_count(code, name, tensor), device=tensor.device)
        if values.numel():
            signs = unpack(code[f"{name}/signs"], (values.numel(),))
            values = torch.where(signs, code[f"{name}/scale"], -code[f"{name}/scale"])
        found[name] = whole(code, name, values, tensor)
    return found
