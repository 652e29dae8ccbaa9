"""Memory of results: large tensors in large pages."""

import mmap
from collections.abc import Sequence
from contextlib import suppress

import torch
from torch import Tensor

PAGE = 1 << 21
"""Bytes of a large page."""


def empty(shape: Sequence[int], dtype: torch.dtype, device: torch.device | str = "cpu") -> Tensor:
    """A new contiguous tensor whose values are whatever its memory holds.

    On a CPU one of 2 MiB and more asks the system for large pages (Linux; elsewhere it is as any other): torch's memory
    comes in pages of 4 KiB, each of which costs a microsecond and more on a virtual machine, several times what it
    takes to write to it. A last page that would be half full is a large one too: at most 1 MiB is taken in vain.
    """
    size = torch.Size(shape).numel() * dtype.itemsize
    if torch.device(device).type != "cpu" or size < PAGE or not hasattr(mmap, "MADV_HUGEPAGE"):
        return torch.empty(shape, dtype=dtype, device=device)
    whole = (size + PAGE // 2) // PAGE * PAGE
    memory = mmap.mmap(-1, max(size, whole), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with suppress(OSError):  # a system without large pages
        memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=torch.uint8, count=size).view(dtype).view(shape)
