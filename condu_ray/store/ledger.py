"""The merge ledger: one JSON line a committed session, appended after the session's artifact is in place.

A session's identity is a chain, as git's commits are: the hash of the identity before it, the task, the expert and the
merge settings. The same task sequence therefore finds its sessions again, another order shares the common prefix, and
nothing that was committed is ever overwritten.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from condu_ray.config import content_hash

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


class Ledger:
    """Append-only journal of one method in one run.

    A torn last line (a kill in the middle of a write) is cut off with a warning; any other damage is refused.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._entries: dict[str, Entry] = {}
        self._load()

    def _load(self) -> None:
        if not self.path.exists():
            return
        good = 0
        data = self.path.read_bytes()
        for number, line in enumerate(data.splitlines(keepends=True), start=1):
            try:
                entry = Entry(**json.loads(line))
                if not line.endswith(b"\n"):
                    raise ValueError("torn line")
            except (ValueError, TypeError) as error:
                if good + len(line) < len(data):
                    raise ValueError(f"{self.path}: line {number} is damaged ({error}); restore it") from error
                log.warning("%s: a torn last line was cut off; its session will be committed again", self.path)
                os.truncate(self.path, good)
                break
            self._entries[entry.state] = entry
            good += len(line)

    def get(self, state: str) -> Entry | None:
        """Returns the entry of a committed state, or None."""
        return self._entries.get(state)

    def __len__(self) -> int:
        return len(self._entries)

    def append(self, entry: Entry) -> None:
        """Commits an entry: after this returns it survives a power cut."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("ab") as file:
            file.write(json.dumps(asdict(entry)).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        self._entries[entry.state] = entry
