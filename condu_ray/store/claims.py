"""Claims: who is making an artifact right now, so that nobody else makes it too.

A claim is a small file that its owner touches every few seconds. A waiter that sees no touch for `STALE_SECONDS` of its
own clock, or that runs on the same host and finds the owner's process gone, takes the claim over. Clocks of different
machines are never compared. A claim only saves work: publishing is atomic, so two makers would do no harm.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
import uuid
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from condu_ray.store.artifacts import draft_of, sync, writing
from condu_ray.store.layout import claim_path

TOUCH_SECONDS = 5.0
STALE_SECONDS = 30.0
"""Silence after which an owner counts as dead."""


def process_start(pid: int) -> str | None:
    """Returns what tells a process from a later one of the same number; None when there is no such process."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    except OSError:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return None
        except OSError:
            pass
        return ""
    return None if fields[0] == "Z" else fields[19]


class Claims:
    """The claims of one process on artifacts of one folder.

    Args:
        folder: where the claim files are, such as `<storage>/experts/.claims`.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        pid = os.getpid()
        self._token = uuid.uuid4().hex
        self._owner = {"host": socket.gethostname(), "pid": pid, "start": process_start(pid), "token": self._token}
        self._mine: set[str] = set()
        self._seen: dict[str, tuple[tuple[int, int], float]] = {}
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def _path(self, key: str) -> Path:
        return claim_path(self._folder, key)

    def acquire(self, key: str) -> bool:
        """Claims a key without waiting; True when it is ours now (or was before).

        Raises:
            WriteError: claims cannot be written here.
        """
        if key in self._mine:
            return True
        with writing(self._path(key)):
            return self._acquire(key)

    def _acquire(self, key: str) -> bool:
        self._folder.mkdir(parents=True, exist_ok=True)
        beside = draft_of(self._folder / key)
        try:
            beside.write_text(json.dumps(self._owner | {"since": time.time()}), encoding="utf-8")
            sync(beside)  # a claim that a power cut emptied would have to be waited for
            for _ in range(2):
                try:
                    os.link(beside, self._path(key))  # atomic, and whole: a reader never sees half a claim
                except FileExistsError:
                    if not self._remove_dead(key):
                        return False
                else:
                    with self._lock:
                        self._mine.add(key)
                    self._start()
                    return True
            return False
        finally:
            beside.unlink(missing_ok=True)

    def here(self) -> str:
        """Returns this process's host, as claims name it."""
        return str(self._owner["host"])

    def owner(self, key: str) -> dict[str, Any] | None:
        """Returns who holds a key (`host`, `pid`, `since` in seconds since 1970), or None."""
        try:
            found = json.loads(self._path(key).read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            return None
        pid = found.get("pid") if isinstance(found, dict) else None
        return found if type(pid) is int and 0 < pid < 2**31 else None

    def _remove_dead(self, key: str) -> bool:
        """Removes the claim of an owner that is dead; False when it lives, as far as can be told."""
        path = self._path(key)
        try:
            status = path.stat()  # before the owner is read: a claim made anew in between is then told by its stamp
        except FileNotFoundError:
            return True
        owner = self.owner(key)
        stamp, now = (status.st_ino, status.st_mtime_ns), time.monotonic()
        if self._seen.get(key, ((0, 0), 0.0))[0] != stamp:
            self._seen[key] = (stamp, now)
        silent = now - self._seen[key][1] > STALE_SECONDS
        here = owner is not None and owner.get("host") == self._owner["host"]
        gone = here and owner is not None and process_start(int(owner["pid"])) != owner.get("start")
        if not (silent or gone):
            return False
        if path.is_dir():
            raise OSError(f"{path} is a folder, and no claim; remove it")
        aside = draft_of(path)
        try:
            path.rename(aside)  # of several that take over, one wins
        except FileNotFoundError:
            return True
        taken = aside.stat()
        if (taken.st_ino, taken.st_mtime_ns) != stamp:  # somebody else had taken over meanwhile: give it back
            with suppress(FileExistsError):
                os.link(aside, path)
            aside.unlink()
            return False
        aside.unlink()
        return True

    def release(self, key: str) -> None:
        """Gives up a claim; unknown keys do nothing."""
        with self._lock:
            if key in self._mine:
                self._mine.discard(key)
                owner = self.owner(key)
                if owner is not None and owner.get("token") == self._token:
                    self._path(key).unlink(missing_ok=True)

    def _start(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._touch, name="claims", daemon=True)
            self._thread.start()

    def _touch(self) -> None:
        while not self._stop.wait(TOUCH_SECONDS):
            with self._lock:
                for key in self._mine:
                    try:
                        os.utime(self._path(key))
                    except OSError:  # taken over while this process was held up; the artifact will be there
                        continue

    def close(self) -> None:
        """Releases all claims and ends the thread that touches them."""
        self._stop.set()
        for key in list(self._mine):
            self.release(key)

    def __enter__(self) -> Claims:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
