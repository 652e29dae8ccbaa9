"""The tasks of a run: of its data, or mini-MTIL's, and of further folders."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress

from condu_ray.benchmark import Task, load_tasks
from condu_ray.benchmark.ingest.bring import bring, names_in, ours
from condu_ray.benchmark.ingest.convert import Options
from condu_ray.benchmark.ingest.gather import Say
from condu_ray.benchmark.mini_mtil.draw import (
    MINI_MTIL_DEFAULT,
    MINI_MTIL_TASKS,
    MINI_MTIL_VERSION,
    drawn_ahead,
    mini_mtil,
)
from condu_ray.benchmark.tasks import TaskError
from condu_ray.config import Experiment
from condu_ray.names import nearest
from condu_ray.store.artifacts import ArtifactError, check_format
from condu_ray.store.backend import real
from condu_ray.store.layout import mini_mtil_folder
from condu_ray.store.location import Location, Place


def drawn(config: Experiment) -> Location:
    """Where mini-MTIL's tasks are drawn."""
    return mini_mtil_folder(config.storage, MINI_MTIL_VERSION)


def drawing(config: Experiment) -> AbstractContextManager[None]:
    """Has mini-MTIL's tasks drawn by another process while the block loads libraries, until `tasks_of` joins in.

    Not into a bucket, which is asked a dozen times first; and what is wrong with the settings is for `tasks_of` to say.

    Args:
        config: the run's settings.
    """
    with suppress(ArtifactError, OSError, ValueError):
        if not config.storage.scheme:
            check_format(config.storage)
            found, wanted = _places(config)
            own = {name for name in config.tasks or wanted if found.get(name) == drawn(config)}
            return drawn_ahead(drawn(config), [name for name in MINI_MTIL_TASKS if name in own])
    return nullcontext()


def tasks_of(config: Experiment, say: Say) -> list[Task]:
    """Loads a run's tasks in the order in which they are learned; data in another form are converted.

    Args:
        config: the run's settings.
        say: takes a line for people.

    Raises:
        TaskError: a task is not there, or not what it should be.
        ArtifactError: what was converted before is damaged, or cannot be written.
    """
    names, options = config.tasks, Options(config.template, config.test_share)
    if config.data is not None and not config.more_data and not config.task_data:
        return bring(config.data, config.storage, names, options, say)
    found, wanted = _places(config)
    order = list(names or wanted)
    if unknown := [name for name in order if name not in found]:
        if config.data is None and not config.more_data and not config.task_data:
            raise TaskError(
                f"task {unknown[0]!r} is none of mini-MTIL's ({', '.join(MINI_MTIL_TASKS)}); for other tasks give "
                "--data the folder of their folders, such as `condu-ray prepare` writes for MTIL"
            )
        raise TaskError(f"no task {unknown[0]!r} in --data or --more_data{nearest(unknown[0], list(found), most=3)}")
    every = {folder: ours(folder) for folder in found.values() if folder != drawn(config)}
    empty = {config.data, *config.more_data, *config.task_data.values()} - {None, *every}  # of tasks that are forgotten
    tasks: dict[str, Task] = {}
    for folder in dict.fromkeys(found[name] for name in order):
        own = [name for name in order if found[name] == folder]
        if folder == drawn(config):
            mini_mtil(folder, tasks=[name for name in MINI_MTIL_TASKS if name in own])
            loaded = load_tasks(folder, own)
        else:  # options are for data in another form; where there is none, they are refused
            said = options if not every[folder] or (all(every.values()) and not empty) else None
            loaded = bring(folder, config.storage, own, said, say)
        tasks |= {task.name: task for task in loaded}
    return [tasks[name] for name in order]


def probes_of(config: Experiment, tasks: Sequence[Task], say: Say) -> list[Task]:
    """Loads the tasks that a run is measured on and does not learn; those that it learns of the folders are none.

    Args:
        config: the run's settings.
        tasks: what it learns.
        say: takes a line for people.

    Raises:
        TaskError: one has the name of another, or of a task that is learned from other files, which `task_data` does
            not name; or as `tasks_of`.
    """
    found: dict[str, Task] = {}
    learned = {task.name: real(task.folder) for task in tasks}
    for folder in config.probe:
        options = None if ours(folder) else Options(config.template, config.test_share)
        for probe in bring(folder, config.storage, None, options, say):
            if learned.get(probe.name) == real(probe.folder):
                continue
            if probe.name in config.task_data:  # chosen over all others of that name, as by `add --again`
                say(f"--probe {folder}: {probe.name} is learned, from {learned[probe.name]}, and so no probe")
                continue
            if probe.name in learned or probe.name in found:
                of = "another probe" if probe.name in found else f"a task, which is read from {learned[probe.name]}"
                raise TaskError(f"--probe {folder}: {probe.name} is the name of {of}; rename its folder")
            found[probe.name] = probe
    return list(found.values())


def probe_folder(config: Experiment, task: str) -> Place | None:
    """Returns the folder of `--probe` that has a task; None where none has."""
    return next((folder for folder in config.probe if task in names_in(folder)[0]), None)


def unused_options(config: Experiment) -> Iterator[str]:
    """Yields what to say of options of data in another form where no task and no probe of a run is such."""
    folders = {*_places(config)[0].values(), *config.probe} - {drawn(config)}
    said = {"--template": config.template, "--test_share": config.test_share != Options.test_share or None}
    for flag in (flag for flag, given in said.items() if given is not None):
        if all(map(ours, folders)):
            yield f"{flag}: changes nothing, for all tasks have a meta.json (mini-MTIL's too), which says it"


def _places(config: Experiment) -> tuple[dict[str, Place], list[str]]:
    """Returns the folder that each task is in, and the tasks of a run that names none."""
    if config.data is None:
        found: dict[str, Place] = dict.fromkeys(MINI_MTIL_TASKS, drawn(config))
        wanted = list(MINI_MTIL_DEFAULT)
    else:
        every, wanted = names_in(config.data)
        found = dict.fromkeys(every, config.data)
    for folder in config.more_data:
        every, ordered = names_in(folder)
        wanted += [name for name in ordered if name not in found]
        found |= {name: folder for name in every if name not in found}
    for name, folder in config.task_data.items():
        if name not in names_in(folder)[0]:
            raise TaskError(f"--task_data {name}: {folder} has no such task{nearest(name, names_in(folder)[0])}")
        wanted += [name] if name not in found else []
        found[name] = folder
    return found, wanted


def default_names(config: Experiment) -> list[str]:
    """Returns the tasks that a run learns where its settings name none, in their order."""
    return _places(config)[1]


def place_of(config: Experiment, task: str) -> Place:
    """Returns the folder that a task of a run's data is in."""
    return _places(config)[0][task]


def has(config: Experiment, task: str) -> bool:
    """Whether a run's data have a task."""
    return task in _places(config)[0]


def with_data(config: Experiment, task: str, data: Place) -> Experiment:
    """Returns a run's settings with a task that is read from a folder, whatever its other data have of that name.

    Raises:
        TaskError: the folder has no such task.
    """
    data = Location(data).absolute()
    if task not in (every := names_in(data)[0]):
        raise TaskError(f"task {task!r}: {data} has none of that name{nearest(task, every)}")
    if not has(config, task):
        more = config.more_data if data in config.more_data else (*config.more_data, data)
        return config.model_copy(update={"more_data": more})
    if _places(config)[0][task] == data:
        return config
    return config.model_copy(update={"task_data": {**config.task_data, task: data}})
