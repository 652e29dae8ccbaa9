"""The measuring service: one pool of evaluators for all who merge, and nothing measured twice."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Coroutine, Sequence
from dataclasses import replace
from typing import Any

from condu_ray.orchestration.watch import telemetry
from condu_ray.plan.measurement import Measurement, Wanted
from condu_ray.store.location import Place
from condu_ray.store.measurements import Accuracy, read_measurement, write_measurement

MEASURING = "measuring"
"""The service's name in the run's namespace."""
IN_HAND = 2
"""Measurements that an evaluator has been given: one in hand and one queued, so that it never waits for the service."""


class Measuring:
    """Actor that shares evaluators among all who want something measured.

    An evaluator is given measurements of the state that it had last, whose features it keeps, as long as there are any;
    equal ones that are asked for at the same time are made once; what storage holds is not made at all. One is given
    nothing before it says that it is here, and what it had when it died is given to others: where its node has gone,
    there may never be room for it again.

    Args:
        storage: storage folder, absolute.
        run: name of the run or the sweep.
    """

    def __init__(self, storage: Place, run: str = "") -> None:
        self._storage, self._run = storage, run
        self._evaluators: list[Any] = []
        self._load: list[int] = []
        self._last: list[str | None] = []
        self._here: set[int] = set()
        self._failure: BaseException | None = None
        self._waiting: deque[tuple[Wanted, asyncio.Future[Accuracy]]] = deque()
        self._running: dict[str, asyncio.Future[Accuracy]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def add(self, evaluators: Sequence[Any]) -> None:
        """Takes evaluators into the pool; their handles are those of actors that restart by themselves."""
        self._evaluators += evaluators
        self._load += [0] * len(evaluators)
        self._last += [None] * len(evaluators)
        for index in range(len(self._evaluators) - len(evaluators), len(self._evaluators)):
            self._begin(self._await(index))

    async def status(self) -> tuple[int, int]:
        """Returns how many measurements wait for an evaluator, and how many evaluators there are."""
        return len(self._waiting), len(self._evaluators)

    async def measure(self, wanted: Sequence[Wanted]) -> list[tuple[Accuracy, bool]]:
        """Makes measurements.

        Args:
            wanted: what to measure; and features to be made, which storage lacks.

        Returns:
            For each what was found (of features: nothing to read), and whether somebody had measured it before.
        """
        return list(await asyncio.gather(*(self._one(one) for one in wanted)))

    async def _one(self, wanted: Wanted) -> tuple[Accuracy, bool]:
        running = self._running.get(wanted.key)
        stored = running is None and isinstance(wanted, Measurement)
        found = read_measurement(self._storage, wanted.key) if stored else None
        before = running is not None or found is not None
        self._count("hit" if before else "miss")
        if found is not None:
            return found, True
        if running is None:
            running = asyncio.get_running_loop().create_future()
            self._running[wanted.key] = running
            self._waiting.append((wanted, running))
            self._dispatch()
        return await asyncio.shield(running), before

    def _dispatch(self) -> None:
        """Gives evaluators what waits, as far as they have a hand free."""
        for index in sorted(self._here):
            while self._waiting and self._load[index] < IN_HAND:
                wanted, promise = self._next(index)
                self._load[index] += 1
                self._last[index] = wanted.state
                self._begin(self._make(index, wanted, promise))
        while self._waiting and self._failure is not None:
            self._fail(*self._waiting.popleft(), self._failure)

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)  # the loop itself would forget it
        task.add_done_callback(self._tasks.discard)

    async def _await(self, index: int) -> None:
        """Waits until an evaluator is here (again), however often Ray starts it."""
        try:
            await self._evaluators[index].here.remote()
            self._here.add(index)
        except BaseException as error:  # it cannot begin, as where its node does not see the data: whoever asks is told
            self._failure = error
        self._dispatch()

    def _fail(self, wanted: Wanted, promise: asyncio.Future[Accuracy], error: BaseException) -> None:
        del self._running[wanted.key]
        promise.set_exception(error)
        promise.exception()  # nobody may be waiting any more
        self._waits()

    def _next(self, index: int) -> tuple[Wanted, asyncio.Future[Accuracy]]:
        """Takes one of the state that this evaluator had last, or the first."""
        for position, (wanted, _) in enumerate(self._waiting):
            if wanted.state == self._last[index]:
                found = self._waiting[position]
                del self._waiting[position]
                return found
        return self._waiting.popleft()

    async def _make(self, index: int, wanted: Wanted, promise: asyncio.Future[Accuracy]) -> None:
        from ray.exceptions import RayActorError

        try:
            # Ray would keep it for this evaluator, however long that finds no room.
            found: Accuracy = await self._evaluators[index].measure.options(max_task_retries=0).remote(wanted)
            if isinstance(wanted, Measurement):
                if wanted.config.run_name != self._run:  # a trial's, whose sweep counts what it had made
                    found = replace(found, run=wanted.config.run_name)
                write_measurement(self._storage, wanted.key, found)
                telemetry.observe("condu_measurement_seconds", found.seconds, run=self._run, method=wanted.method)
            del self._running[wanted.key]
            promise.set_result(found)
            self._waits()
        except RayActorError:
            self._waiting.appendleft((wanted, promise))
            if index in self._here:
                self._here.discard(index)
                self._last[index] = None
                self._begin(self._await(index))
        except BaseException as error:  # whoever asked gets it
            self._fail(wanted, promise, error)
        finally:
            self._load[index] -= 1
            self._dispatch()

    def _count(self, result: str) -> None:
        telemetry.inc("condu_cache_lookups_total", run=self._run, what="measurement", result=result)
        self._waits()

    def _waits(self) -> None:
        telemetry.gauge("condu_measurements_waiting", len(self._running), run=self._run)
