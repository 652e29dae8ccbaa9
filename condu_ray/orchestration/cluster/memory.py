"""Memory of processes: how much they can still have before Ray ends some, and what becomes of what they free."""

from __future__ import annotations

import ctypes
import os
from contextlib import suppress
from pathlib import Path

ROOT = Path("/")
"""Below it the system says what there is."""

THRESHOLD = 0.95
"""Share of all memory above which Ray's memory monitor ends processes, unless it is set."""

SETTING = "RAY_memory_usage_threshold"
"""The variable that sets it."""

_TRIM, _MAP = -1, -3
"""Parameters of mallopt, by glibc's malloc.h: M_TRIM_THRESHOLD and M_MMAP_THRESHOLD."""
_MOST = 2**25
"""Bytes of the largest block that glibc lets be kept."""

_LIMITS = (
    ("sys/fs/cgroup/memory.max", "sys/fs/cgroup/memory.current", "sys/fs/cgroup/memory.stat", ""),
    ("sys/fs/cgroup/memory/memory.limit_in_bytes", "sys/fs/cgroup/memory/memory.usage_in_bytes",
     "sys/fs/cgroup/memory/memory.stat", "total_"),
)  # fmt: skip
"""A container's limit, what it uses, and of that the files' copies, which go when memory is wanted: cgroups 2 and 1."""


def free_memory() -> int:
    """Returns the bytes that can still be had here; 0 where the system does not say (it is no Linux)."""
    share = THRESHOLD
    with suppress(KeyError, ValueError):
        share = float(os.environ[SETTING])
    try:
        of_machine = _numbers("proc/meminfo")
        total = 1024 * of_machine["MemTotal:"]
        used = total - 1024 * of_machine["MemAvailable:"]
    except (OSError, KeyError, ValueError):
        return 0
    free = share * total - used
    for limit, usage, stat, prefix in _LIMITS:
        with suppress(OSError, KeyError, ValueError):  # without a limit the first holds "max"
            most, of_container = int((ROOT / limit).read_text()), _numbers(stat)
            files = sum(of_container[f"{prefix}{name}_file"] for name in ("active", "inactive"))
            if most < total:
                free = min(free, share * most - (int((ROOT / usage).read_text()) - files))
    return max(0, int(free))


def keep_freed() -> bool:
    """Has this process keep the memory that it frees, but for blocks of over 32 MiB, for what it asks for next.

    A step on a CPU asks for the same blocks again and again. glibc gives larger ones back to the system each time, so
    that every page is cleared and mapped anew: some 3,000 a step of tiny-clip, a twelfth of its time. At its
    peak a process has what it had. Both parameters are set, for one alone ends glibc's own adjustment of the other.

    Returns:
        Whether it does: not where the C library is another one than glibc.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    return bool(mallopt(_MAP, _MOST) and mallopt(_TRIM, 2**30))


def _numbers(path: str) -> dict[str, int]:
    lines = (ROOT / path).read_text().splitlines()
    return {words[0]: int(words[1]) for line in lines if len(words := line.split()) > 1}
