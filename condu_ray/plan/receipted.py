"""What a finished run or sweep was made from and made: the files that its receipt names (store/receipt.py)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from condu_ray.benchmark.ingest.bring import ours
from condu_ray.benchmark.tasks import META, ORDER, TEST, TRAIN
from condu_ray.config import Sweep
from condu_ray.methods.base import outside
from condu_ray.methods.registry import take
from condu_ray.plan.measurement import protocols
from condu_ray.plan.preflight import Checked
from condu_ray.plan.stored_run import StoredRun, finished_run
from condu_ray.plan.trials import Trial, routed_by
from condu_ray.store.artifacts import MANIFEST, names
from condu_ray.store.backend import backend, on_disk
from condu_ray.store.layout import (
    config_path,
    expert_folder,
    ledger_path,
    marker_path,
    measurement_path,
    receipt_path,
    record_path,
    report_folder,
    results_path,
    rows_path,
    session_folder,
    sweep_config_path,
    sweep_numbers_path,
    sweep_receipt_path,
)
from condu_ray.store.location import Place
from condu_ray.store.receipt import digest, write_receipt
from condu_ray.vlm.spec import CONFIG, FOLDER, HUB, MERGES, BackboneSpec


def leave_receipt(checked: Checked, there: Sequence[Place], more: Sequence[str]) -> bool:
    """Writes the receipt of a run whose report is written, where it can be known again by its files.

    Args:
        checked: the run's settings, tasks and backbone.
        there: what only has to be there.
        more: what else decides what the command does.

    Returns:
        Whether there is a receipt: none for what is not on a disk, and for what files do not say.

    Raises:
        WriteError: it cannot be written.
    """
    config, read = checked.given, _read(checked)
    if config is None or read is None or (found := finished_run(checked)) is None:
        return False
    made = _storage(found)
    if not all(backend(path).exists(path) for path in made):
        return False
    run = config.run_folder
    write_receipt(receipt_path(run), config, results_path(run), [*read.files, *made], read.folders, there, more)
    return True


def leave_sweep_receipt(
    checked: Checked, sweep: Sweep, folder: Place, trials: Sequence[Trial], there: Sequence[Place], more: Sequence[str]
) -> bool:
    """The same of a sweep.

    Args:
        checked: what all trials share.
        sweep: the settings, as they were given.
        folder: the sweep's.
        trials: all of them.
        there: as above.
        more: as above.
    """
    if (read := _read(checked)) is None:
        return False
    made: list[Place] = [marker_path(sweep.storage), sweep_config_path(folder)]
    made += [record_path(folder, trial.id) for trial in trials]
    made += [place / MANIFEST for _, folders in routed_by(checked, trials) for place in folders]
    made += [report_folder(folder) / name for name in names(report_folder(folder))]
    if not all(backend(path).exists(path) for path in made):
        return False
    files = [*read.files, Path(sweep.orders), *made]  # a name of orders is no file, and must not become one
    receipt = sweep_receipt_path(sweep.storage, digest(sweep))
    write_receipt(receipt, sweep, sweep_numbers_path(folder), files, read.folders, there, more)
    return True


class _Read(NamedTuple):
    files: Sequence[Place]
    folders: Sequence[Place]


def _read(checked: Checked) -> _Read | None:
    """What a command reads; None where files do not say whether it is what it was."""
    config, weights = checked.given, _weights(checked.spec)
    if config is None or weights is None or config.validation_share or on_disk(config.storage) is None:
        return None
    folders = [] if config.data is None else [config.data]
    folders += [*config.more_data, *config.task_data.values(), *config.probe]
    if any(on_disk(place) is None or not ours(place) for place in folders):
        return None
    if any(outside(type(method)) for method in take(checked.config)):
        return None
    return _Read([*weights, *_data(checked), *(folder / ORDER for folder in folders)], folders)


def _weights(spec: BackboneSpec) -> list[Place] | None:
    """The files of a backbone; None for one that goes by a name, whose files are its maker's."""
    if spec.file is None or spec.title.startswith(HUB):
        return None
    folder = Path(spec.model.removeprefix(FOLDER))
    return [spec.file, *([folder / CONFIG, folder / MERGES] if spec.model.startswith(FOLDER) else [])]


def _data(checked: Checked) -> list[Place]:
    """The files of tasks, of those that they were drawn from, and of references."""
    tasks = [task.folder for task in (*checked.tasks, *checked.sources, *checked.probes)]
    options = checked.config.distillation
    found: list[Place] = [folder / name for folder in [*tasks, *options.reference] for name in (META, TRAIN, TEST)]
    return [*found, *options.reference, *([options.captions] if options.captions else [])]


def _storage(found: StoredRun) -> list[Place]:
    """What the run has in storage, each artifact by its manifest, which is written last and once."""
    config, run = found.config, found.config.run_folder
    files: list[Place] = [marker_path(config.storage), config_path(run)]
    files += [report_folder(run) / name for name in names(report_folder(run))]
    files += [measurement_path(config.storage, one.key) for one in found.wanted]
    files += [expert_folder(config.storage, expert.key) / MANIFEST for expert in found.plan.experts]
    files += [folder / MANIFEST for folder in found.prototypes]
    for name, one in found.methods.items():
        files.append(ledger_path(run, name))
        for entry in one.entries:
            files.append(session_folder(run, name, entry.position, entry.task, entry.state) / MANIFEST)
            files += [rows_path(run, name, entry.position, way) for way in protocols(config, one.method)]
    return files
