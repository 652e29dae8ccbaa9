"""What a run or a sweep says to people, a line each."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from condu_ray.console import output

LINE_SECONDS = 10.0
"""How often a line says where a run is, in a job's log."""
FIRST_SECONDS, WAIT_SECONDS = 2.0, 5.0
"""When a line first says for what a run waits before it has begun to train, and how often."""


class Lines:
    """Lines with the time since the first of them could have been said."""

    def __init__(self) -> None:
        self.console = output(styled=True)
        self._begin = time.monotonic()

    def say(self, text: str) -> None:
        """Prints a line, with rich's markup."""
        minutes, seconds = divmod(int(time.monotonic() - self._begin), 60)
        self.console.print(f"[dim]{minutes:02d}:{seconds:02d}[/] {text}")

    @contextmanager
    def waiting(self, what: str) -> Iterator[None]:
        """Says every `WAIT_SECONDS` for what the block waits, from a thread, since the block itself cannot.

        Args:
            what: as in `waiting: Ray starts (10 s)`.
        """
        over, begin = threading.Event(), time.monotonic()

        def tell() -> None:
            pause = FIRST_SECONDS
            while not over.wait(pause):
                pause = WAIT_SECONDS
                self.say(f"waiting: {what} ({time.monotonic() - begin:.0f} s)")

        told = threading.Thread(target=tell, name="waiting", daemon=True)
        told.start()
        try:
            yield
        finally:
            over.set()
            told.join(1.0)  # a process that forks next has no thread then; one that can't write is not waited for
