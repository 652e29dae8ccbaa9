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
import os
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from condu_ray.benchmark.columns import column_problems, unreadable
from condu_ray.benchmark.images import DECODING
from condu_ray.benchmark.rows import open_parquet
from condu_ray.names import nearest

logger = logging.getLogger(__name__)

TRAIN, TEST, META, ORDER = "train.parquet", "test.parquet", "meta.json", "order.json"

# A name becomes part of paths, run names and metric keys; this also rules out "..", "/" and hidden folders.
_SAFE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_MAX_NAME = 100  # it has to fit into the names of sessions and trials, of which file systems take 255 characters
_file_hashes: dict[tuple[str, int, int], str] = {}


class TaskError(ValueError):
    """A task's folder is not what it should be; the message names the file, what is wrong and what to do."""


@dataclass(frozen=True)
class Task:
    """One task of the benchmark, as `load_task` returns it."""

    name: str  #: the folder's name
    folder: Path  #: absolute
    classes: tuple[str, ...]  #: class names; the label is the index
    templates: tuple[str, ...]  #: prompts with one `{}` each; training uses the first, evaluation averages over all
    train_rows: int  #: images in `train.parquet`
    test_rows: int  #: images in `test.parquet`

    @property
    def train(self) -> Path:
        """Path of the training split."""
        return self.folder / TRAIN

    @property
    def test(self) -> Path:
        """Path of the test split."""
        return self.folder / TEST

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


def load_task(folder: str | Path) -> Task:
    """Loads a task after cheap checks of its structure.

    Args:
        folder: The task's folder; its name becomes the task's name.

    Raises:
        TaskError: With all that is wrong with the name, the metadata, the columns or the row counts.
    """
    folder = _existing(folder, f"a folder with {TRAIN}, {TEST} and {META}")
    errors: list[str] = []
    if not _SAFE_NAME.fullmatch(folder.name):
        allowed = "letters, digits, '.', '_' and '-', a letter or digit first"
        errors.append(f"{folder}: the name {folder.name!r} is not safe in paths; rename the folder with {allowed}")
    if len(folder.name) > _MAX_NAME:
        errors.append(
            f"{folder}: the name has {len(folder.name)} characters; rename the folder with {_MAX_NAME} or less"
        )
    classes, templates = _read_meta(folder / META, errors)
    rows = [_read_structure(folder / split, errors) for split in (TRAIN, TEST)]
    if errors:
        raise TaskError("\n".join(errors))
    return Task(folder.name, folder, classes, templates, *rows)


def load_tasks(folder: str | Path, names: Sequence[str] | None = None) -> list[Task]:
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
    found = sorted(path.parent.name for path in folder.glob(f"*/{META}") if not path.parent.name.startswith("."))
    source = "the names asked for"
    if names is None:
        for path in sorted(folder.iterdir()):
            if os.path.islink(path) and not os.path.exists(path):
                logger.warning("%s: skipped, it is a link to %s, where nothing is", path, os.readlink(path))
            elif os.path.isdir(path) and not os.access(path, os.R_OK | os.X_OK):
                logger.warning("%s: skipped, it may not be read by this user", path)
            elif os.path.isfile(path / TRAIN) and not os.path.isfile(path / META):
                logger.warning("%s: skipped, it has a %s but no %s", path, TRAIN, META)
        names, source = found, str(folder)
        if (folder / ORDER).is_file():
            source = str(folder / ORDER)
            names = _read_json(folder / ORDER, list, "the tasks' names, in order")
    if not names:
        hint = "it is itself a task: give its parent folder" if (folder / META).is_file() else f"a task has a {META}"
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


def _existing(folder: str | Path, hint: str) -> Path:
    path = Path(os.path.abspath(folder))  # absolute: another process may work in another folder
    if not os.path.isdir(path):  # Path.is_dir raises where a parent cannot be entered
        raise TaskError(f"{path}: no such folder; give {hint}")
    if not os.access(path, os.R_OK | os.X_OK):
        raise TaskError(f"{path}: may not be read by this user; change its permissions")
    return path


def _load_named(folder: Path, name: str, found: list[str], source: str) -> Task:
    # The test of the name comes before any look at the disk: "../x" must not even be looked up.
    if name in found or (isinstance(name, str) and _SAFE_NAME.fullmatch(name) and os.path.isdir(folder / name)):
        return load_task(folder / name)
    raise TaskError(f"{source}: no task {name!r} in {folder}{nearest(name, found, most=3, label='there are')}")


def _read_json(path: Path, kind: type, hint: str) -> Any:
    try:
        content = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_without_repeats)
    except PermissionError as error:
        raise TaskError(f"{path}: may not be read by this user; change its permissions") from error
    except (OSError, ValueError, RecursionError) as error:
        raise TaskError(f"{path}: missing or not JSON ({error}); write it with {hint}") from error
    if not isinstance(content, kind):
        raise TaskError(f"{path}: holds a {type(content).__name__}; write it with {hint}")
    return content


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Makes an object of JSON, of which one key twice would silently keep the last."""
    keys = [key for key, _ in pairs]
    if repeated := sorted({key for key in keys if keys.count(key) > 1}):
        raise ValueError(f"key {repeated[0]!r} is there {keys.count(repeated[0])} times; keep one of them")
    return dict(pairs)


def unseen(text: str) -> str | None:
    """Returns the name of the first sign in a text that nobody sees, or that looks like a space and is none.

    Such signs come along when names are copied from pages or tables, and a tokenizer makes tokens of them: zero-width
    spaces, byte order marks, marks of writing direction, soft hyphens, no-break spaces, control characters. Joiners
    are letters to scripts that need them, and strange only between Latin ones.
    """
    for sign in text:
        if sign in "\u200c\u200d" and not text.replace("\u200c", "").replace("\u200d", "").isascii():
            continue
        kind = unicodedata.category(sign)
        if (
            kind in ("Cf", "Cs", "Zl", "Zp")
            or (kind == "Zs" and sign != " ")
            or (kind == "Cc" and sign not in "\t\n\r")
        ):
            return f"U+{ord(sign):04X} {unicodedata.name(sign, 'a control character')}"
    return None


def _read_meta(path: Path, errors: list[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Returns classes and templates; what is wrong with them goes to `errors`."""
    try:
        meta = _read_json(path, dict, "an object of 'classes' and 'template'")
    except TaskError as error:
        errors.append(str(error))
        return (), ()
    classes = meta.get("classes")
    if not isinstance(classes, list) or not classes:
        wrong = "is not a list of names, or is empty" if "classes" in meta else "is missing"
        errors.append(f"{path}: key 'classes' {wrong}; list the class names, the label is the index")
        classes = []
    first: dict[str, int] = {}
    for index, name in enumerate(classes):
        if not isinstance(name, str) or not name.strip():
            errors.append(f"{path}: 'classes'[{index}] is {name!r}; give it a name that is not empty")
        # CLIP's tokenizer ignores case and runs of spaces: such names would be one prompt.
        elif (earlier := first.setdefault(" ".join(name.split()).casefold(), index)) != index:
            both = f"'classes'[{index}] {name!r} repeats 'classes'[{earlier}] {classes[earlier]!r}"
            errors.append(f"{path}: {both} (case and spaces do not count); rename or join them")
        elif sign := unseen(name):
            errors.append(f"{path}: 'classes'[{index}] {name!r} holds {sign}, which nobody sees; write it without")
    templates = [meta["template"]] if "template" in meta else meta.get("templates")
    if ("template" in meta) == ("templates" in meta) or not isinstance(templates, list) or not templates:
        example = '"template": "a photo of a {}."'
        errors.append(f"{path}: write either key 'template' or key 'templates' (a list), such as {example}")
        templates = []
    for template in templates:
        # Any other brace would break a caller that uses str.format.
        if not isinstance(template, str) or not re.fullmatch(r"[^{}]*\{\}[^{}]*", template):
            errors.append(f"{path}: template {template!r}: write a text with exactly one '{{}}' for the class name")
        elif sign := unseen(template):
            errors.append(f"{path}: template {template!r} holds {sign}, which nobody sees; write it without")
    return tuple(map(str, classes)), tuple(map(str, templates))


def _read_structure(path: Path, errors: list[str]) -> int:
    """Returns the row count of a split; what is wrong with its columns goes to `errors`."""
    try:
        with open_parquet(path) as file:
            schema, rows = file.schema_arrow, int(file.metadata.num_rows)
    except PermissionError:
        errors.append(f"{path}: may not be read by this user; change its permissions")
        return 0
    except (OSError, pa.ArrowException) as error:
        errors.append(f"{path}: {unreadable(path, error)}")
        return 0
    errors += [f"{path}: {problem}" for problem in column_problems(schema)]
    if rows == 0:
        errors.append(f"{path}: no rows; a split needs at least one image of each class")
    return rows


def hash_file(path: Path) -> str:
    """SHA-256 (hex) of a file's content, remembered in this process until its size or time of change differs."""
    status = path.stat()
    key = (str(path), status.st_size, status.st_mtime_ns)
    if key not in _file_hashes:
        with path.open("rb") as file:
            _file_hashes[key] = hashlib.file_digest(file, "sha256").hexdigest()
    return _file_hashes[key]
