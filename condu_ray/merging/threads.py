"""Jobs on as many threads as torch has in this process; Ray gives an actor as many as it has CPUs."""

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from threading import Lock

import torch

Job = Callable[[], object]
"""A piece of work that touches no other's memory and lets go of the interpreter while it works."""


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
