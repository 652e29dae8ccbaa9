"""Work beside the driver's main thread that never keeps the process from ending.

Not a ThreadPoolExecutor: Python joins its threads at exit, and one that waits for a Ray cluster that is gone waits for
ever. So a run that fails, or is interrupted, would hang instead of saying why.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import ParamSpec, TypeVar

T = TypeVar("T")
P = ParamSpec("P")


_PREFIX = "background "


def busy() -> bool:
    """Whether some of this process's background work has not ended."""
    return any(thread.name.startswith(_PREFIX) for thread in threading.enumerate())


def join(seconds: float) -> bool:
    """Waits until all background work has ended, or for so long; returns whether it has."""
    deadline = time.monotonic() + seconds
    while (found := busy()) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not found


def background(job: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Future[T]:
    """Starts a job in a daemon thread of its own.

    Args:
        job: what is to be done.
        *args: what it takes.
        **kwargs: what it takes by name.

    Returns:
        Its result, or what it raised.
    """
    future: Future[T] = Future()

    def work() -> None:
        try:
            future.set_result(job(*args, **kwargs))
        except BaseException as error:  # whoever asks for the result gets it
            future.set_exception(error)

    future.set_running_or_notify_cancel()
    threading.Thread(target=work, name=_PREFIX + getattr(job, "__name__", ""), daemon=True).start()
    return future
