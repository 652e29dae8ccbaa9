"""The optimiser of every training: torch's AdamW in one kernel, without torch's compiler."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable

import torch
from torch import nn

from condu_ray.config import Training
from condu_ray.without_compiler import undecorated

_KEPT = ("add_param_group", "zero_grad", "state_dict", "load_state_dict")
"""Methods that torch has its compiler leave out, which it loads to say so: 3 CPU seconds and 870 modules."""
_STEP = inspect.unwrap(torch.optim.AdamW.step)


class AdamW(torch.optim.AdamW):
    """torch's, whose step is not one that might be compiled: torch's own loads the compiler to say where it breaks."""

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Takes a step, as torch's; what `torch.profiler` and hooks want of one stays.

        Args:
            closure: computes the loss anew.
        """
        with torch.no_grad():
            return _STEP(self, closure)


def adamw(parameters: Iterable[nn.Parameter], settings: Training, peak: float) -> AdamW:
    """Returns AdamW with the settings' decay and second moment.

    Args:
        parameters: what it changes.
        settings: of the training.
        peak: learning rate before any schedule.
    """
    for name in _KEPT:
        undecorated(getattr(torch.optim.Optimizer, name))
    return AdamW(list(parameters), lr=peak, betas=(0.9, settings.beta2), weight_decay=settings.weight_decay, fused=True)
