"""What a finished run was made from and made: the files that its receipt names (store/receipt.py)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from condu_ray.benchmark.ingest.bring import ours
from condu_ray.benchmark.tasks import META, ORDER, TEST, TRAIN
from condu_ray.methods.base import outside
from condu_ray.plan.measurement import protocols
from condu_ray.plan.preflight import Checked
from condu_ray.plan.stored_run import StoredRun, finished_run
from condu_ray.store.artifacts import MANIFEST, names
from condu_ray.store.backend import backend, on_disk
from condu_ray.store.layout import (
    config_path,
    expert_folder,
    ledger_path,
    marker_path,
    measurement_path,
    report_folder,
    rows_path,
    session_folder,
)
from condu_ray.store.location import Place
from condu_ray.store.receipt import write_receipt
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
    config, weights = checked.given, _weights(checked.spec)
    if config is None or weights is None or config.validation_share or on_disk(config.storage) is None:
        return False
    folders = [] if config.data is None else [config.data]
    folders += [*config.more_data, *config.task_data.values(), *config.probe]
    if (
        any(on_disk(place) is None or not ours(place) for place in folders)
        or (found := finished_run(checked)) is None
        or any(outside(type(one.method)) for one in found.plan.methods)
    ):
        return False
    made = _storage(found)
    if not all(backend(path).exists(path) for path in made):
        return False
    files = [*weights, *_data(checked), *(folder / ORDER for folder in folders), *made]
    write_receipt(config, files, folders, there, more)
    return True


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
    for name, one in found.methods.items():
        files.append(ledger_path(run, name))
        for entry in one.entries:
            files.append(session_folder(run, name, entry.position, entry.task, entry.state) / MANIFEST)
            files += [rows_path(run, name, entry.position, way) for way in protocols(config, one.method)]
    return files
