"""The merge ledger: one JSON line a committed session, appended after the session's artifact is in place.

A session's identity is a chain, as git's commits are: the hash of the identity before it, the task, the expert and the
merge settings. The same task sequence therefore finds its sessions again, another order shares the common prefix, and
nothing that was committed is ever overwritten. Each line carries a checksum of its own.

A line that is a `Mark` says that sessions before it count no more: the run was rolled back, a task taught again or
forgotten. Their lines stay; a session that is committed after all is a line once more.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from condu_ray.settings import content_hash
from condu_ray.store.artifacts import writing
from condu_ray.store.backend import backend
from condu_ray.store.location import Place

log = logging.getLogger(__name__)

ROOT = "pretrained"
"""The identity of the state before the first session."""


def state_id(parent: str, method: str, task: str, expert: str | None, settings: Mapping[str, Any]) -> str:
    """Returns the identity (16 hex digits) of the state that merging `expert` into `parent` gives."""
    return content_hash([parent, method, task, expert, dict(settings)])[:16]


@dataclass(frozen=True)
class Entry:
    """One committed session.

    Attributes:
        position: 0-based place in the order of tasks.
        task: name of the task.
        expert: the expert's key; None for a method that trains nothing.
        parent: identity of the state before.
        state: identity of the state after.
        seconds: wall time of the merge.
    """

    position: int
    task: str
    expert: str | None
    parent: str
    state: str
    seconds: float


@dataclass(frozen=True)
class Mark:
    """Sessions that count no more from here on.

    Attributes:
        mark: what was done: `add`, `again`, `rollback`, `forget` or `import`.
        task: the task that it was done with; None for a rollback.
        undone: identities of the states, in the order of their commits.
        at: when, in UTC, as ISO 8601 has it.
    """

    mark: str
    task: str | None
    undone: tuple[str, ...]
    at: str


class LedgerError(ValueError):
    """A ledger that is damaged, or of a newer release; the message names the file and the line, and what to do."""


class _UnknownError(ValueError):
    """A line that is as it was written, and says what this release has no word for."""


def to_line(line: Entry | Mark) -> bytes:
    """Returns an entry or a mark as the line of JSON that stands for it, with its checksum."""
    values = asdict(line)
    return json.dumps(values | {"seal": content_hash(values)[:16]}).encode() + b"\n"


def from_line(line: bytes) -> Entry | Mark:
    """Returns what a line says; one without a checksum was written before there were any.

    Raises:
        ValueError: the line is torn or damaged, or of a newer release.
    """
    if not line.endswith(b"\n"):
        raise ValueError("torn line")
    try:
        values = json.loads(line)
        seal = values.pop("seal", None) if isinstance(values, dict) else None
    except RecursionError as error:
        raise ValueError(str(error)) from error
    if seal is not None and seal != content_hash(values)[:16]:
        raise ValueError("differs from its checksum")
    try:
        return _made(values)
    except ValueError as error:
        raise (_UnknownError if seal is not None else ValueError)(str(error)) from error


def _made(values: Any) -> Entry | Mark:
    try:
        made: Entry | Mark = Mark(**values) if "mark" in values else Entry(**values)
    except TypeError as error:
        raise ValueError(str(error)) from error
    if isinstance(made, Mark):
        states: list[str] = values["undone"]
        texts = [made.mark, made.at, made.task or ""]
        if not isinstance(states, list) or not all(isinstance(text, str) for text in (*texts, *states)):
            raise ValueError("a value of another type")
        return replace(made, undone=tuple(states))
    texts = [made.task, made.parent, made.state, "" if made.expert is None else made.expert]
    numbers = isinstance(made.position, int) and isinstance(made.seconds, int | float)
    if not numbers or not all(isinstance(text, str) for text in texts):
        raise ValueError("a value of another type")
    return made


def read_history(path: Place) -> tuple[list[Entry | Mark], bool]:
    """Reads all lines of a ledger without changing it.

    Returns:
        What they say, and whether a torn or damaged last line follows them.

    Raises:
        LedgerError: it cannot be read, another line than the last is damaged, or one is of a newer release.
    """
    try:
        lines = backend(path).lines(path)
    except OSError as error:
        raise LedgerError(
            f"{path}: cannot be read ({error.strerror or error}); look at the disk and its permissions"
        ) from error
    found: list[Entry | Mark] = []
    for number, line in enumerate(lines, start=1):
        try:
            found.append(from_line(line))
        except _UnknownError as error:  # which no kill leaves, and which counts: it must not be cut off as torn
            raise LedgerError(
                f"{path}: line {number} is of a newer condu_ray ({error}); update condu_ray, or run under another name"
            ) from error
        except ValueError as error:
            if number < len(lines):
                raise LedgerError(
                    f"{path}: line {number} is damaged ({error}); restore it, or remove the file: its sessions are "
                    "then committed again, from the experts in storage"
                ) from error
            return found, True
    return found, False


def counting(history: Iterable[Entry | Mark]) -> dict[str, Entry]:
    """Returns the entries that count, by state, in the order of their commits."""
    found: dict[str, Entry] = {}
    for line in history:
        if isinstance(line, Entry):
            found[line.state] = line
        else:
            for state in line.undone:
                found.pop(state, None)
    return found


def read_entries(path: Place) -> tuple[list[Entry], bool]:
    """Reads the sessions that count, as `read_history`."""
    history, torn = read_history(path)
    return list(counting(history).values()), torn


class Ledger:
    """Append-only journal of one method in one run.

    A torn or damaged last line (a kill in the middle of a write) is cut off with a warning; other damage is refused.

    Raises:
        LedgerError: as `read_entries`.
    """

    def __init__(self, path: Place) -> None:
        self.path = path
        self._entries: dict[str, Entry] = {}
        self._history: list[Entry | Mark] = []
        if not backend(path).exists(path):
            return
        self._history, torn = read_history(path)
        self._entries = counting(self._history)
        if torn:
            log.warning("%s: a torn last line was cut off; its session will be committed again", path)
            self._rewrite()

    def get(self, state: str) -> Entry | None:
        """Returns the entry of a committed state, or None."""
        return self._entries.get(state)

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def entries(self) -> tuple[Entry, ...]:
        """The sessions that count, in the order of their commits."""
        return tuple(self._entries.values())

    @property
    def history(self) -> tuple[Entry | Mark, ...]:
        """All lines."""
        return tuple(self._history)

    def append(self, entry: Entry) -> None:
        """Commits an entry: after this returns it survives a power cut.

        Raises:
            WriteError: the disk is full or fails; the ledger is as it was before.
        """
        with writing(self.path):
            backend(self.path).append(self.path, to_line(entry))
        self._history.append(entry)
        self._entries[entry.state] = entry

    def mark(self, mark: Mark) -> None:
        """Has sessions count no more; the storage has to be marked as one that older versions do not read.

        Raises:
            WriteError: as `append`.
        """
        with writing(self.path):
            backend(self.path).append(self.path, to_line(mark))
        self._history.append(mark)
        self._entries = counting(self._history)

    def drop(self, state: str) -> bool:
        """Takes an entry out, so that its session is committed anew; False when it is not there.

        Raises:
            WriteError: the ledger is as it was before.
        """
        if self._entries.pop(state, None) is None:
            return False
        self._history = [line for line in self._history if isinstance(line, Mark) or line.state != state]
        self._rewrite()
        return True

    def _rewrite(self) -> None:
        with writing(self.path):
            backend(self.path).rewrite(self.path, [to_line(line) for line in self._history])
