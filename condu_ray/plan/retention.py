"""Which sessions' files stay (`--keep_sessions`): those of the others are let go once nothing of the run wants them."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

from condu_ray.methods.session import let_go
from condu_ray.plan.sessions import MethodPlan
from condu_ray.store.ledger import Entry

if TYPE_CHECKING:
    from condu_ray.plan.stored_run import StoredRun


def stays(rule: str, position: int, count: int) -> bool:
    """Whether the files of the session at a 0-based position stay when `count` are committed.

    Args:
        rule: `all`; `last`; or `doubling`: sessions 1, 2, 4, 8, ... and the last.
        position: 0-based.
        count: committed sessions.
    """
    number = position + 1
    return rule == "all" or number >= count or (rule == "doubling" and number & (number - 1) == 0)


def let_old_go(found: StoredRun) -> None:
    """Lets go of the sessions of a finished run, as while it goes on: of what was on trial all stay until then.

    Raises:
        WriteError: one cannot be removed.
    """
    retention = Retention(found.config.keep_sessions)
    for one in found.methods.values() if found.complete else ():
        for entry in one.entries:
            retention.committed(one.plan, entry)
            retention.measured(one.plan, entry)


class Retention:
    """Lets a run's sessions go while it goes on.

    Args:
        rule: as of `stays`.
    """

    def __init__(self, rule: str) -> None:
        self._rule = rule
        self._committed: dict[str, int] = defaultdict(int)
        self._measured: dict[str, dict[int, Entry]] = defaultdict(dict)

    def committed(self, plan: MethodPlan, entry: Entry) -> None:
        """Takes word that a session was committed: what it was merged into, and trained from, is wanted no more."""
        self._committed[plan.method.name] = max(self._committed[plan.method.name], entry.position + 1)
        self._look(plan)

    def measured(self, plan: MethodPlan, entry: Entry) -> None:
        """Takes word that a committed session is measured by all protocols."""
        self._measured[plan.method.name][entry.position] = entry
        self._look(plan)

    def _look(self, plan: MethodPlan) -> None:
        method, count = plan.method, self._committed[plan.method.name]
        measured = self._measured[method.name]
        for position in [one for one in measured if not stays(self._rule, one, count)]:
            learned = plan.sessions[: position + 1]
            keys = tuple(one.expert.key if one.expert else None for one in learned)
            let_go(method, measured.pop(position), tuple(one.task for one in learned), keys, self._rule)
