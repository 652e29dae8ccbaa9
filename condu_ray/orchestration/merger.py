"""The merging loop of a run, and of each trial of a sweep: sessions in task order, each measured once committed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import ray

from condu_ray.orchestration.cluster.failure import not_killed
from condu_ray.orchestration.watch.news import News
from condu_ray.plan.measurement import Encoding, Wanted
from condu_ray.plan.results import Results, SessionResult
from condu_ray.plan.retention import Retention
from condu_ray.plan.sessions import MethodPlan, PlannedSession
from condu_ray.store.ledger import Entry

ADVICE = (
    "Give the driver's node (a cluster's head) more memory: a merge takes some six times an expert (cluster/sizing.py "
    "of condu_ray's sources works it out), or let --merging.shards actors on several nodes hold condu's state."
)
"""What to do where who merges lacks memory."""

Merge = Callable[[str, PlannedSession], Any]
"""Merges a method's next expert; returns a reference to the ledger's entry."""


class Merger:
    """Hands every method's next expert to who merges, and what was committed to who measures.

    Args:
        results: of the run, which fill; their plan says what is merged, by which methods.
        merge: who merges.
        board: the board's handle, for the experts that are wanted.
        measuring: the measuring service's handle.
    """

    def __init__(self, results: Results, merge: Merge, board: Any, measuring: Any) -> None:
        self.results, plan = results, results.plan
        self._merge, self._board, self._measuring = merge, board, measuring
        self._experts = {expert.key: expert for expert in plan.experts}
        self._merging: dict[Any, MethodPlan] = {}
        self._measured: dict[Any, Sequence[Wanted]] = {}
        self._sessions: dict[Any, tuple[MethodPlan, Entry]] = {}
        # What is on trial may be dropped again: until then the session before it is the last one.
        self._retention = Retention("all" if results.trial else plan.config.keep_sessions)
        self.handed = {one.method.name: 0 for one in plan.methods}
        self.measured = self.reused = 0
        self.own: set[str] = set()  # keys of those that were made for this trial, by a process that was killed too

    @property
    def state(self) -> tuple[object, ...]:
        """Something that changes whenever the loop gets on."""
        return tuple(self.handed.values()), len(self._merging), len(self._measured), self.measured

    @property
    def pending(self) -> int:
        """Measurements that were asked for and are not there yet."""
        return sum(len(wanted) for wanted in self._measured.values())

    def advance(self, news: News) -> list[SessionResult]:
        """Does what can be done now, and waits for nothing.

        Args:
            news: the board's latest.

        Returns:
            Sessions whose last measurement came in.
        """
        if not self._experts.keys() <= news.there | news.open:  # at the start, and when a board that died is back
            self._board.post.remote(list(self._experts.values()))
        self._take_merged()
        self._hand_over(news)
        return self._take_measured()

    def _hand_over(self, news: News) -> None:
        busy = {plan.method.name for plan in self._merging.values()}
        for plan in self.results.plan.methods:
            name = plan.method.name
            if name in busy or self.handed[name] == len(plan.sessions):
                continue
            session = plan.sessions[self.handed[name]]
            if session.expert is None or session.expert.key in news.there:
                self._merging[self._merge(name, session)] = plan
                self.handed[name] += 1

    def _take_merged(self) -> None:
        for reference in _ready(self._merging):
            # An actor that is ended loses all that it was given: which of them ended it nobody knows.
            given = ", ".join(f"{one.method.name}: {self._task(one)}" for one in self._merging.values())
            with not_killed(f"the actor that merges ({given})", ADVICE):
                entry: Entry = ray.get(reference)
            plan = self._merging.pop(reference)
            after = plan.sessions[entry.position + 1 :][:1]
            if plan.method.starts_from == "state" and after and after[0].expert and after[0].expert.needs:
                self._board.merged.remote(after[0].expert.needs)
            measurements = self.results.measurements(plan, entry)
            wanted: list[Wanted] = [*measurements, *self.results.encodings(measurements)]
            asked = self._measuring.measure.remote(wanted)
            self._measured[asked], self._sessions[asked] = wanted, (plan, entry)
            self._retention.committed(plan, entry)

    def _task(self, plan: MethodPlan) -> str:
        return plan.sessions[self.handed[plan.method.name] - 1].task

    def _take_measured(self) -> list[SessionResult]:
        finished = []
        for reference in _ready(self._measured):
            wanted = self._measured.pop(reference)
            for one, (accuracy, before) in zip(wanted, ray.get(reference), strict=True):
                if isinstance(one, Encoding):
                    continue
                self.measured, self.reused = self.measured + 1, self.reused + before
                if accuracy.run == self.results.plan.config.run_name:
                    self.own.add(one.key)
                session = self.results.add(one, accuracy)
                if session is not None:
                    finished.append(session)
            self._retention.measured(*self._sessions.pop(reference))
        return finished


def _ready(references: dict[Any, Any]) -> list[Any]:
    """References whose value, or error, is there."""
    if not references:
        return []
    found: list[Any] = ray.wait(list(references), num_returns=len(references), timeout=0)[0]
    return found
