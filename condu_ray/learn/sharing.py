"""Prompts shared out to the workers of an expert: each encodes a part, and has all features with their gradients.

Under DistributedDataParallel every worker needs the features of all class prompts, for images of its own. Encoded by
each, W workers do the text tower's work W times over.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, distributed


def encode_shared(encode: Callable[[Tensor], Tensor], tokens_CL: Tensor) -> Tensor:
    """Returns the features of all prompts, of which this worker encodes ceil(C / world).

    What a worker's loss owes to a prompt comes back to the one that encoded it, summed over the workers; the mean that
    DistributedDataParallel takes of their gradients is then that of workers which each encode all prompts.

    Args:
        encode: from tokens [n, L] to features [n, D]; every worker calls it once.
        tokens_CL: the same on all workers of the process group, which all call this at the same place.

    Returns:
        Features [C, D], the same on all workers.
    """
    rank, world, count = distributed.get_rank(), distributed.get_world_size(), len(tokens_CL)
    share = -(-count // world)
    # The last parts begin again at the first prompt: no worker is without one, for it would wait for its gradients.
    rows = torch.arange(rank * share, (rank + 1) * share, device=tokens_CL.device) % count
    return _Gathered.apply(encode(tokens_CL[rows]))[:count]


class _Gathered(torch.autograd.Function):
    """All workers' features one after the other; backwards, the sum of what all workers' losses owe to one's own."""

    @staticmethod
    def forward(ctx: Any, own_nD: Tensor) -> Tensor:
        own_nD = own_nD.contiguous()
        parts = [torch.empty_like(own_nD) for _ in range(distributed.get_world_size())]
        distributed.all_gather(parts, own_nD)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, grad_ND: Tensor) -> Tensor:
        grad_ND = grad_ND.clone(memory_format=torch.contiguous_format)  # it is autograd's, and may be others' too
        distributed.all_reduce(grad_ND)
        return grad_ND.chunk(distributed.get_world_size())[distributed.get_rank()]
