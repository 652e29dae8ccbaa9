"""Make reports again from storage alone, of one run or sweep or of several together; without names, list them."""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING, Any

from condu_ray.command_line import ConfigError, Parser
from condu_ray.commands.job import job
from condu_ray.config import Experiment
from condu_ray.console import output, whole
from condu_ray.store.location import Place, given

if TYPE_CHECKING:
    from rich.table import Table

LOOKS = 3
"""How often a report is made of a run that is changed meanwhile: one at work may be so each time."""


def listing(storage: Place) -> Table:
    """Returns what storage holds, a row a run or sweep."""
    from rich.table import Table

    from condu_ray.plan.stored import find, names

    table = Table("Name", "Kind", "Methods", "Orders", "Finished", title=f"Runs and sweeps in {storage}")
    for name in names(storage):
        found = find(storage, name)
        methods = dict.fromkeys(record["method"] for record in found.records)
        orders = {tuple(record["order"]) for record in found.records}
        wanted = len(found.trials) or len(found.config["method"])
        state = f"{len(found.records)} of {wanted}"
        table.add_row(name, found.kind, ", ".join(methods), str(len(orders)), state)
    return table


def run_report(config: Experiment, out: Place | None = None) -> None:
    """Writes a run's own report again, of what its settings find in storage, or of the numbers that it wrote itself.

    Args:
        config: the run's.
        out: where it goes too, or alone where the run's folder cannot be written; None: nowhere.

    Raises:
        ConfigError: a session or a measurement is missing, and the run wrote no numbers; or the run's folder cannot be
            written, and `out` is None.
    """
    from condu_ray.report.run_report import write_report
    from condu_ray.store import artifacts
    from condu_ray.store.layout import results_path

    numbers = results_path(config.run_folder)
    own = _writable(numbers, out)  # else it is a colleague's
    found = _from_storage(config) if own else None
    if found is None:
        if not artifacts.is_file(numbers):
            raise ConfigError(
                f"{config.run_name}: not finished, or trained by an earlier version or on GPUs that are not here; run "
                "its command again"
            )
        found = json.loads(artifacts.read_text(numbers))
        if own:
            write_report(found, numbers.parent)
            print(
                f"report: {numbers.parent / 'report.md'}, of the numbers that the run wrote; storage has them no more"
            )
    if out is not None:
        write_report(found, out)
        print(f"report: {out / 'report.md'}{'' if own else ', of the numbers that the run wrote'}")


def _changes(folder: Place) -> set[Hashable]:
    """What is another whenever a run is another: stamps of its settings and ledgers."""
    from condu_ray.store.artifacts import names
    from condu_ray.store.backend import backend
    from condu_ray.store.layout import config_path, ledger_path

    paths = [config_path(folder), *(ledger_path(folder, name) for name in names(folder))]
    return {backend(path).stamp(path) for path in paths} - {None}


def _writable(numbers: Place, out: Place | None) -> bool:
    """Whether a report can be written where its numbers are to be.

    Raises:
        ConfigError: it cannot, and `out` names no other place.
    """
    from condu_ray.store.artifacts import WriteError
    from condu_ray.store.writable import require_writable

    try:
        require_writable(numbers)
    except WriteError as error:
        if out is None:
            raise ConfigError(f"{error}; --out DIR writes the report elsewhere") from error
        return False
    return True


def _from_storage(config: Experiment) -> dict[str, Any] | None:
    """Writes the report of what storage has, and shows it; None where not all of it is there."""
    from condu_ray.orchestration.run import from_storage
    from condu_ray.orchestration.watch.lines import Lines
    from condu_ray.orchestration.watch.progress import Display
    from condu_ray.plan.preflight import check

    quiet = config.model_copy(update={"tracking": config.tracking.model_copy(update={"enabled": False})})
    checked = check(quiet)
    with Display([task.name for task in checked.tasks], quiet.training.steps, Lines()) as display:
        found = from_storage(checked, display)
        if found is not None:
            display.finish(found, checked.config.run_folder)
    return found


def _refuse_idle(arguments: Namespace) -> None:
    """Refuses flags that would do nothing, so that nobody takes for sent or written what is not.

    Raises:
        ConfigError: names one.
    """
    for name in ("out", "tracking_uri"):
        if getattr(arguments, name) is not None and not getattr(arguments, name).strip():
            raise ConfigError(f"--{name.replace('_', '-')}: is empty; give a value, or leave it out")
    if arguments.tracking_uri and not arguments.sync_mlflow:
        raise ConfigError("--tracking-uri: is for --sync-mlflow, which sends to it")
    given_for_names = [("--out", arguments.out), ("--published", arguments.published)]
    for name, value in [*given_for_names, ("--sync-mlflow", arguments.sync_mlflow)]:
        if value and not arguments.names:
            raise ConfigError(f"{name}: name the runs and sweeps; without names, what storage holds is listed")


@job("the run is as it was; reports may be half written, and the same command writes them anew")
def main(argv: Sequence[str] | None = None) -> None:
    """Writes the report, or lists what there is; the exit code is 2 for what storage does not hold."""
    parser = Parser(__doc__)
    parser.add_argument("names", nargs="*", help="runs and sweeps; none: list what storage holds")
    parser.add_argument("--storage", default="storage", help="storage folder (default: storage)")
    parser.add_argument(
        "--out",
        help="folder of the report, beside a run's own; default: in the run or sweep; reports/ for several, or a run "
        "--published",
    )
    parser.add_argument("--published", action="store_true", help="put the papers' figures beside the measured ones")
    parser.add_argument("--sync-mlflow", action="store_true", help="send to MLflow what it could not be sent before")
    parser.add_argument("--tracking-uri", help="MLflow's address; default: MLFLOW_TRACKING_URI, or storage's own file")
    arguments = parser.parse_args(argv)
    _refuse_idle(arguments)
    from condu_ray.orchestration.watch.mlflow_sync import sync
    from condu_ray.plan.stored import find, write_sweep_report
    from condu_ray.store.backend import backend
    from condu_ray.store.layout import joined_report_folder, report_folder, sweep_numbers_path
    from condu_ray.store.provenance import command

    console = output()
    storage, out = given(arguments.storage), given(arguments.out) if arguments.out else None
    if not backend(storage).exists(storage):
        raise ConfigError(f"--storage {storage}: no such folder")
    if not arguments.names:
        console.print(whole(listing(storage)))
        return
    found = [find(storage, name) for name in dict.fromkeys(arguments.names)]
    alone = len(found) == 1
    if alone and found[0].kind == "run" and not arguments.published:
        for _ in range(LOOKS):
            before, found = _changes(found[0].folder), [find(storage, found[0].name)]
            run_report(found[0].experiment(storage), out)
            if _changes(found[0].folder) == before:  # else what was read is of before a change that ended meanwhile
                break
    else:  # never in a run's own folder, which has a page of another kind
        own = alone and found[0].kind == "sweep"
        joined = joined_report_folder(storage, [one.name for one in found])
        folder = out or (report_folder(found[0].folder) if own else joined)
        if out is None:
            _writable(folder / sweep_numbers_path(folder).name, out)
        write_sweep_report(found, folder, published=arguments.published, extra={"command": command()})
        console.print(f"report: {folder / 'report.md'}")
    if arguments.sync_mlflow:
        for one in found:
            console.print(f"{one.name}: {sync(storage, one, arguments.tracking_uri)}")
