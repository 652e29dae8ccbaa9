"""What Ray Train's controller sees of a lane that fails, counted."""

from __future__ import annotations

from typing import Any

from ray.train import UserCallback

from condu_ray.orchestration.watch import telemetry


class CountFaults(UserCallback):
    """Runs in a lane's controller: counts every failure of its workers, after each of which they start again.

    Args:
        run: the run's name.
    """

    def __init__(self, run: str) -> None:
        self._run = run

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """Counts one fault, however many workers it took down."""
        telemetry.inc("condu_faults_total", run=self._run, part="lane")
