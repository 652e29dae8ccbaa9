"""The losses of a fine-tuning: kept on the device, read some steps late, so that the host never waits for a step."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from condu_ray.learn.agreement import Agreement, named

READ_STEPS = 20
"""After how many steps the losses are read from a GPU. On the CPU nothing runs ahead: every one is read at once."""


class DivergedError(RuntimeError):
    """Training lost its numbers; the message names the task, the step and, of several workers, the ranks."""


class Losses:
    """What the losses of a worker were, and of all workers whether they are numbers.

    Args:
        agreement: between the workers, who read at the same steps.
        task: what is learned.
        peak: the learning rate's peak.
        every: after how many steps losses are read.
    """

    def __init__(self, agreement: Agreement, task: str, peak: float, every: int) -> None:
        self._agreement, self._task, self._peak, self._every = agreement, task, peak, every
        self._unread: list[Tensor] = []
        self.values: list[float] = []

    @property
    def latest(self) -> float:
        """The last loss that was read."""
        return self.values[-1]

    def so_far(self) -> list[float]:
        """Returns this worker's losses of all steps, without asking the others."""
        return [*self.values, *(torch.stack(self._unread).tolist() if self._unread else ())]

    def add(self, loss: Tensor) -> None:
        """Takes a step's loss, and reads if it is time; the first one is read at once.

        Args:
            loss: a scalar of a floating dtype, on any device.

        Raises:
            DivergedError: a loss up to this step is NaN or infinite, on any worker.
        """
        self._unread.append(loss.detach())
        if not self.values or len(self._unread) >= self._every:
            self.read()

    def read(self) -> None:
        """Reads all losses up to now.

        Raises:
            DivergedError: one of them is NaN or infinite, on any worker; the first such step is named.
        """
        unread, self._unread = self._unread, []
        if not unread:
            return
        for every in self._agreement.losses(torch.stack(unread)):
            check_losses(every, self._task, len(self.values) + 1, self._peak)
            self.values.append(every[self._agreement.rank])


def check_losses(losses: Mapping[int, float], task: str, step: int, peak: float) -> None:
    """Stops a training whose loss lost its numbers.

    Args:
        losses: of every worker, by rank; of one alone, its own.
        task: what is learned.
        step: 1-based.
        peak: the learning rate's peak.

    Raises:
        DivergedError: a loss is NaN or infinite.
    """
    bad = [rank for rank, loss in losses.items() if not math.isfinite(loss)]
    if bad:
        where = f" on {named(bad)} of {len(losses)}" if len(losses) > 1 else ""
        cure = f"lower the learning rate ({peak:g})"
        if len(bad) < len(losses):
            cure += f", or check memory and GPU behind {named(bad)}"
        raise DivergedError(f"task {task}: the loss became {losses[bad[0]]} at step {step}{where}; {cure}")
