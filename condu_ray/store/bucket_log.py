"""Logs in a bucket: a folder of an object a line, `LOG/000000001` and so on."""

from __future__ import annotations

import errno
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

from condu_ray.store.bucket import Bucket
from condu_ray.store.location import Location

_LINE = re.compile(r"\d{9}")
_READERS = 16


class Logs:
    """The logs that one process reads and appends to: it knows the last line of each, and is told of another's."""

    def __init__(self) -> None:
        self._last: dict[Location, int] = {}

    def forget(self, log: Location) -> None:
        """What is known of a log counts no more."""
        self._last.pop(log, None)

    def append(self, bucket: Bucket, log: Location, line: bytes) -> None:
        """Creates the next object by If-None-Match: *.

        Raises:
            OSError: there is one already, for another process, which may not, appends too; nothing was written.
        """
        if log not in self._last:
            self._last[log] = max(_numbers(bucket, log), default=0)
        number = self._last[log] + 1
        if not bucket.create(_key(log, number), line):
            self.forget(log)
            words = "another process has appended meanwhile: its driver took this run over"
            raise OSError(errno.EEXIST, words, str(log))
        self._last[log] = number

    def lines(self, bucket: Bucket, log: Location) -> list[bytes]:
        """Returns the lines, after those of a file that was brought from a file system."""
        numbers = _numbers(bucket, log)
        try:
            first = bucket.get(log.key)[0].splitlines(keepends=True)
        except FileNotFoundError:
            if not numbers:
                raise
            first = []
        self._last[log] = max(numbers, default=0)
        with ThreadPoolExecutor(_READERS, thread_name_prefix="lines") as pool:
            return [*first, *pool.map(lambda number: bucket.get(_key(log, number))[0], numbers)]

    def rewrite(self, bucket: Bucket, log: Location, lines: Sequence[bytes]) -> None:
        """Removes the lines that are no more, one by one; others are appended."""
        wanted = list(lines)
        with suppress(FileNotFoundError):
            first = bucket.get(log.key)[0].splitlines(keepends=True)
            kept = [line for line in first if line in wanted]
            wanted = wanted[len(kept) :]
            if kept != first:
                bucket.put(log.key, b"".join(kept))
        for number in _numbers(bucket, log):
            key = _key(log, number)
            if wanted and bucket.get(key)[0] == wanted[0]:
                wanted.pop(0)
            else:
                bucket.delete([key])
        for line in wanted:
            self.append(bucket, log, line)


def _numbers(bucket: Bucket, log: Location) -> list[int]:
    return sorted(int(name) for name in bucket.folder(log.key)[0] if _LINE.fullmatch(name))


def _key(log: Location, number: int) -> str:
    return (log / f"{number:09d}").key
