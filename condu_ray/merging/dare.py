"""DARE (Yu et al., ICML 2024, arXiv 2311.03099): drop values of a delta at random and rescale the rest."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

from condu_ray.merging.chunks import wide_dtype
from condu_ray.merging.delta import Delta, check_delta, check_result


@torch.no_grad()
def drop_and_rescale(delta: Delta, rate: float, *, seed: str, task: str | None = None) -> dict[str, Tensor]:
    """Drop each value with probability ``rate``, and divide the others by ``1 - rate``: the expected value stays.

    Args:
        delta: Any floating dtype, on any device.
        rate: Share that is dropped, in [0, 1).
        seed: Any text. Together with a tensor's name it decides what is dropped of it, whatever else is in the delta
            and on whatever device.
        task: Name of the task, for messages.

    Returns:
        New float32 tensors, float64 for float64.

    Raises:
        DeltaError: ``delta`` is empty or holds NaN or infinity, or a rescaled value overflows.
        ValueError: ``rate`` is not in [0, 1).
    """
    if not 0 <= rate < 1:
        raise ValueError(f"rate is {rate}, it must be in [0, 1)")
    check_delta(delta, task=task)  # before a NaN can be dropped
    found = {}
    for name, tensor in delta.items():
        number = int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:8], "big") >> 1
        draw = torch.rand(tensor.shape, generator=torch.Generator().manual_seed(number)).to(tensor.device)
        found[name] = torch.where(draw < rate, 0.0, tensor.detach().to(wide_dtype(tensor.dtype)) / (1 - rate))
    check_result(found, "rescaled", task)
    return found
