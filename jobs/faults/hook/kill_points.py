"""Commit points, and a process that SIGKILLs itself at one of them; nothing but the standard library is imported.

A commit point is a system call that changes storage, before or after it: ``fsync experts/draft/meta.json, before``. The
calls of `os` are wrapped, so the product needs no code for it and a new write is a new point by itself. The folder that
`install` gets says what to do:

* ``plan.json``: `storage`, and `kills`, a list of `point`, `role` ("" for any) and `hit` (1-based, over all processes);
  with `power`, the death is a machine's: what this process wrote and had not on the disk yet (fsync) is gone with it;
* ``points.log``: written when the plan says `record`: role and point of all that was passed;
* ``hits-<n>``, ``fired-<n>``: how often kill n's point was passed, and that it was carried out, which happens once.
"""

from __future__ import annotations

import builtins
import io
import json
import os
import re
import signal
from collections.abc import Callable, Iterator
from functools import wraps
from typing import Any

ROLES = (
    ("RayTrainWorker", "train worker"),
    ("TrainController", "train controller"),
    ("ModelKeeper", "state actor"),
    ("state", "state actor"),
    ("Evaluator", "evaluator"),
    ("MapWorker", "data worker"),
    ("Board", "board"),
    ("Measuring", "measuring service"),
)
"""What follows `ray::` in a process's title, and what the process is."""
CALLS = ("mkdir", "rename", "replace", "link", "unlink", "fsync", "truncate")
_HEX = re.compile(r"[0-9a-f]{12,}")
_DRAFT = re.compile(r"\.[^/]*\.\*")
_SESSION = re.compile(r"sessions/\d+-[^/]*-\*")
_open, _write, _close, _truncate = os.open, os.write, os.close, os.truncate


def _state(status: os.stat_result) -> tuple[int, int, int]:
    return status.st_ino, status.st_mtime_ns, status.st_size


def role_of(title: str) -> str:
    """Returns what a process is, by its title: one of `ROLES`, `driver`, or its program's or task's name."""
    if not title.startswith("ray::"):
        program = title.partition(" ")[0].rpartition("/")[2]
        return "driver" if "/jobs/" in title and program.startswith("python") else program
    words = title.removeprefix("ray::")
    return next((name for start, name in ROLES if start in words), words.partition(".")[0])


def role() -> str:
    """Returns what this process is."""
    with io.FileIO("/proc/self/cmdline") as file:
        return role_of(file.read().decode(errors="replace").replace("\0", " ").strip())


def label(path: str, storage: str) -> str | None:
    """Returns a path below the storage folder without what differs from run to run; None outside of it."""
    if not path.startswith(storage + "/"):
        return None
    named = _HEX.sub("*", path[len(storage) + 1 :])
    return _SESSION.sub("sessions/*", _DRAFT.sub("draft", named)).replace(" (deleted)", "")


class Points:
    """Watches this process's system calls, and ends it where the plan says so.

    Args:
        folder: where `plan.json` is.
    """

    def __init__(self, folder: str) -> None:
        self._folder = folder
        with open(f"{folder}/plan.json", encoding="utf-8") as file:
            plan = json.load(file)
        self._storage, self._kills = plan["storage"], list(enumerate(plan["kills"]))
        self._record, self._power = plan.get("record", False), plan.get("power", False)
        self._safe = {inode: (time, size) for _, (inode, time, size) in self._files()} if self._power else {}

    def _files(self) -> Iterator[tuple[str, tuple[int, int, int]]]:
        """Yields the storage's files with their inode, time of change and size."""
        for folder, _, names in os.walk(self._storage):
            for path in (f"{folder}/{name}" for name in names):
                yield path, _state(os.stat(path))

    def _cut_power(self) -> None:
        """Takes back what was written and is not on the disk: an appended end, or half of a new file."""
        for path, (inode, time, size) in list(self._files()):
            safe = self._safe.get(inode)
            if safe != (time, size):
                _truncate(path, min(size, safe[1]) if safe else size // 2)

    def wrap(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        """Returns a call of `os` that passes its two commit points."""

        @wraps(call)
        def wrapped(*args: Any, **options: Any) -> Any:
            where = self._label(args[-1] if name in ("rename", "replace", "link") else args[0])
            if where is None:
                return call(*args, **options)
            self.passed(f"{name} {where}, before")
            found = call(*args, **options)
            if name == "fsync" and self._power:
                inode, time, size = _state(os.fstat(args[0]))
                self._safe[inode] = time, size
            self.passed(f"{name} {where}, after")
            return found

        return wrapped

    def opening(self, call: Callable[..., Any]) -> Callable[..., Any]:
        """Returns an `open` that passes a point when a file was opened to be written, and one amid a raw write."""

        @wraps(call)
        def wrapped(file: Any, mode: str = "r", buffering: int = -1, *args: Any, **options: Any) -> Any:
            found = call(file, mode, buffering, *args, **options)
            where = self._label(file) if set(mode) & set("wax+") else None
            if where is None:
                return found
            self.passed(f"open {where}, after")
            if buffering or not isinstance(found, io.FileIO):
                return found
            found.close()
            return Torn(file, mode, self, where)

        return wrapped

    def _label(self, what: Any) -> str | None:
        try:
            path = os.readlink(f"/proc/self/fd/{what}") if isinstance(what, int) else os.path.abspath(os.fspath(what))
        except (OSError, TypeError):
            return None
        return label(os.fsdecode(path), self._storage)

    def passed(self, point: str) -> None:
        """Says that the process is at a point; does not return where it is to be killed there."""
        if self._record:
            self._append("points.log", f"{role()}\t{point}\n")
        for number, kill in self._kills:
            if kill["point"] != point or kill.get("role", "") not in ("", role()):
                continue
            if self._append(f"hits-{number}", ".") >= kill["hit"] and self._first(f"fired-{number}"):
                if self._power:
                    self._cut_power()
                os.kill(os.getpid(), signal.SIGKILL)

    def _append(self, name: str, text: str) -> int:
        """Appends to a file of the plan's folder; returns its size."""
        handle = _open(f"{self._folder}/{name}", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            _write(handle, text.encode())
            return os.fstat(handle).st_size
        finally:
            _close(handle)

    def _first(self, name: str) -> bool:
        try:
            handle = _open(f"{self._folder}/{name}", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError:
            return False
        _write(handle, role().encode())
        _close(handle)
        return True


class Torn(io.FileIO):
    """An unbuffered file whose every write passes a point with half of its bytes on the disk."""

    def __init__(self, file: Any, mode: str, points: Points, where: str) -> None:
        super().__init__(file, mode)
        self._points, self._where = points, where

    def write(self, data: Any) -> int:
        """Writes in two halves."""
        half = len(data) // 2
        super().write(data[:half])
        self._points.passed(f"write {self._where}, half")
        return half + super().write(data[half:])


def install(folder: str) -> None:
    """Wraps the calls of this process; once and for all, for it is a process that is to die.

    Args:
        folder: where `plan.json` is.
    """
    points = Points(folder)
    for name in CALLS:
        setattr(os, name, points.wrap(name, getattr(os, name)))
    os.remove = os.unlink
    opened = points.opening(io.open)
    io.open = builtins.open = opened  # type: ignore[assignment]
