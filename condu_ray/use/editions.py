"""Editions: states that are served; a new one is loaded beside the old one, which goes when nobody asks for it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Generic, TypeVar

from condu_ray.use.serving import Source

E = TypeVar("E")


class Editions(Generic[E]):
    """What was loaded of each source; threads that want one that is being loaded wait for it, others do not.

    Args:
        load: makes an edition.
        keep: seconds after its last use that an edition stays when it is no longer the newest.
        clock: seconds, for tests.
    """

    def __init__(self, load: Callable[[Source], E], keep: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._load, self._keep, self._clock = load, keep, clock
        self._found: dict[Source, Future[E]] = {}
        self._used: dict[Source, float] = {}
        self._newest: Source | None = None
        self._lock = threading.Lock()

    def get(self, source: Source, newest: bool = False) -> E:
        """Returns an edition, loaded where it is not there.

        Args:
            source: of which.
            newest: whether it is to stay, whoever uses it; the one before it then goes after a while.

        Raises:
            ValueError, ArtifactError: it cannot be loaded; nothing is kept, and what was the newest stays it.
        """
        with self._lock:
            future, mine = self._found.get(source), False
            if future is None:
                future, mine = Future(), True
                self._found[source] = future
            self._used[source] = self._clock()
        if mine:
            try:
                future.set_result(self._load(source))
            except BaseException as error:
                with self._lock:
                    del self._found[source], self._used[source]
                future.set_exception(error)
        found = future.result()
        with self._lock:
            self._used[source] = self._clock()
            if newest:
                self._newest = source
            for old in [one for one in self._found if one not in (source, self._newest)]:
                if self._found[old].done() and self._clock() - self._used[old] > self._keep:
                    del self._found[old], self._used[old]
        return found

    @property
    def sources(self) -> tuple[Source, ...]:
        """Of which there is one, or soon will be."""
        return tuple(self._found)
