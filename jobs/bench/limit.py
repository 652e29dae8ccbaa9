"""What a machine could do at best: how much of a step its own matrix products would take at the rate of a large one.

What is left of a step is all that is no product, and what its products lose by their shapes. A step cannot be faster
than this limit on this machine in this precision, but by fewer products.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch.utils.flop_counter import FlopCounterMode

SIDE = 1024
"""Rows and columns of the large product on a CPU, whose caches it fits; on a GPU eight times as many."""
PRODUCTS = 30


def flops(train: Callable[[int], object]) -> float:
    """Floating-point operations of the matrix products, convolutions and attention of one step, forward and backward.

    Args:
        train: trains so many steps.
    """
    found = []
    for steps in (1, 2):
        with FlopCounterMode(display=False) as counter:
            train(steps)
        found.append(counter.get_total_flops())
    return float(found[1] - found[0])


def rate(device: torch.device, dtype: torch.dtype) -> float:
    """Operations a second of a large product: on a CPU by its own seconds, of all threads; on a GPU by the clock's.

    Args:
        device: where.
        dtype: of its matrices.
    """
    side = SIDE if device.type == "cpu" else 8 * SIDE
    one, other = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    out = torch.empty_like(one)
    seconds = []
    for _ in range(PRODUCTS):
        begin = _seconds(device)
        torch.mm(one, other, out=out)
        seconds.append(_seconds(device) - begin)
    return 2.0 * side**3 / min(seconds)


def _seconds(device: torch.device) -> float:
    if device.type == "cpu":
        return time.process_time()
    torch.cuda.synchronize(device)
    return time.perf_counter()
