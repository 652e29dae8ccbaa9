"""Experts that were fine-tuned elsewhere: their identity, how they come into storage, and which methods take them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from condu_ray.benchmark import Task
from condu_ray.benchmark.tasks import TaskError
from condu_ray.config import Experiment, content_hash
from condu_ray.merging import fingerprint
from condu_ray.merging.delta import Delta
from condu_ray.methods import Method, get
from condu_ray.methods.registry import MethodError
from condu_ray.names import nearest
from condu_ray.plan.data import default_names, has, with_data
from condu_ray.store import artifacts
from condu_ray.store.experts import save_expert
from condu_ray.store.layout import expert_folder
from condu_ray.store.location import Place
from condu_ray.vlm.model import Backbone
from condu_ray.vlm.outside import Outside, outside_delta
from condu_ray.vlm.peft_adapter import adapter_file

VERSION = 1
"""Raised when the same checkpoint becomes another delta."""


def imported_key(backbone: str, delta: Delta) -> str:
    """Returns the key of an expert from elsewhere (24 hex digits): a hash of theta0 and of what differs from it.

    So the same weights have one key in whatever file they come, and for whatever task.

    Args:
        backbone: theta0's fingerprint.
        delta: weights minus theta0.
    """
    return content_hash(["imported", VERSION, backbone, fingerprint(delta)])[:24]


def import_expert(config: Experiment, backbone: Backbone, task: str, checkpoint: Path) -> tuple[str, Outside]:
    """Puts a checkpoint into storage as a task's expert.

    Args:
        config: the run's settings.
        backbone: at theta0, on the CPU.
        task: whose expert it is.
        checkpoint: a file of weights, or a folder of PEFT's.

    Returns:
        The expert's key, and what is worth knowing of it.

    Raises:
        BackboneError: it is not read, or was not fine-tuned from this theta0.
        WriteError: it cannot be written.
    """
    found = outside_delta(backbone, checkpoint)
    key = imported_key(backbone.fingerprint, found.delta)
    file = checkpoint if checkpoint.is_file() else adapter_file(checkpoint)
    meta = {
        "task": task,
        "key": key,
        "run": config.run_name,
        "imported": {"name": checkpoint.name, "sha256": artifacts.file_hash(file)},
        "backbone": backbone.fingerprint,
        "relative": dict(found.relative),
        "seconds": 0.0,
    }
    save_expert(config.storage, key, dict(found.delta), meta)
    return key, found


def takes_imported(method: Method, beside: bool = False) -> str:
    """Returns why a method cannot take an expert from elsewhere; empty where it can.

    Args:
        method: the method.
        beside: whether it trains experts of other tasks, which are merged with that one.
    """
    if method.starts_from == "nothing":
        return ""
    if method.starts_from != "pretrained":
        return "its experts start from the task before"
    if method.form == "factors":
        return "it merges LoRA factors of its own rank, and one from elsewhere is a delta"
    if method.adapter == "lora" and beside:
        return "its own experts are of the weights that have adapters alone, and one from elsewhere is of all"
    return "its experts come with exemplars" if "exemplars" in method.needs else ""


def check_imported(
    config: Experiment, methods: Sequence[Method], tasks: Sequence[Task], backbone: str, *, works: bool = True
) -> None:
    """Makes sure that what a run imports is there, was made for its theta0, and that its methods can take it.

    Args:
        config: the run's settings.
        methods: its methods.
        tasks: its tasks.
        backbone: theta0's fingerprint.
        works: whether its other tasks are to be trained; a run that is only opened, as to be rolled back, may have
            begun with what an earlier release let it.

    Raises:
        TaskError: an expert is of no task of the run, not in storage, or of another theta0.
        MethodError: a method cannot take it.
    """
    names = [task.name for task in tasks]
    beside = works and not set(config.imported) >= set(names)
    for task, key in config.imported.items():
        if task not in names:
            raise TaskError(f"--imported {task}: is no task of the run{nearest(task, names)}")
        for method in methods:
            if why := takes_imported(method, beside):
                raise MethodError(f"--method {method.name} cannot take the imported expert of {task}: {why}")
        folder = expert_folder(config.storage, key)
        if not artifacts.exists(folder):
            raise TaskError(
                f"--imported {task}={key}: storage has no such expert; give its checkpoint again to condu-ray import"
            )
        if (other := artifacts.read_meta(folder).get("backbone")) != backbone:
            raise TaskError(
                f"--imported {task}={key}: was imported for theta0 {str(other)[:12]}, and the run has {backbone[:12]}"
            )


def with_expert(
    config: Experiment, task: str, key: str, data: Place | None = None, methods: Sequence[str] | None = None
) -> Experiment:
    """Returns a run's settings with a task that has its expert from elsewhere.

    Args:
        config: the run's settings.
        task: the task; learned last where the run has it not yet, else in its place: sessions from there on are merged
            anew, of the other tasks' experts as they are.
        key: the expert's; empty: none yet, but all else is looked at.
        data: folder with the task, whatever the run's own data have of that name; None: these.
        methods: those of the run that take it; None: all.

    Raises:
        MethodError: a method is not the run's, or cannot take an expert from elsewhere.
        TaskError: no data have the task, or not those that were given.
    """
    names = config.method if methods is None else tuple(methods)
    if other := [name for name in names if name not in config.method]:
        raise MethodError(f"--method {other[0]}: is none of the run's ({', '.join(config.method)})")
    known = list(config.tasks or default_names(config))
    beside = not {*config.imported, task} >= set(known)
    why = {name: takes_imported(get(name, config), beside) for name in names}
    if cannot := [name for name in names if why[name]]:
        can = [name for name in names if not why[name]]
        hint = (
            f"give --method {','.join(can)}" if can else "import into a run of condu, average, ties, emr or individual"
        )
        raise MethodError(f"--method {cannot[0]} cannot take an expert from elsewhere: {why[cannot[0]]}; {hint}")
    update: dict[str, Any] = {"method": names, "tasks": tuple(known if task in known else [*known, task])}
    if data is not None:
        config = with_data(config, task, data)
    if not has(config, task):
        raise TaskError(f"--task {task}: the run's data have no such task; give --data the folder that has it")
    if key:
        update["imported"] = {**config.imported, task: key}
    return config.model_copy(update=update)
