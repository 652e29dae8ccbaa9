"""The same command again: where all is finished and nothing has changed, what it said, before anything is loaded."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from rich.markup import escape

from condu_ray.config import Experiment, Sweep
from condu_ray.orchestration.watch.lines import Lines
from condu_ray.orchestration.watch.mlflow_address import elsewhere, own_folder, own_uri, shown_uri, tracking_uri
from condu_ray.orchestration.watch.progress import Display
from condu_ray.store.artifacts import names
from condu_ray.store.layout import mlflow_database, receipt_path, sweep_receipt_path
from condu_ray.store.location import Place
from condu_ray.store.receipt import digest, receipted

if TYPE_CHECKING:
    from condu_ray.orchestration.watch.recorder import Recorder
    from condu_ray.plan.preflight import Checked
    from condu_ray.plan.trials import Trial


def again(config: Experiment) -> dict[str, Any] | None:
    """Shows a run that is finished, by its receipt (store/receipt.py); its report and MLflow runs are as they are.

    Args:
        config: the settings, as they are given.

    Returns:
        The results as `results.json` has them; None when there is something to do or to look at.
    """
    begin, lines = time.perf_counter(), Lines()
    found = None if config.repair else receipted(receipt_path(config.run_folder), config, _about(config))
    if found is None:
        return None
    _, results = found
    display = Display(results["tasks"], config.training.steps, lines)
    for line in (*results.get("backbone", ()), *elsewhere(config)):
        lines.say(escape(line))
    lines.say(_finished(begin))
    display.finish(results, config.run_folder)
    return results


def sweep_again(sweep: Sweep) -> list[Place] | None:
    """The same of a sweep: shows what it came to and where its report is.

    Args:
        sweep: the settings, as they are given.

    Returns:
        The report's files; None when there is something to do or to look at.
    """
    begin, lines = time.perf_counter(), Lines()
    if sweep.repair or sweep.cache_report:
        return None
    found = receipted(sweep_receipt_path(sweep.storage, digest(sweep)), sweep, _about(sweep))
    if found is None:
        return None
    path, results = found
    lines.console.print(f"sweep {results['name']}: {len(results['trials'])} trials, {_finished(begin)}", markup=False)
    lines.console.print(shown_costs(results), markup=False)
    lines.console.print(f"report: {path.parent / 'report.md'}", markup=False)
    return [path.parent / name for name in names(path.parent)]


def shown_costs(numbers: Mapping[str, Any]) -> str:
    """Returns a line of what a sweep took, by its report's numbers."""
    paid = numbers["extra"]["costs"]
    return (
        f"{paid['experts_used']} experts used, {paid['experts_different']} different, "
        f"{paid['experts_trained_by_this_sweep']} trained by this sweep; {paid['measurements']} measurements made, "
        f"{paid['measurements_reused']} reused"
    )


def _finished(begin: float) -> str:
    seconds = time.perf_counter() - begin
    return f"finished before: settings, data, backbone and storage are as they were ({seconds:.1f} s)"


def remember_sweep(checked: Checked, sweep: Sweep, folder: Place, trials: Sequence[Trial]) -> None:
    """Leaves the receipt of a sweep whose report is written, and of which MLflow has heard all that it was to hear.

    Args:
        checked: what all trials share.
        sweep: its settings, as they are given.
        folder: the sweep's.
        trials: all of them.
    """
    from condu_ray.plan.receipted import leave_sweep_receipt

    with suppress(OSError):  # as below
        leave_sweep_receipt(checked, sweep, folder, trials, _logged(sweep), _about(sweep))


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
