"""What the workers of one expert tell each other, so that all stop at one step when one of them goes astray.

Under DistributedDataParallel all workers start from rank 0's parameters and apply the same averaged gradient to them,
so these are equal to the bit after every step: what is random by rank (images, exemplars, references) is in the
gradients, before they are averaged. A worker whose bits differ computed wrongly, or by other kernels than the others.

All workers call the same methods in the same order between the same two gradient all-reduces; every answer is the same
on all of them. A worker alone calls nothing of torch.distributed. Tensors travel on the device of what they tell of:
NCCL takes only a GPU's, gloo only the CPU's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, distributed

CHECK_STEPS = 100
"""After how many steps the parameters are compared: 0.13 s for 150 M of them on one CPU core."""
CHUNK = 1 << 16
"""Elements to one checksum: |bits| <= 2^31 times places up to 2^16, summed over as many, stays within 2^62."""


@dataclass(frozen=True)
class Difference:
    """Parameters that are not the same on all workers.

    Attributes:
        ranks: the workers that are not as most are, ascending.
        others: the workers that are: the largest group of equal ones, of several as large the one with the lowest rank.
        names: the parameters that differ between any two workers, in their order.
    """

    ranks: tuple[int, ...]
    others: tuple[int, ...]
    names: tuple[str, ...]

    @property
    def suspects(self) -> tuple[int, ...]:
        """The workers that may be wrong: without a majority, all of them."""
        return self.ranks if len(self.others) > len(self.ranks) else tuple(sorted(self.ranks + self.others))

    def __str__(self) -> str:
        more = f" and {len(self.names) - 1} more" if len(self.names) > 1 else ""
        verb = "differ" if len(self.ranks) > 1 else "differs"
        return f"{named(self.ranks)} {verb} from {named(self.others)} in {self.names[0]}{more}"


class Agreement:
    """One worker's end of the talk.

    Args:
        parameters: what is trained, by name; the same names, shapes and dtypes in the same order on every worker.
        rank, world: this worker among those of the expert. Without a process group, where no gradient can be averaged
            either, a worker is alone.
    """

    def __init__(self, parameters: Mapping[str, Tensor], rank: int, world: int) -> None:
        self._parameters, self.rank = parameters, rank
        self.several = world > 1 and distributed.is_initialized()

    def losses(self, loss_K: Tensor) -> list[dict[int, float]]:
        """Returns every worker's losses by rank, step by step; this one's without asking when there are no others.

        Args:
            loss_K: this worker's of K steps, of a floating dtype.
        """
        if not self.several:
            return [{self.rank: loss} for loss in loss_K.tolist()]
        return [dict(enumerate(step)) for step in _gathered(loss_K.double()).T.tolist()]

    @torch.no_grad()
    def difference(self) -> Difference | None:
        """Returns how the workers' parameters differ; None when all their bits are equal, or there are no others."""
        if not self.several:
            return None
        own = {name: checksums(parameter) for name, parameter in self._parameters.items()}
        names = [name for name, sums in own.items() for _ in sums]
        return difference(_gathered(torch.cat(list(own.values()))), names)

    @torch.no_grad()
    def broken(self) -> str | None:
        """Returns the first parameter that holds NaN or infinity; the same on all workers when they do not differ."""
        finite = ((name, bool(parameter.isfinite().all())) for name, parameter in self._parameters.items())
        return next((name for name, good in finite if not good), None)


def checksums(tensor: Tensor) -> Tensor:
    """Returns integers that change with any one bit of a tensor: of every chunk, sum over i of (i + 1) * bits_i.

    Exact, so the order of the sum does not matter, and CPU and GPU agree. The places tell elements that changed in
    opposite directions, or places, from elements that did not.

    Args:
        tensor: any shape and dtype.

    Returns:
        int64 [ceil(elements / CHUNK)] on its device; of 64-bit dtypes, every half counts as an element.
    """
    flat = tensor.detach().reshape(-1)
    bits = flat.view({1: torch.int8, 2: torch.int16}.get(tensor.element_size(), torch.int32))
    places = torch.arange(1, min(CHUNK, len(bits)) + 1, device=tensor.device)
    sums = [chunk.long().mul_(places[: len(chunk)]).sum() for chunk in bits.split(CHUNK) if len(chunk)]
    return torch.stack(sums) if sums else places


def difference(checksums: Tensor, names: Sequence[str]) -> Difference | None:
    """Returns which workers differ from which; None when none does.

    Args:
        checksums: every worker's, int64 [world, K].
        names: of what parameter each is, K long.
    """
    groups: dict[tuple[int, ...], list[int]] = {}
    for rank, row in enumerate(checksums.tolist()):
        groups.setdefault(tuple(row), []).append(rank)
    if len(groups) == 1:
        return None
    others = max(groups.values(), key=len)  # the first of the longest: groups are in the order of their lowest rank
    unequal = [name for name, column in zip(names, zip(*groups, strict=True), strict=True) if len(set(column)) > 1]
    ranks = sorted(rank for group in groups.values() if group is not others for rank in group)
    return Difference(tuple(ranks), tuple(others), tuple(dict.fromkeys(unequal)))


def named(ranks: Sequence[int]) -> str:
    """Returns ranks as a message names them: `rank 1`, `ranks 0, 2`."""
    return f"rank{'s' if len(ranks) > 1 else ''} {', '.join(map(str, ranks))}"


def _gathered(tensor: Tensor) -> Tensor:
    """Returns all workers' [N] as [world, N]."""
    parts = [torch.empty_like(tensor) for _ in range(distributed.get_world_size())]
    distributed.all_gather(parts, tensor)
    return torch.stack(parts)
