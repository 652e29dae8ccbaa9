"""Claims: who is making an artifact right now, so that nobody else makes it too.

A claim is a small object that its owner touches every few seconds. A waiter that sees no touch for `STALE_SECONDS` of
its own clock, or that runs beside the owner and finds its process gone, takes the claim over. Clocks of different
machines are never compared. A claim only saves work: publishing is atomic, so two makers would do no harm.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Hashable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

from condu_ray.store.artifacts import writing
from condu_ray.store.backend import backend, on_disk
from condu_ray.store.layout import claim_path
from condu_ray.store.location import Place

log = logging.getLogger(__name__)

TOUCH_SECONDS = 5.0
STALE_SECONDS = 30.0
"""Silence after which an owner counts as dead."""
LOOK_SECONDS = 1.0
"""How often an owner is looked at that may be dead."""


def process_start(pid: int) -> str | None:
    """Returns what tells a process from a later one of the same number; None when there is no such process.

    Empty of one that is there and shows no more: no /proc, or one that hides other users' processes (`hidepid`).
    """
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


def process_space() -> str:
    """Returns what tells those processes from others whose numbers can be looked up here; empty where nothing does.

    A host's name does not: containers in the host's network have all the same one, and so may machines.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


class _Seen(NamedTuple):
    """A claim of another: its stamp, since when it is seen, and its owner."""

    stamp: Hashable
    since: float
    owner: dict[str, Any] | None


class Claims:
    """The claims of one process on artifacts of one folder.

    Args:
        folder: where the claim files are, such as `<storage>/experts/.claims`.

    Attributes:
        lost: keys that were taken over by others, as soon as this process has seen it.
    """

    def __init__(self, folder: Place) -> None:
        self._folder = folder
        pid = os.getpid()
        self._token = uuid.uuid4().hex
        self._owner = {"host": socket.gethostname(), "pid": pid, "start": process_start(pid), "token": self._token}
        self._owner["space"] = process_space()
        self._mine: dict[str, bytes] = {}  # with what their claims say
        self.lost: set[str] = set()
        self._seen: dict[str, _Seen] = {}
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def _path(self, key: str) -> Place:
        return claim_path(self._folder, key)

    def acquire(self, key: str) -> bool:
        """Claims a key without waiting; True when it is ours now (or was before).

        Raises:
            WriteError: claims cannot be written here.
        """
        if key in self._mine:
            return True
        with writing(self._path(key)):
            words = json.dumps(self._owner | {"since": time.time(), "folder": self._number(make=True)}).encode()
            mine = self._acquire(key, words)
        if mine:
            with self._lock:
                self._mine[key] = words
            self._start()
        return mine

    def outlast(self, key: str) -> bool:
        """Claims a key; an owner that cannot be seen from here is listened to until it counts as dead, or lives.

        Of a claim that a dead process left on another machine, in another container, or here before the machine was
        started anew, nothing else tells: one look at it would find it held, however often a command is repeated.

        Raises:
            WriteError: as `acquire`.
        """
        path, store = self._path(key), backend(self._folder)
        deadline, first = time.monotonic() + STALE_SECONDS + 5, store.stamp(path)
        while not self.acquire(key):
            owner = self.owner(key)
            held = owner is not None and self.beside(owner) and not self.copied(owner)
            alive = held or store.stamp(path) != first
            if alive or time.monotonic() > deadline:
                return False
            time.sleep(LOOK_SECONDS)
        return True

    def _acquire(self, key: str, words: bytes) -> bool:
        path, store = self._path(key), backend(self._folder)
        for _ in range(2):
            # Before the owner is read: a claim made anew in between is then told by its stamp. And before one is made:
            # to be refused costs more requests than to look.
            stamp = store.stamp(path)
            if stamp is not None:
                return self._dead(key, stamp) and store.replace(path, words, unchanged=stamp)
            if store.create(path, words):
                return True
        return False

    def beside(self, owner: Mapping[str, Any]) -> bool:
        """Whether an owner's process, if it lives, can be seen from here; by its host alone in claims of before.

        Another user's that is hidden (`hidepid`) is none: it would be told by nothing from a later one of its number.
        """
        space = self._owner["space"]
        same = owner.get("host") == self._owner["host"] and owner.get("space", space) == space
        return same and process_start(int(owner["pid"])) != ""

    def copied(self, owner: Mapping[str, Any]) -> bool:
        """Whether a claim says that it was made in another folder, of which this one is a copy; earlier ones do not."""
        made_in = owner.get("folder")
        return made_in is not None and made_in != self._number()

    def _number(self, make: bool = False) -> int | None:
        """The folder's inode: no copy beside it has the same, and another mount of it has; None in a bucket."""
        if (path := on_disk(self._folder)) is None:
            return None
        if make:
            path.mkdir(parents=True, exist_ok=True)
        return path.stat().st_ino if path.exists() else None

    def owner(self, key: str) -> dict[str, Any] | None:
        """Returns who holds a key (`host`, `pid`, `since` in seconds since 1970), or None."""
        try:
            found = json.loads(backend(self._folder).read(self._path(key)))
        except (OSError, ValueError, RecursionError):
            return None
        pid = found.get("pid") if isinstance(found, dict) else None
        return found if type(pid) is int and 0 < pid < 2**31 else None

    def _dead(self, key: str, stamp: Hashable) -> bool:
        """Whether the owner of a claim is dead, as far as can be told."""
        before, now = self._seen.get(key), time.monotonic()
        if before is None:
            seen = self._seen[key] = _Seen(stamp, now, self.owner(key))
        else:  # a touch changes no owner: another one is taken for the first, until that is found dead
            seen = self._seen[key] = before if before.stamp == stamp else before._replace(stamp=stamp, since=now)
        if now - seen.since > STALE_SECONDS:
            return True
        if before is not None and self.ended(seen.owner):
            seen = self._seen[key] = seen._replace(owner=self.owner(key))
        return self.ended(seen.owner)

    def ended(self, owner: Mapping[str, Any] | None) -> bool:
        """Whether an owner is a process beside this one that is no more."""
        return owner is not None and self.beside(owner) and process_start(int(owner["pid"])) != owner.get("start")

    def release(self, key: str) -> None:
        """Gives up a claim; unknown keys do nothing."""
        with self._lock:
            if key in self._mine:
                del self._mine[key]
                owner = self.owner(key)
                if owner is not None and owner.get("token") == self._token:
                    backend(self._folder).remove(self._path(key))

    def _start(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._touch, name="claims", daemon=True)
            self._thread.start()

    def _touch(self) -> None:
        while not self._stop.wait(TOUCH_SECONDS):
            with self._lock:
                for key in list(self._mine):
                    try:
                        if self._still(key):
                            continue
                    except OSError:  # storage does not answer at the moment
                        continue
                    del self._mine[key]
                    self.lost.add(key)
                    log.warning("%s: was taken over, for this process gave no sign of life for a while", key)

    def _still(self, key: str) -> bool:
        """Touches a claim that was this process's, if it is so still; OSError where that cannot be told."""
        for wait in (0.2, 0.0):  # on a file system it may be away for a moment (`Backend.replace`)
            try:
                return backend(self._folder).touch(self._path(key), self._mine[key])
            except FileNotFoundError:
                time.sleep(wait)
        return False

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
