"""What a forward pass draws (dropout, stochastic depth), so that another pass can draw the same."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


class Draws:
    """Where torch's generators stand when this is made.

    Args:
        device: where the model computes, whose generator counts beside the CPU's.
    """

    def __init__(self, device: torch.device) -> None:
        self._cpu = torch.get_rng_state()
        self._cuda = {device: torch.cuda.get_rng_state(device)} if device.type == "cuda" else {}

    @contextmanager
    def again(self) -> Iterator[None]:
        """Has what is drawn inside be what was drawn from here on; the generators go on as if it was not."""
        with torch.random.fork_rng([*self._cuda]):
            torch.set_rng_state(self._cpu)
            for device, state in self._cuda.items():
                torch.cuda.set_rng_state(state, device)
            yield
