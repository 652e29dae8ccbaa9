"""Prepared pixels to what a model takes: a float tensor on its device."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor


def normalise(pixels_BHWC: Tensor, preprocess: Mapping[str, Any]) -> Tensor:
    """uint8 [B, H, W, 3] to the model's float32 input [B, 3, H, W] on the same device."""
    mean, std = (_channels(tuple(preprocess[name]), pixels_BHWC.device) for name in ("mean", "std"))
    return pixels_BHWC.permute(0, 3, 1, 2).float().div(255).sub(mean).div(std)


@lru_cache(maxsize=32)
def _channels(values: tuple[float, ...], device: torch.device) -> Tensor:
    """A number a channel, as images take them; kept, for a copy to a GPU waits for all that it has to do."""
    return torch.tensor(values, device=device).view(1, 3, 1, 1)


def on_device(array: np.ndarray, device: torch.device) -> Tensor:
    """Returns a copy of an array on a device, of which later changes of the array are no part.

    Plain, for memory that was pinned for each step cost more than it saved: on an H100 a step of ViT-B/16 took 112 ms
    with it and 65 without (RESULTS.md, "A training step on a GPU").
    """
    if device.type != "cuda":
        return torch.from_numpy(np.array(array)).to(device)
    # CUDA has read pageable memory when the call returns, whatever the flag says; it spares waiting for the stream.
    return torch.from_numpy(np.require(array, requirements="W")).to(device, non_blocking=True)
