"""The lanes of a run or a sweep, with the board that they share: started, watched, and more of them as nodes come."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from typing import Any

import ray

from condu_ray.config import Experiment
from condu_ray.orchestration.cluster.background import background
from condu_ray.orchestration.cluster.env import named
from condu_ray.orchestration.cluster.failure import RunError, told
from condu_ray.orchestration.cluster.room import ResourceError, Room, room_for
from condu_ray.orchestration.lanes.board import Board
from condu_ray.orchestration.lanes.fit import Fit
from condu_ray.orchestration.lanes.lane import Lane
from condu_ray.orchestration.lanes.places import Places
from condu_ray.orchestration.watch.news import News
from condu_ray.plan.expert import PlannedExpert, finished
from condu_ray.store.location import Place

GROW_SECONDS = 10.0
"""How often the driver looks whether the cluster has grown."""
END_SECONDS, SOON_SECONDS = 60.0, 10.0
"""How long lanes whose experts are all there may take to close, and after how much of it those that have no place (any
more) are not waited for."""
BOARD = "board"
"""The board's name in the run's namespace."""


class Crew:
    """Lanes on a cluster that is up.

    Args:
        config: settings of the run, or those that all trials of the sweep share; `run` names it.
        lane: makes a lane from its number and the board's handle.
        experts: all that will be needed; who merges posts what it waits for.
        room: what the cluster had room for at the start.
        folder: where Ray Train keeps its own state.
        held: tells the tasks of which nothing may be trained yet.
    """

    def __init__(
        self,
        config: Experiment,
        lane: Callable[[int, Any], Lane],
        experts: Sequence[PlannedExpert],
        room: Room,
        folder: Place,
        held: Callable[[], frozenset[str]] = frozenset,
    ) -> None:
        self._config, self._lane, self._room, self._folder = config, lane, room, folder
        self._held, self._holds = held, bool(held())
        self._keys = {expert.key for expert in experts}
        there = finished(experts)
        self.missing = [expert for expert in experts if expert.key not in there]
        self.lanes = min(room.lanes, len(self.missing))
        # A lane must not wait for a state that nobody is making yet, so what starts from one is posted by who makes it.
        first = [expert for expert in experts if expert.state is None]
        keeper = ray.remote(Board).options(
            num_cpus=0, max_restarts=-1, max_task_retries=-1, **named(BOARD, config.run_name)
        )
        self.board: Any = keeper.remote(first, self.lanes, held())
        self._places = Places()
        self._fits: list[Fit] = []
        self._futures: list[Future[None]] = []
        self._looked = time.monotonic()
        self._told = ""

    def start(self) -> None:
        """Starts the lanes, each in a thread of the driver."""
        # Here, for threads that import it at once may find half of it.
        import condu_ray.orchestration.lanes.controller  # noqa: F401

        for _ in range(self.lanes):
            self._add()

    def _add(self) -> None:
        number = len(self._fits)
        self._fits.append(Fit(self._lane(number, self.board), self._room, self._folder, self._places))
        self._futures.append(background(self._fits[number].run))

    @property
    def working(self) -> int:
        """Lanes that have not ended."""
        return sum(not future.done() for future in self._futures)

    @property
    def free(self) -> int:
        """Lanes that there is room for and that nobody needs (any more): others may have what they would have."""
        return max(0, self._room.lanes - self.working)

    def look(self, say: Callable[[str], None]) -> News:
        """Returns what the board has heard; starts further lanes where nodes have come, ends them when all is done.

        Args:
            say: takes a line for people.

        Raises:
            RunError: a lane is lost for good, and no lane has said why (`News.failure`).
        """
        if self._holds:  # again and again: a board that died comes back as it was made
            self.board.hold.remote(self._held())
        news: News = ray.get(self.board.read.remote())
        if news.failure:
            return news
        for number, future in enumerate(self._futures):
            if future.done() and (error := future.exception()) is not None:
                words = f"lane {number} failed: {told(error)}"
                raise RunError(f"{words}. What was committed stays; the same command goes on from there.") from error
        if self._keys <= news.there:
            if self.working:  # again and again: a board that died comes back open
                self.board.close.remote()
        else:
            self._grow(say)
        return news

    def _grow(self, say: Callable[[str], None]) -> None:
        """Starts further lanes where nodes have come since the start and experts wait."""
        now = time.monotonic()
        if not self._futures or now - self._looked < GROW_SECONDS:
            return
        self._looked = now
        words, room = self._unplaced()
        if words and words != self._told:
            say(words)
        self._told = words
        if words or self._config.training.lanes:
            return
        for _ in range(min(room - self.working, ray.get(self.board.waiting.remote()))):
            self._add()
        if len(self._futures) > self.lanes:
            say(f"{len(self._futures) - self.lanes} more lanes: the cluster has grown")
            self.lanes = len(self._futures)
            self.board.share.remote(self.lanes)

    def _unplaced(self) -> tuple[str, int]:
        """Returns for what lanes wait that have lost their place, in words, and for how many lanes there is room."""
        working = self.working
        try:
            room = room_for(self._config).lanes
        except ResourceError as error:  # of so many lanes; those that are placed go on, others wait by themselves
            return f"lanes wait for a node, for nodes have gone: {error}" if working else "", 0
        if room >= working:
            return "", room
        words = f"{working - room} of {working} lanes wait for a node: nodes have gone, and there is room for {room}"
        return words, room

    def close(self) -> None:
        """Lets the lanes end: a fit that still closes its workers must not find its cluster gone."""
        self.board.close.remote()
        _, left = wait(self._futures, timeout=SOON_SECONDS)
        if left and not self._unplaced()[0]:
            _, left = wait(left, timeout=END_SECONDS - SOON_SECONDS)
        if left:  # they have nothing to do, and would wait for a node
            self.abort()
            wait(left, timeout=SOON_SECONDS)

    def abort(self) -> None:
        """Ends the lanes at once, whatever they do; does not wait for it."""
        for fit in self._fits:
            fit.end()
