"""Arrays on their way to a GPU: by pinned memory that is kept, so that nobody waits for the copy."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import torch
from torch import Tensor

SLOTS = 6
"""Pinned buffers of a thread: pixels and labels of three steps. As far does the host run ahead of the copies."""


class Pinned:
    """Pinned buffers in turn, each used again once its copy is done, and grown where an array is larger.

    Pinning is slow, and torch's own allocator pins anew as long as the copies before have not been made.
    """

    def __init__(self) -> None:
        self._slots: list[tuple[Tensor, Any] | None] = [None] * SLOTS
        self._next = 0

    def copied(self, array: np.ndarray, device: torch.device) -> Tensor:
        """Returns a copy of an array on a device, which its current stream makes when it comes to it."""
        array = np.asarray(array)
        slot = self._slots[self._next]
        if slot is not None:
            slot[1].synchronize()
        buffer = slot[0] if slot is not None and len(slot[0]) >= array.nbytes else self._pinned(array.nbytes)
        dtype = torch.from_numpy(np.empty(0, array.dtype)).dtype
        host = buffer[: array.nbytes].view(dtype).view(array.shape)
        np.copyto(host.numpy(), array)
        found = host.to(device, non_blocking=True)
        self._slots[self._next] = buffer, self._recorded(device)
        self._next = (self._next + 1) % SLOTS
        return found

    def _pinned(self, size: int) -> Tensor:
        return torch.empty(size, dtype=torch.uint8, pin_memory=True)

    def _recorded(self, device: torch.device) -> Any:
        event = torch.cuda.Event()
        event.record(torch.cuda.current_stream(device))
        return event


_own = threading.local()


def on_device(array: np.ndarray, device: torch.device) -> Tensor:
    """Returns a copy of an array on a device; to a GPU it goes by pinned memory, and the host goes on meanwhile."""
    if device.type != "cuda":
        return torch.from_numpy(np.array(array)).to(device)
    if not hasattr(_own, "pinned"):
        _own.pinned = Pinned()
    pinned: Pinned = _own.pinned
    return pinned.copied(array, device)
