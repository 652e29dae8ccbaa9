"""Memory of results: large tensors in large pages."""

import mmap
from collections.abc import Iterable, Sequence
from contextlib import suppress

import torch
from torch import Tensor

from condu_ray.merging.threads import run

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


def fetch_pages(tensors: Iterable[Tensor]) -> None:
    """Has the system give new tensors their large pages, a thread its own ones.

    Threads that write to the same new page at once each clear one, and all but one are thrown away: at 146 MB on two
    threads that doubles what the pages cost. A single thread fetches them as it writes.

    Args:
        tensors: New contiguous ones on a CPU, as `empty` makes them; the first byte of every page becomes 0.
    """
    if (threads := torch.get_num_threads()) > 1:
        firsts = (one.view(-1).view(torch.uint8)[::PAGE] for one in tensors if one.nbytes >= PAGE)
        if jobs := [part.zero_ for each in firsts for part in each.chunk(threads)]:
            run(jobs)
