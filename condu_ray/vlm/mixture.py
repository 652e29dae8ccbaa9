"""The mixture of experts: P(class | image) = sum over tasks of P(task | image) * P(class | image, task).

With classes that no expert knows: the sum times 1 - P(new | image), and P(new | image) times the mean of what the
nearest experts and theta0 (or theta0 alone) say over these classes, weighted as by the paper's rule: of their
probabilities, not of their logits.

Names: ``N`` = images, ``T`` = tasks, ``C`` = classes of the label space, ``I`` = numbers of classes (equal names of two
tasks are one number).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

MASS = 0.99
"""Experts are asked until their P(task) adds up to this."""


def asked(chance_NT: Tensor, mass: float = MASS) -> Tensor:
    """Leaves the most likely tasks alone, until they add up to `mass`: [N, T], rows sum to 1 as before.

    Args:
        chance_NT: P(task | image), rows sum to 1.
        mass: in (0, 1]; 1 keeps every task.
    """
    order = chance_NT.argsort(dim=1, descending=True, stable=True)
    sorted_NT = chance_NT.gather(1, order)
    before_NT = sorted_NT.cumsum(dim=1) - sorted_NT
    kept_NT = torch.zeros_like(chance_NT, dtype=torch.bool).scatter_(1, order, before_NT < mass)
    left_NT = torch.where(kept_NT, chance_NT, 0.0)
    return left_NT / left_NT.sum(dim=1, keepdim=True)


class Answers:
    """Which classes each expert answers for.

    Args:
        id_C: number of each class of the label space; equal numbers are one class.
        owner_C: the task that each class's prompt comes from.
        known: learned task to the numbers of its classes, whether in the label space or not.
    """

    def __init__(self, id_C: Tensor, owner_C: Sequence[str], known: dict[str, set[int]]) -> None:
        self._id_C, self._owner_C, self._known = id_C, list(owner_C), known
        every = set().union(*known.values()) if known else set()
        self.unknown = torch.tensor([int(number) not in every for number in id_C], dtype=torch.bool)

    @property
    def any_known(self) -> bool:
        """Whether some expert knows some class of the label space."""
        return not bool(self.unknown.all())

    def columns(self, task: str) -> Tensor:
        """Returns the columns over which a task's expert answers: int64, each class once.

        Those of its own classes, under its own prompt where the label space has it; all of the label space where none
        is its own.
        """
        own = [place for place, number in enumerate(self._id_C.tolist()) if number in self._known[task]]
        first: dict[int, int] = {}
        for place in own or range(len(self._id_C)):
            number = int(self._id_C[place])
            if number not in first or (self._owner_C[first[number]] != task and self._owner_C[place] == task):
                first[number] = place
        return torch.tensor(sorted(first.values()))

    def unknown_columns(self) -> Tensor:
        """Returns the columns of classes that no expert knows: int64, each class once."""
        first: dict[int, int] = {}
        for place in self.unknown.nonzero().flatten().tolist():
            first.setdefault(int(self._id_C[place]), place)
        return torch.tensor(sorted(first.values()), dtype=torch.int64)


class Mixture:
    """Adds up P(class | image).

    Args:
        images: N.
        id_C: number of each class of the label space.

    Attributes:
        chance: P(class | image), float64 [N, I].
        tasks: P(task | image) of the router, [N, T]; None where nobody asked one.
        new: P(new | image), [N]; None where the label space has not both, classes that experts know and others.
        counted: who answered (a task's place, or -1 for theta0) to how much that counted, [N]; together 1 an image.
    """

    def __init__(self, images: int, id_C: Tensor) -> None:
        self._id_C = id_C
        self.chance = torch.zeros(images, int(id_C.max()) + 1, dtype=torch.float64)
        self.tasks: Tensor | None = None
        self.new: Tensor | None = None
        self.counted: dict[int, Tensor] = {}

    def add(
        self, logit_WC: Tensor, columns: Tensor, share_N: Tensor, wanted_N: Tensor, temperature: float = 1.0
    ) -> None:
        """Adds one expert's part.

        Args:
            logit_WC: its logits over the label space, of the images that want it.
            columns: over which it answers; none: this adds nothing.
            share_N: what its answer counts for each image, [N].
            wanted_N: bool [N], the W images; others have no share.
            temperature: of its softmax.
        """
        share_W = share_N[wanted_N]
        rows = share_W > 0
        if not len(columns) or not rows.any():
            return
        chance = torch.softmax(logit_WC[rows][:, columns].double() / temperature, dim=1) * share_W[rows].unsqueeze(1)
        part = torch.zeros(len(chance), self.chance.shape[1], dtype=torch.float64)
        self.chance[wanted_N.nonzero().flatten()[rows]] += part.index_add_(1, self._id_C[columns], chance)

    def predicted(self) -> Tensor:
        """Returns the number of the most likely class of each image, int64 [N]."""
        return self.chance.argmax(dim=1)
