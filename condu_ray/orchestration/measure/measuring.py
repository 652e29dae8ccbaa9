"""The measuring service of a sweep: one pool of evaluators for all trials, and nothing measured twice."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from condu_ray.orchestration.watch import telemetry
from condu_ray.plan.measurement import Unit
from condu_ray.store.measurements import read_measurement, write_measurement

NAME = "measuring"
"""The service's name in the run's namespace."""


class Measuring:
    """Actor that shares evaluators among trials.

    Units of one state go to one evaluator, which keeps the features of its experts; equal units that are asked for at
    the same time are measured once; what storage holds is not measured at all.

    Args:
        storage: storage folder, absolute.
        evaluators: handles of evaluator actors, which restart by themselves.
        run: the sweep's name.
    """

    def __init__(self, storage: str, evaluators: Sequence[Any], run: str = "") -> None:
        self._storage, self._evaluators, self._run = Path(storage), list(evaluators), run
        self._load = [0] * len(self._evaluators)
        self._states: dict[str, int] = {}
        self._running: dict[str, asyncio.Future[dict[str, Any]]] = {}

    async def add(self, evaluators: Sequence[Any]) -> None:
        """Takes further evaluators into the pool."""
        self._evaluators += evaluators
        self._load += [0] * len(evaluators)

    async def measure(self, config: str, units: Sequence[Unit]) -> list[tuple[dict[str, Any], bool]]:
        """Measures units.

        Args:
            config: the trial's configuration as JSON.
            units: what to measure.

        Returns:
            For each unit what was found, and whether somebody had measured it before.
        """
        return list(await asyncio.gather(*(self._one(config, unit) for unit in units)))

    async def _one(self, config: str, unit: Unit) -> tuple[dict[str, Any], bool]:
        found = read_measurement(self._storage, unit.key)
        if found is not None:
            self._count("hit")
            return found, True
        if unit.key in self._running:
            self._count("hit")
            return await asyncio.shield(self._running[unit.key]), True
        promise: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._running[unit.key] = promise
        self._count("miss")
        index = self._choose(unit.entry.state)
        self._load[index] += 1
        try:
            result: dict[str, Any] = await self._evaluators[index].measure.remote(config, unit)
            write_measurement(self._storage, unit.key, result)
            promise.set_result(result)
            telemetry.observe("condu_measurement_seconds", result["seconds"], run=self._run, method=unit.method)
            return result, False
        except BaseException as error:
            promise.set_exception(error)
            promise.exception()  # nobody may be waiting for it: it is raised here already
            raise
        finally:
            self._load[index] -= 1
            del self._running[unit.key]
            telemetry.gauge("condu_measurements_waiting", len(self._running), run=self._run)

    def _count(self, result: str) -> None:
        telemetry.inc("condu_cache_lookups_total", run=self._run, what="measurement", result=result)
        telemetry.gauge("condu_measurements_waiting", len(self._running), run=self._run)

    def _choose(self, state: str) -> int:
        """The evaluator that has the state, unless it has much more to do than another."""
        least = min(range(len(self._load)), key=self._load.__getitem__)
        owner = self._states.get(state, least)
        if self._load[owner] > self._load[least] + 16:
            owner = least
        self._states[state] = owner
        return owner
