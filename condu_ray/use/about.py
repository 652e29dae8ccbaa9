"""What a run says of a state that is served: where its data and accuracies stand, and how its experts are mixed."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from condu_ray.methods import Method, ModelState
from condu_ray.plan.stored_run import StoredRun
from condu_ray.settings import content_hash

if TYPE_CHECKING:
    from pandas import DataFrame

log = logging.getLogger(__name__)

DATA = ("data", "more_data", "task_data", "probe")
"""Settings that say where data are: places of a machine, which nobody else has."""


def calibration(found: StoredRun, method: str, session: int) -> str | None:
    """Returns what names the temperatures by which a state's experts are mixed, once each of them was measured.

    Args:
        found: the run.
        method: one of its methods.
        session: 0-based.

    Returns:
        None: it mixes by none, or one is not measured yet.
    """
    one = found.methods[method].method
    if not _mixes_by_temperature(found, one):
        return None
    learned = found.methods[method].entries[: session + 1]
    # Nothing is loaded of it: who follows a run asks every few seconds.
    state = ModelState(learned[-1].state, tuple(at.task for at in learned), tuple(at.expert for at in learned))
    temperatures = _temperatures(_measured(found, one, state), one, state)
    return None if set(state.tasks) - set(temperatures) else content_hash(sorted(temperatures.items()))[:24]


def _mixes_by_temperature(found: StoredRun, method: Method) -> bool:
    return bool(found.plan.checked.validation) and method.routes and method.inference.aggregation == "mixture"


def _measured(found: StoredRun, method: Method, state: ModelState) -> DataFrame:
    """Returns what was measured after a session by now: rows of `StoredRun.rows`."""
    rows = found.rows()
    rows = rows[(rows["method"] == method.name) & (rows["session"] == len(state.tasks) - 1)] if len(rows) else rows
    return rows[rows["task"].isin([task.name for task in found.tasks])]


def _temperatures(rows: DataFrame, method: Method, state: ModelState) -> dict[str, float]:
    if method.one_model:  # what its measurements have is of an expert that it happens to be
        return {}
    return {
        str(row.task): float(row.temperature)
        for row in rows[rows["temperature"].notna()].itertuples()
        if row.protocol != "task" or not method.skips_trigger(state)  # earlier releases kept theta0's there
    }


def about(found: StoredRun, method: Method, state: ModelState) -> dict[str, Any]:
    """Returns what a card says of a run after a session, for `Served.about`; no path of this machine."""
    rows, session = _measured(found, method, state), len(state.tasks) - 1
    accuracy: dict[str, dict[str, float]] = {}
    for row in rows.itertuples():
        accuracy.setdefault(str(row.protocol), {})[str(row.task)] = round(float(row.accuracy), 4)
    temperatures = _temperatures(rows, method, state)
    if _mixes_by_temperature(found, method):
        _warn_of_lacking(found.config.run_name, method.name, [one for one in state.tasks if one not in temperatures])
    return {
        "run": found.config.run_name,
        "session": session,
        "data": {
            task.name: {"fingerprint": task.fingerprint, "train_images": task.train_rows, "test_images": task.test_rows}
            for task in found.tasks
        },
        "accuracy": accuracy,
        **({"temperatures": temperatures} if temperatures else {}),
        "settings": found.config.model_dump(mode="json", exclude={"storage", "tracking", "cluster", "run", *DATA}),
    }


def _warn_of_lacking(run: str, method: str, tasks: Sequence[str]) -> None:
    """Says of which experts nothing that was measured has the temperature by which the run's evaluators mix them."""
    if tasks:
        log.warning(
            "%s/%s: of %s no temperature was measured yet, so that a mixture takes it at 1 and may answer otherwise "
            "than the run's evaluators; finish the run first, or, where an earlier release measured it without the "
            "protocol task, run it again with --protocol task beside the others", run, method, ", ".join(tasks),
        )  # fmt: skip
