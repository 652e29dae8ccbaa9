"""The driver's pulse: what it exports of a run or a sweep as a whole, every few seconds."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Collection, Mapping, Sequence

from condu_ray.orchestration.watch import telemetry
from condu_ray.plan.expert import PlannedExpert
from condu_ray.plan.sessions import MethodPlan
from condu_ray.store.backend import on_disk
from condu_ray.store.location import Place

log = logging.getLogger(__name__)

PULSE_SECONDS = 2.0


class Pulse:
    """Exports the driver's gauges; made when Ray is up.

    Args:
        run: name of the run or the sweep.
        storage: storage folder.
        found: experts that storage held at the start.
        missing: experts that it did not hold.
        plans: the methods' plans; none for a sweep, whose trials merge.
    """

    def __init__(
        self, run: str, storage: Place, found: int, missing: Sequence[PlannedExpert], plans: Sequence[MethodPlan] = ()
    ) -> None:
        self._run, self._storage, self._plans = run, storage, tuple(plans)
        self._missing = {expert.key for expert in missing}
        self._seen, self._due, self._warned = "", 0.0, False
        telemetry.inc("condu_cache_lookups_total", found, run=run, what="expert", result="hit")
        telemetry.inc("condu_cache_lookups_total", len(missing), run=run, what="expert", result="miss")
        telemetry.gauge("condu_experts_wanted", len(missing), run=run)
        for plan in self._plans:
            telemetry.gauge("condu_sessions_wanted", len(plan.sessions), run=run, method=plan.method.name)

    def beat(
        self,
        progress: object,
        there: Collection[str],
        handed: Mapping[str, int] | None = None,
        *,
        now: bool = False,
    ) -> None:
        """Exports where the run is, unless it did so less than `PULSE_SECONDS` ago; may be called at every turn.

        Args:
            progress: anything whose `repr` changes when the run gets on, such as steps, merges and measurements.
            there: keys of experts that are in storage.
            handed: sessions that were handed to the state actor, by method.
            now: whether to export however short ago it did so, as at the end.
        """
        clock = time.monotonic()
        if clock < self._due and not now:
            return
        self._due = clock + PULSE_SECONDS
        try:
            self._export(repr(progress), there, handed or {})
        except Exception as error:  # a file system that is away for a moment must not end a run
            if not self._warned:
                self._warned = True
                log.warning("the run's pulse is not exported: %s", error)

    def _export(self, seen: str, there: Collection[str], handed: Mapping[str, int]) -> None:
        if seen != self._seen:
            self._seen = seen
            telemetry.gauge("condu_last_progress_timestamp_seconds", time.time(), run=self._run)
        telemetry.gauge("condu_experts_done", sum(key in there for key in self._missing), run=self._run)
        for plan in self._plans:
            waiting = waiting_experts(plan, handed.get(plan.method.name, 0), there)
            telemetry.gauge("condu_merge_queue_experts", waiting, run=self._run, method=plan.method.name)
        if (folder := on_disk(self._storage)) is not None:  # a bucket is never full
            usage = shutil.disk_usage(folder)
            telemetry.gauge("condu_storage_free_bytes", usage.free, run=self._run)
            telemetry.gauge("condu_storage_free_ratio", usage.free / usage.total, run=self._run)

    def diverged(self) -> None:
        """Counts a fine-tuning that lost its numbers, just before the driver ends; its end sends what was counted."""
        telemetry.inc("condu_diverged_total", run=self._run)

    def trials(self, finished: int, left: int) -> None:
        """Exports how many of a sweep's trials are finished, with those of earlier calls, and how many are left."""
        telemetry.gauge("condu_trials", finished, run=self._run, state="finished")
        telemetry.gauge("condu_trials", left, run=self._run, state="left")


def waiting_experts(plan: MethodPlan, handed: int, there: Collection[str]) -> int:
    """Returns how many experts could be merged now: those in storage before the first that is not.

    Args:
        plan: the method's plan.
        handed: sessions that are merged, or handed out to be.
        there: keys of experts that are in storage.
    """
    count = 0
    for session in plan.sessions[handed:]:
        if session.expert is not None:
            if session.expert.key not in there:
                break
            count += 1
    return count
