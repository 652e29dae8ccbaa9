"""The same command again: where the run is finished and nothing has changed, its table, before anything is loaded."""

from __future__ import annotations

import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from rich.markup import escape

from condu_ray.config import Experiment
from condu_ray.orchestration.watch.lines import Lines
from condu_ray.orchestration.watch.mlflow_address import elsewhere, own_folder, own_uri, shown_uri, tracking_uri
from condu_ray.orchestration.watch.progress import Display
from condu_ray.store.layout import mlflow_database
from condu_ray.store.location import Place
from condu_ray.store.receipt import receipted

if TYPE_CHECKING:
    from condu_ray.orchestration.watch.recorder import Recorder


def again(config: Experiment) -> dict[str, Any] | None:
    """Shows a run that is finished, by its receipt (store/receipt.py); its report and MLflow runs are as they are.

    Args:
        config: the settings, as they are given.

    Returns:
        The results as `results.json` has them; None when there is something to do or to look at.
    """
    begin, lines = time.perf_counter(), Lines()
    results = None if config.repair else receipted(config, _about(config))
    if results is None:
        return None
    display = Display(results["tasks"], config.training.steps, lines)
    for line in (*results.get("backbone", ()), *elsewhere(config)):
        lines.say(escape(line))
    seconds = time.perf_counter() - begin
    lines.say(f"finished before: settings, data, backbone and storage are as they were ({seconds:.1f} s)")
    display.finish(results, config.run_folder)
    return results


def remember(recorder: Recorder) -> None:
    """Leaves the receipt of a run whose report is written, and of which MLflow has heard all that it was to hear.

    Args:
        recorder: of the run, closed.
    """
    from condu_ray.plan.receipted import leave_receipt

    checked = recorder.results.plan.checked
    if checked.given is not None and recorder.tracker.complete:
        with suppress(OSError):  # such as a full disk: the run is done, and the same command looks at contents
            leave_receipt(checked, _logged(checked.given), _about(checked.given))


def _about(config: Experiment) -> list[str]:
    """Where MLflow is told of it, without a password."""
    return [shown_uri(config)] if config.tracking.enabled else []


def _logged(config: Experiment) -> list[Place]:
    """MLflow's own file, where the runs are in it; servers are not asked."""
    own = config.tracking.enabled and tracking_uri(config) == own_uri(config)
    return [mlflow_database(own_folder(config))] if own else []
