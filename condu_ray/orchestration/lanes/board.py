"""The work board: which experts are to be fine-tuned, who has taken which, and the latest word of every lane.

Lanes take what they can start on; they may come and go. The work of a lane that died, or fell silent with its node,
goes back to the board; a dead board comes back with the work that it was made with and asks storage what is left (what
a run posted later, it posts again). Two lanes never train one expert at a time: claims (store/claims.py) see to it.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from condu_ray.orchestration.watch.news import News, Word
from condu_ray.plan.expert import PlannedExpert, finished
from condu_ray.store.location import Place
from condu_ray.store.presence import present

SILENT_SECONDS = 60.0
"""Silence after which others may have what a lane took. One that lives and only starts slowly loses nothing."""
LOOK_SECONDS = 0.3
"""How often the board asks storage, at most, for experts that others are making, whoever wants to know."""
LOOK_SHARE = 0.05
"""Share of the time that these looks take at most: those of a store that is slow, or holds very much, become rarer."""
BEGIN_SECONDS = 30.0
"""How often it asks storage again for what training would start from: those who merge tell it (`merged`)."""


class Board:
    """Actor that hands out work and keeps the latest word of every lane.

    Args:
        experts: what is to be trained; more may be posted.
        lanes: lanes that share it.
        held: tasks whose experts nobody may train yet.
    """

    def __init__(
        self, experts: Sequence[PlannedExpert] = (), lanes: int = 1, held: frozenset[str] = frozenset()
    ) -> None:
        self._lanes, self._closed, self._held = max(1, lanes), False, held
        self._work: dict[str, PlannedExpert] = {}
        self._taken: dict[str, int] = {}
        self._heard: dict[int, float] = {}
        self._trained: set[str] = set()
        self._there: set[str] = set()
        self._words: dict[int, Word] = {}
        self._groups: dict[int, Any] = {}
        self._failure: str | None = None
        self._begun: set[Place] = set()  # what training starts from and was seen in storage, where it stays
        self._look_due = self._begin_due = float("-inf")
        self._asked: set[Place] = set()  # what was not there when it was asked for
        self.post(experts)

    def post(self, experts: Iterable[PlannedExpert]) -> None:
        """Adds experts; what is on the board already, or in storage, is not added again."""
        new = {one.key: one for one in experts if one.key not in self._work and one.key not in self._there}
        found = finished(new.values())
        self._there |= found
        self._work |= {key: expert for key, expert in new.items() if key not in found}

    def share(self, lanes: int) -> None:
        """Says how many lanes share the work from now on."""
        self._lanes = max(1, lanes)

    def hold(self, tasks: frozenset[str]) -> None:
        """Says of which tasks nobody may train experts yet; of all others one may."""
        self._held = tasks

    def close(self) -> None:
        """Says that nothing more will be posted, so that lanes end when all is done."""
        self._closed = True

    def take(self, lane: int, limit: int, but: Collection[str] = ()) -> list[PlannedExpert] | None:
        """Hands out experts to train one after the other.

        A chain (experts that start from one another) goes to one lane as far as the lane's share reaches, the longest
        chain first, for it decides when all is done; a share is filled up with single experts, early tasks first.

        Args:
            lane: number of the lane; what it had taken before and is not in storage is handed out anew.
            limit: experts at most.
            but: keys of experts that it does not want now, for other runs are at them.

        Returns:
            Experts in the order of training; empty when nothing can be started now; None when all is done.
        """
        self._heard[lane] = time.monotonic()
        free_again = {key: one for key, one in self._taken.items() if one == lane or self._silent(one)}
        for key in free_again:
            del self._taken[key]
        # A lane that begins anew may have put some of what it had into storage, and died before it could tell.
        self._look(anew=any(one == lane and key not in but for key, one in free_again.items()))
        if not self._work:
            return None if self._closed else []
        free = self._free()
        share = min(limit, -(-len(free) // self._lanes))
        followers: dict[str, list[PlannedExpert]] = {}
        for entry in free:
            if entry.before is not None:
                followers.setdefault(entry.before, []).append(entry)
        ready = [one for one in self._ready(free) if one.key not in but]
        length = {entry.key: _length(entry, followers) for entry in ready}
        chosen: dict[str, PlannedExpert] = {}
        for head in sorted(ready, key=lambda entry: (-length[entry.key], entry.position)):
            same = all(head.stream == one.stream for one in chosen.values())
            if len(chosen) < share and same and (not chosen or length[head.key] == 1):
                link: PlannedExpert | None = head
                while link is not None and len(chosen) < share:
                    chosen[link.key] = link
                    after = [one for one in followers.get(link.key, []) if one.stream == head.stream]
                    link = max(after, key=lambda one: _length(one, followers), default=None)
        for key in chosen:
            self._taken[key] = lane
        # Not by position: in a sweep, an expert may be late in one order and the start of a chain in another.
        return list(chosen.values())

    def waiting(self) -> int:
        """Returns how many experts no lane has taken, though training could start now."""
        return len(self._ready(self._free()))

    def _free(self) -> list[PlannedExpert]:
        """Those that nobody has taken and one may take."""
        return [one for one in self._work.values() if one.key not in self._taken and one.task not in self._held]

    def _ready(self, entries: Sequence[PlannedExpert]) -> list[PlannedExpert]:
        """Those that training could start on now; storage is asked for what is not known to be there or open."""
        starts = {one.needs: one.start for one in entries if one.needs is not None and one.start not in self._work}
        self._begun |= {needs for needs, start in starts.items() if start in self._there}
        asked = starts.keys() - self._begun
        if asked - self._asked or time.monotonic() >= self._begin_due:
            self._begun |= present(asked)
            self._asked, self._begin_due = asked - self._begun, time.monotonic() + BEGIN_SECONDS
        return [one for one in entries if one.needs is None or one.needs in self._begun]

    def merged(self, session: Place) -> None:
        """Who merges says that a session is committed, from which training may start."""
        self._begun.add(session)

    def begun(self, start: Place) -> bool:
        """Whether what training starts from is known to be there."""
        return start in self._begun

    def keep(self, lane: int, keys: Sequence[str]) -> None:
        """A lane says which of the experts that it was given it will train; the others are free again."""
        for key in [key for key, owner in self._taken.items() if owner == lane and key not in keys]:
            del self._taken[key]

    def _silent(self, lane: int) -> bool:
        return time.monotonic() - self._heard.get(lane, float("-inf")) > SILENT_SECONDS

    def _look(self, anew: bool = False) -> None:
        """Asks storage what is there by now, of whoever's making, unless it was asked a moment ago."""
        begin = time.monotonic()
        if begin < self._look_due and not anew:
            return
        for key in finished(self._work.values()):
            self._done(key)
        end = time.monotonic()
        self._look_due = end + max(LOOK_SECONDS, (end - begin) / LOOK_SHARE)

    def _done(self, key: str) -> None:
        self._there.add(key)
        self._work.pop(key, None)
        self._taken.pop(key, None)

    def trained(self, key: str) -> None:
        """A lane says that it has put an expert into storage."""
        self._trained.add(key)
        self._done(key)

    def tell(self, lane: int, word: Word) -> None:
        """A lane says where it is."""
        self._words[lane], self._heard[lane] = word, time.monotonic()

    def grouped(self, lane: int, group: Any) -> None:
        """A lane's controller says which placement group its workers have."""
        self._groups[lane] = group

    def group(self, lane: int) -> Any:
        """Returns a lane's placement group; None where none is known."""
        return self._groups.get(lane)

    def fail(self, message: str) -> None:
        """A lane says that it is of no use to try again."""
        self._failure = self._failure or message

    def read(self) -> News:
        """Returns what a driver watches."""
        self._look()
        words = {lane: word for lane, word in self._words.items() if not self._silent(lane)}
        return News(words, frozenset(self._trained), frozenset(self._there), frozenset(self._work), self._failure)


def _length(entry: PlannedExpert, followers: Mapping[str, Sequence[PlannedExpert]]) -> int:
    """Experts of the longest chain that begins here."""
    count, front = 0, [entry]
    while front:
        count += 1
        front = [after for one in front for after in followers.get(one.key, ())]
    return count
