"""How long MLflow's server is waited for: while it takes what it is told, and not so long again where it did not.

A server may answer, and fail at what it is to write, as one whose disk is full: MLflow's client tries that for minutes.
"""

from __future__ import annotations

import threading
import time

QUIET_SECONDS, SHORT_SECONDS = 20.0, 2.0
"""How long a server may take for one thing that it is told, and where it was given up before."""
SLICE_SECONDS = 0.1
"""How often who waits looks whether something was taken."""
_given_up: set[str] = set()
"""Addresses whose server was given up, and has not taken all of a run or sweep since; of this process."""


class Patience:
    """Waits for a thread that tells a server of something.

    Args:
        uri: the server's address. A file is only slow, and is waited for as long as is said.
    """

    def __init__(self, uri: str) -> None:
        self._uri, self._file = uri, uri.startswith("sqlite")
        self._asked: float | None = None

    @property
    def short(self) -> bool:
        """Whether the server was given up before."""
        return self._uri in _given_up

    def asks(self) -> None:
        """Notes that the server is told of something now, having taken what it was told before."""
        self._asked = time.monotonic()

    def rests(self) -> None:
        """Notes that it is told of nothing now."""
        self._asked = None

    def wait(self, thread: threading.Thread, seconds: float) -> None:
        """Waits for a thread's end: no longer than some seconds, nor for a server that takes nothing meanwhile."""
        end = time.monotonic() + seconds
        while thread.is_alive() and (left := min(end, self._until()) - time.monotonic()) > 0:
            thread.join(min(left, SLICE_SECONDS))

    def _until(self) -> float:
        asked = self._asked
        if asked is None or self._file:
            return float("inf")
        return asked + (SHORT_SECONDS if self.short else QUIET_SECONDS)

    def gives_up(self) -> None:
        """Notes that the server is waited for no more: the next one waits but shortly."""
        if not self._file:
            _given_up.add(self._uri)

    def has_all(self) -> None:
        """Notes that the server has taken all of a run or sweep."""
        _given_up.discard(self._uri)
