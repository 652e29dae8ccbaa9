"""The check before the bill: theta0's accuracies, by evaluators that leave again, for encoders want their room."""

from __future__ import annotations

from collections.abc import Callable

import ray
from ray.util import ActorPool

from condu_ray.orchestration.cluster.room import Room
from condu_ray.orchestration.lanes.crew import RunError
from condu_ray.orchestration.measure.actor import start_evaluator
from condu_ray.plan.claim import Claim, claim
from condu_ray.plan.preflight import Checked
from condu_ray.report.zero_shot import differing, verdict, zero_shot_lines
from condu_ray.store.measurements import read_measurement, write_measurement


def check_zero_shot(checked: Checked, precision: str, room: Room, say: Callable[[str], None]) -> None:
    """Compares theta0 with what is published of it, where the run claims a paper's figures; says go or stop.

    What is measured is stored under the keys of `zero-shot`, so that it is not measured again.

    Args:
        checked: the run's configuration, tasks and backbone.
        precision: resolved precision.
        room: how many evaluators, with how much GPU.
        say: takes a line for people.

    Raises:
        RunError: an accuracy is not as published, and `on_mismatch` is `stop`.
    """
    claimed = claim(checked, precision)
    if claimed is None:
        return
    if claimed.why_not:
        say(f"published zero-shot accuracies ({claimed.source}) are not compared: {claimed.why_not}")
        return
    _measure(claimed, checked, precision, room, say)
    found = claimed.measured()
    assert found is not None, "all of them are in storage now"
    if not differing(found):
        say(f"{verdict(found)}: go")
        return
    text = f"{verdict(found)}.\n{zero_shot_lines(found)}"
    if checked.config.on_mismatch == "stop":
        raise RunError(f"{text}\nNothing was trained. To go on all the same: --on_mismatch warn")
    say(f"{text}\nOn it goes, for --on_mismatch is warn")


def _measure(claimed: Claim, checked: Checked, precision: str, room: Room, say: Callable[[str], None]) -> None:
    storage = checked.config.absolute().storage
    missing = [one for one in claimed.measurements if read_measurement(storage, one.key) is None]
    if not missing:
        return
    say(f"zero-shot accuracies of {len(missing)} tasks, to be compared with the published ones before training")
    evaluators = [
        start_evaluator(checked.config, checked, precision, room) for _ in range(min(room.evaluators, len(missing)))
    ]
    try:
        measured = ActorPool(evaluators).map(lambda evaluator, one: evaluator.measure.remote(one), missing)
        for one, accuracy in zip(missing, measured, strict=True):
            write_measurement(storage, one.key, accuracy)
    finally:
        for evaluator in evaluators:
            ray.kill(evaluator)
