"""Jobs on as many threads as torch has in this process; Ray gives an actor as many as it has CPUs."""

from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from threading import Lock
from typing import TypeVar

import torch

from condu_ray.merging.chunks import serial

T = TypeVar("T")
Job = Callable[[], object]
"""A piece of work that touches no other's memory and lets go of the interpreter while it works."""
ROOM = 1 << 29
"""Bytes that the threads of `by_name` together may work in, where one can do with less."""


def run(jobs: Iterable[Job], threads: int | None = None) -> None:
    """Work off jobs, this thread too; jobs are made as they are taken.

    Args:
        jobs: The work.
        threads: How many, this one among them; None: as many as torch has.

    Raises:
        Exception: What a job, or the making of one, raised.
    """
    rest, lock = iter(jobs), Lock()  # a generator goes on in one thread at a time

    def take() -> Job | None:
        with lock:
            return next(rest, None)

    def work() -> None:
        while (job := take()) is not None:
            job()

    if (others := (threads or torch.get_num_threads()) - 1) == 0:
        work()
        return
    with ThreadPoolExecutor(others) as pool:
        working = [pool.submit(work) for _ in range(others)]
        work()
        for other in working:
            other.result()


def by_name(make: Callable[[str], T], work: Mapping[str, int], *, least: int = 0) -> dict[str, T]:
    """Makes something of each tensor of a delta, each on a single thread: the same bits for every number of threads.

    Two threads of torch for one small decomposition, on two cores that others use too, took ten times as long as one.

    Args:
        make: Makes it, from the tensor's name.
        work: From the name to the bytes that it is made in; the large ones are begun first.
        least: Bytes from which on they are shared out, on as many threads as torch has and `ROOM` lets.

    Returns:
        What was made, in the order of ``work``.

    Raises:
        Exception: What ``make`` raised.
    """
    threads = max(1, min(torch.get_num_threads(), ROOM // max(work.values(), default=1), len(work)))
    names = sorted(work, key=work.__getitem__, reverse=True)
    found: dict[str, T] = {}

    def one(name: str) -> None:
        found[name] = make(name)

    with serial():
        run((partial(one, name) for name in names if work[name] >= least), threads)
        run((partial(one, name) for name in names if work[name] < least), 1)
    return {name: found[name] for name in work}
