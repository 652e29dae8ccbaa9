"""What `--data` names, as tasks: folders in the package's form as they are, everything else converted once."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from condu_ray.benchmark.ingest.convert import Options, convert, stamp, unused_share
from condu_ray.benchmark.ingest.find import LAYOUTS, source_of, sources
from condu_ray.benchmark.ingest.gather import Say
from condu_ray.benchmark.ingest.source import Source, visible
from condu_ray.benchmark.meta import TaskError, read_json
from condu_ray.benchmark.tasks import META, ORDER, Task, hash_file, load_task, load_tasks, safe_name
from condu_ray.store.artifacts import ArtifactError, exists, is_file, local, read_meta, read_sealed, write_sealed
from condu_ray.store.artifacts import names as artifact_names
from condu_ray.store.backend import backend, on_disk
from condu_ray.store.layout import checked_folder, converted_folder, datasets_folder, verdict_path
from condu_ray.store.location import Location, Place

logger = logging.getLogger(__name__)


def bring(
    data: str | Place,
    storage: Place,
    names: Sequence[str] | None = None,
    options: Options | None = None,
    say: Say = logger.info,
) -> list[Task]:
    """Loads the tasks that a user gave, in the order in which they are to be learned.

    Args:
        data: a folder of tasks in the package's form; or a data set, or a folder of some, in one of `LAYOUTS`.
        storage: where what is converted goes, once.
        names: which tasks, in which order; None: all, in the order of the folder's `order.json` if it has one, else
            sorted by name.
        options: what the data do not say.
        say: takes a line for people.

    Raises:
        TaskError: with what is wrong, by file and row.
        ArtifactError: what was converted before is damaged.
        WriteError: it cannot be written.
    """
    place, options = Location(data).absolute(), options or Options()
    if ours(place):
        for flag, given in (
            ("--template", options.template),
            ("--test_share", options.test_share != Options.test_share),
        ):
            if given:
                raise TaskError(f"{flag}: the tasks in {place} are in the package's form, which says it; leave it out")
        tasks = load_tasks(place, names)
        if (folder := on_disk(place)) is not None:
            _warn_of_others(folder, tasks)
        return tasks
    found = in_order(_source_folder(place), names)
    if not found:
        return load_tasks(place, names)  # which says what is wrong with a folder without tasks
    return [_task(source, storage, options, say) for source in found]


def ours(data: Place) -> bool:
    """Whether a folder holds tasks in the package's form, or is one (which loading refuses with what to give)."""
    store = backend(data)
    try:
        inside = store.names(data)
    except (OSError, ValueError):
        return not is_file(data)
    return META in inside or any(_has_meta(data / name) for name in inside)


def names_in(data: Place) -> tuple[list[str], list[str]]:
    """Returns the names of the tasks in a folder, in whatever form: all, and those to learn where none is named.

    Raises:
        TaskError: a layout that is mixed or wrong.
    """
    place = Location(data).absolute()
    if ours(place):
        every = [name for name in artifact_names(place) if _has_meta(place / name)]
    else:
        every = [source.name for source in sources(_source_folder(place))]
    ordered = read_json(place / ORDER, list, "the tasks' names, in order") if is_file(place / ORDER) else every
    return every, [name for name in ordered if name in every]


def _source_folder(place: Place) -> Path:
    if (folder := on_disk(place)) is None:
        raise TaskError(
            f"--data {place}: holds no tasks in the package's form, the only one that is read from a bucket; bring it "
            f"into that by `condu-ray prepare --from FOLDER --to FOLDER` and copy it there with all that is in it"
        )
    return folder


def _has_meta(place: Place) -> bool:
    try:
        return backend(place).stamp(place / META) is not None
    except OSError:
        return False


def in_order(data: Path, names: Sequence[str] | None) -> list[Source]:
    """Returns the sources in a folder, in the order of learning.

    Raises:
        TaskError: as `sources`; or a name is twice there, or not safe in paths.
    """
    if names is None and (data / ORDER).is_file():
        names = read_json(Location(data / ORDER), list, "the tasks' names, in order")
    if names is not None and (twice := [name for name in names if list(names).count(name) > 1]):
        raise TaskError(f"{data}: {twice[0]!r} is named twice; a task is learned once, keep one of them")
    found = sources(data, names)
    for source in found:
        if problem := safe_name(source.name):
            raise TaskError(f"{source.place}: {problem}")
    return found


def _task(source: Source, storage: Place, options: Options, say: Say) -> Task:
    """Returns a source's task, converted now or before."""
    place = Location(storage).absolute()
    datasets, known = datasets_folder(place), verdict_path(checked_folder(place), stamp(source, options))

    def folder_of(digest: str) -> Location:
        return converted_folder(datasets, source.name, digest)

    try:
        folder = folder_of(str(read_sealed(known, required=True)["content"]))
    except (OSError, ArtifactError, KeyError):
        folder = None
    if folder is None or not exists(folder):
        meta = convert(source, folder_of, datasets, options, say)
        folder = folder_of(meta["content"])
        write_sealed(known, {"content": meta["content"]})
    meta = read_meta(folder)
    for name, digest in meta["files"].items():
        if hash_file(local(folder / name)) != digest:
            raise ArtifactError(f"{folder / name}: content differs from its checksum; remove {folder} to have it made "
                                "again")  # fmt: skip
    for note in filter(None, (*meta["notes"], unused_share(source, options))):
        logger.warning("%s: %s", source.name, note)
    return load_task(folder)


def _warn_of_others(data: Path, tasks: Sequence[Task]) -> None:
    """Says of folders beside tasks in the package's form that they are data in another one, which are not taken."""
    known = {task.name for task in tasks}
    for path in visible(data):
        if path.is_dir() and path.name not in known and not _has_meta(path):
            try:
                other = source_of(path)
            except TaskError:
                continue
            if other is not None:
                logger.warning(
                    "%s: skipped, it is a %s beside tasks in the package's form; bring it into that by "
                    "`condu-ray prepare --from %s --to %s`", path, other.form, path, data
                )  # fmt: skip


__all__ = ["LAYOUTS", "bring", "in_order", "names_in", "ours"]
