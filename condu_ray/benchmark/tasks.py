"""A task: a folder with `train.parquet`, `test.parquet` and `meta.json`.

Both Parquet files have a column `image` (bytes of an encoded picture, e.g. PNG or JPEG) and a column `label` (integer,
0 <= label < number of classes). `meta.json` has `classes` (a list of names, indexed by the label) and `template` (one
prompt such as "a photo of a {}.") or `templates` (a list of them); all other keys are free.

Loading looks at the structure alone and reads no image; `condu_ray.benchmark.check` looks at the content.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from condu_ray.benchmark.columns import column_problems, unreadable
from condu_ray.benchmark.images import DECODING
from condu_ray.benchmark.meta import TaskError as TaskError
from condu_ray.benchmark.meta import read_json, read_meta
from condu_ray.benchmark.rows import open_parquet
from condu_ray.names import nearest
from condu_ray.store.artifacts import file_hash, local
from condu_ray.store.backend import backend, on_disk
from condu_ray.store.location import Location, Place

logger = logging.getLogger(__name__)

TRAIN, TEST, META, ORDER = "train.parquet", "test.parquet", "meta.json", "order.json"

# A name becomes part of paths, run names and metric keys; this also rules out "..", "/" and hidden folders.
_SAFE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_MAX_NAME = 100  # it has to fit into the names of sessions and trials, of which file systems take 255 characters
_file_hashes: dict[tuple[str, Hashable], str] = {}
Hashes = Mapping[tuple[str, Hashable], str]
"""SHA-256 of files by path and stamp."""


@dataclass(frozen=True)
class Task:
    """One task of the benchmark, as `load_task` returns it."""

    name: str  #: the folder's name
    folder: Location  #: absolute
    classes: tuple[str, ...]  #: class names; the label is the index
    templates: tuple[str, ...]  #: prompts with one `{}` each; training uses the first, evaluation averages over all
    train_rows: int  #: images in `train.parquet`
    test_rows: int  #: images in `test.parquet`

    @property
    def train(self) -> Path:
        """Path at which this machine can read the training split."""
        return local(self.folder / TRAIN)

    @property
    def test(self) -> Path:
        """Path at which this machine can read the test split."""
        return local(self.folder / TEST)

    def prompts(self) -> list[str]:
        """Returns one prompt a class, in label order, from the first template."""
        # Not str.format: a class name is text and must never be read as a format.
        return [self.templates[0].replace("{}", name) for name in self.classes]

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hex) over the content of both splits, how it is decoded, the classes and the templates."""
        return self._digest(train=hash_file(self.train), test=hash_file(self.test))

    @property
    def train_fingerprint(self) -> str:
        """SHA-256 (hex) over the training split, the classes and the templates: all that an expert depends on."""
        return self._digest(train=hash_file(self.train))

    @property
    def test_fingerprint(self) -> str:
        """SHA-256 (hex) over the test split, the classes and the templates: all that an evaluation depends on."""
        return self._digest(test=hash_file(self.test))

    def _digest(self, **files: str) -> str:
        content = {"decoding": DECODING, "classes": self.classes, "templates": self.templates, **files}
        return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def load_task(folder: str | Place) -> Task:
    """Loads a task after cheap checks of its structure.

    Args:
        folder: The task's folder; its name becomes the task's name.

    Raises:
        TaskError: With all that is wrong with the name, the metadata, the columns or the row counts.
    """
    folder = _existing(folder, f"a folder with {TRAIN}, {TEST} and {META}")
    errors: list[str] = []
    if problem := safe_name(folder.name):
        errors.append(f"{folder}: {problem}")
    classes, templates = read_meta(folder / META, errors)
    rows = [_read_structure(folder / split, errors) for split in (TRAIN, TEST)]
    if errors:
        raise TaskError("\n".join(errors))
    return Task(folder.name, folder, classes, templates, *rows)


def safe_name(name: str) -> str:
    """Returns why a task cannot have a name, and what to do; empty where it can."""
    if not _SAFE_NAME.fullmatch(name):
        allowed = "letters, digits, '.', '_' and '-', a letter or digit first"
        return f"the name {name!r} is not safe in paths; rename the folder with {allowed}"
    if len(name) > _MAX_NAME:
        return f"the name has {len(name)} characters; rename the folder with {_MAX_NAME} or less"
    return ""


def load_tasks(folder: str | Place, names: Sequence[str] | None = None) -> list[Task]:
    """Loads the tasks below a folder, in the order in which they are to be learned.

    Args:
        folder: The folder of the tasks' folders.
        names: Which tasks, in which order. None: all subfolders with a `meta.json`, in the order of the folder's
            `order.json` (a list of names) if it has one, else sorted by name.

    Raises:
        TaskError: With everything that is wrong, over all of the tasks.
    """
    folder = _existing(folder, "the folder that holds the tasks' folders")
    if isinstance(names, str):
        raise TaskError(f"names is the text {names!r}; give a list of names, such as [{names!r}]")
    found = _tasks_in(folder, warn=names is None)
    source = "the names asked for"
    if names is None:
        names, source = found, str(folder)
        if backend(folder).exists(folder / ORDER):
            source = str(folder / ORDER)
            names = read_json(folder / ORDER, list, "the tasks' names, in order")
    if not names:
        hint = (
            "it is itself a task: give its parent folder"
            if backend(folder).exists(folder / META)
            else f"a task has a {META}, and `condu-ray prepare --from FOLDER --to FOLDER` makes tasks of other forms"
        )
        raise TaskError(f"{folder}: no task to load from {source}; {hint}")
    tasks, errors = [], []
    for position, name in enumerate(names):
        try:
            if name in names[:position]:
                raise TaskError(f"{source}: {name!r} is named twice; a task is learned once, keep one of them")
            tasks.append(_load_named(folder, name, found, source))
        except TaskError as error:
            errors.append(str(error))
    if errors:
        raise TaskError("\n".join(errors))
    return tasks


def _existing(folder: str | Place, hint: str) -> Location:
    place = Location(folder).absolute()  # another process may work in another folder
    try:
        backend(place).names(place)
    except PermissionError as error:
        raise TaskError(f"{place}: may not be read by this user; change its permissions") from error
    except (OSError, ValueError) as error:
        raise TaskError(f"{place}: no such folder; give {hint}") from error
    return place


def _tasks_in(folder: Location, warn: bool) -> list[str]:
    """Returns the names of the folders that have a `meta.json`; warns of what looks like a task and is none."""
    found, store = [], backend(folder)
    for name in store.names(folder):
        place = folder / name
        try:
            meta, train = (store.stamp(place / file) is not None for file in (META, TRAIN))
        except PermissionError:
            meta = train = False
            if warn:
                logger.warning("%s: skipped, it may not be read by this user", place)
        except OSError:  # such as a link that leads to itself
            meta = train = False
        if meta:
            found.append(name)
        elif train and warn:
            logger.warning("%s: skipped, it has a %s but no %s", place, TRAIN, META)
        elif warn and (path := on_disk(place)) is not None and path.is_symlink() and not path.exists():
            logger.warning("%s: skipped, it is a link to %s, where nothing is", place, path.readlink())
    return found


def _is_folder(place: Location) -> bool:
    try:
        backend(place).names(place)
    except (OSError, ValueError):
        return False
    return True


def _load_named(folder: Location, name: str, found: list[str], source: str) -> Task:
    # The test of the name comes before any look at the disk: "../x" must not even be looked up.
    if name in found or (isinstance(name, str) and _SAFE_NAME.fullmatch(name) and _is_folder(folder / name)):
        return load_task(folder / name)
    raise TaskError(f"{source}: no task {name!r} in {folder}{nearest(name, found, most=3, label='there are')}")


def _read_structure(path: Place, errors: list[str]) -> int:
    """Returns the row count of a split; what is wrong with its columns goes to `errors`."""
    try:
        with open_parquet(local(path)) as file:
            schema, rows = file.schema_arrow, int(file.metadata.num_rows)
    except PermissionError:
        errors.append(f"{path}: may not be read by this user; change its permissions")
        return 0
    except (OSError, pa.ArrowException) as error:
        errors.append(f"{path}: {unreadable(local(path), error)}")
        return 0
    errors += [f"{path}: {problem}" for problem in column_problems(schema)]
    if rows == 0:
        errors.append(f"{path}: no rows; a split needs at least one image of each class")
    return rows


def hash_file(path: Path) -> str:
    """SHA-256 (hex) of a file's content, remembered in this process until it is written again."""
    key = str(path), backend(path).stamp(path)
    if key not in _file_hashes:
        _file_hashes[key] = file_hash(path)
    return _file_hashes[key]


def known_hashes() -> Hashes:
    """Returns what `hash_file` has hashed, for a process that reads the same files."""
    return dict(_file_hashes)


def take_hashes(known: Hashes) -> None:
    """Takes what another process has hashed; of a file with another stamp here it counts for nothing."""
    _file_hashes.update(known)
