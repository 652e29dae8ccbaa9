"""What a data set is that is not in the package's form yet: samples by split, whatever its files are."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from condu_ray.benchmark.meta import TaskError

Label = str | int
"""A class by its name, or by its number in a list of names."""
SPLITS = {
    "train": "train",
    "training": "train",
    "test": "test",
    "testing": "test",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "dev": "validation",
}
"""What folders, files and columns call a split."""
_NUMBER = re.compile(r"-?[0-9]{1,9}(\.0+)?")
NAMES, TEMPLATES = "classnames.txt", "zeroshot_classification_templates.txt"
"""Class names by number and prompts, a line each, beside files that have numbers alone (CLIP_benchmark's names)."""
PHOTOS = (".heic", ".heif", ".raw", ".cr2", ".cr3", ".nef", ".arw", ".dng", ".orf", ".svg")
"""Files that are pictures to a person, and that nothing here reads."""


@dataclass(frozen=True)
class Sample:
    """One image as it lies there."""

    origin: str  #: what messages call it: a path, or a file with a row, line or key
    label: Label | None  #: its class; None where it has none
    data: bytes | None  #: the encoded picture; None where there is none
    wrong: str = ""  #: why it cannot be used, where its source knows


@dataclass(frozen=True)
class Source:
    """A data set that can be converted.

    Attributes:
        name: of the task.
        place: where it lies.
        form: what it is, for messages.
        splits: what yields the samples of a split, by `train`, `test`, `validation`; `all` alone: it has no splits.
        files: all that its samples are read from.
        names: class names by number; None where samples have them.
        templates: prompts that it brings; empty for none.
        official: whether its splits are as somebody published them, in files that no one edits by hand.
        notes: what a user should know, a line each.
    """

    name: str
    place: Path
    form: str
    splits: Mapping[str, Callable[[], Iterator[Sample]]]
    files: tuple[Path, ...]
    names: tuple[str, ...] | None = None
    templates: tuple[str, ...] = ()
    official: bool = False
    notes: tuple[str, ...] = field(default=())


def split_of(name: str) -> str | None:
    """Returns the split that a file's name or a folder's begins with (`train-00000-of-00001.parquet`), else None."""
    word = re.match(r"[A-Za-z]+", name)
    return SPLITS.get(word[0].lower()) if word and re.match(r"[-_.\d]|$", name[word.end() :]) else None


def splits_of(folder: Path, files: list[Path]) -> dict[Path, str | None]:
    """Returns the split that each file is of, by its name or that of the folder that it is in; None: nothing says it.

    Names begin with it, or have it as a word further on (`birds_train.parquet`, `birds-test-000000.tar`), where none
    begins with one and there are training and other files by these words: of one file alone such a word says nothing.
    """
    found = {
        path: split_of(path.name) or (split_of(path.parent.name) if path.parent != folder else None) for path in files
    }
    if not any(found.values()):
        inside = {path: _word_inside(path.name) for path in files}
        if "train" in inside.values() and {"test", "validation"} & set(inside.values()):
            return inside
    return found


def _word_inside(name: str) -> str | None:
    splits = {SPLITS[word] for word in re.findall(r"[a-z]+", name.lower()) if word in SPLITS}
    return splits.pop() if len(splits) == 1 else None


def by_split(folder: Path, files: list[Path], notes: list[str]) -> dict[str, list[Path]]:
    """Sorts files into splits, by their names or that of the folder that they are in.

    Raises:
        TaskError: some say their split and others do not.
    """
    found: dict[str, list[Path]] = {}
    for path, own in splits_of(folder, files).items():
        found.setdefault(own or "all", []).append(path)
    if "all" in found and len(found) > 1:
        named = next(paths[0] for split, paths in found.items() if split != "all")
        raise TaskError(
            f"{folder}: {named.relative_to(folder)} says its split and {found['all'][0].relative_to(folder)} does not; "
            "begin the names of all with train or test, or move what is no part of the data away"
        )
    return chosen(found, folder, notes)


def chosen(splits: Mapping[str, list[Path]], folder: Path, notes: list[str]) -> dict[str, list[Path]]:
    """Returns `train` and `test` of the splits that there are, `validation` for `test` where there is none, or `all`.

    Raises:
        TaskError: there is no training split.
    """
    found = dict(splits)
    if "validation" in found and "test" not in found:
        found["test"] = found.pop("validation")
        notes.append(f"{folder}: its validation split is what is tested on, for it has no test split")
    elif found.pop("validation", None) is not None:
        notes.append(f"{folder}: its validation split is left out")
    if "train" in found and "test" not in found:
        return {"all": found["train"]}
    if "all" not in found and "train" not in found:
        raise TaskError(f"{folder}: has no training images (found: {', '.join(splits)}); add a train split")
    return found


def lines_of(folder: Path, name: str) -> tuple[str, ...] | None:
    """Returns the lines of a text file beside the data; None where there is none.

    Raises:
        TaskError: it is no text, or a class has no name.
    """
    path = folder / name
    if not path.is_file():
        return None
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").rstrip().split("\n")]
    except (OSError, UnicodeDecodeError) as error:
        raise TaskError(f"{path}: cannot be read as text ({error}); write it as UTF-8, one name a line") from error
    if name == NAMES and "" in lines:  # left out, it would give the names after it to other numbers
        raise TaskError(f"{path}: line {lines.index('') + 1} is empty; write a name a line, the first for 0")
    return tuple(line for line in lines if line)


def numbered(folder: Path, called: Collection[str], notes: list[str]) -> tuple[str, ...] | None:
    """Returns the class names that lie beside the data, where their classes are numbers; None where they have words.

    Args:
        folder: of the data.
        called: what the data call their classes.
        notes: gets a line where there are names that are not taken.

    Raises:
        TaskError: as `lines_of`; or two of the classes are one number.
    """
    names = lines_of(folder, NAMES)
    if names is None:
        return None
    if not all(_NUMBER.fullmatch(one) for one in called):
        notes.append(f"{folder / NAMES}: is not read, for classes are called by words")
        return None
    first: dict[int, str] = {}
    for whole in sorted(one.partition(".")[0] for one in called):
        if (other := first.setdefault(int(whole), whole)) != whole:
            raise TaskError(f"{folder}: classes {other!r} and {whole!r} are one number; join them, or rename one")
    return names


def number_of(called: str) -> int | None:
    """Returns a class's number of its text (`7`, or `7.0` as tables write it); None of a negative one: no class."""
    number = int(called.partition(".")[0])
    return None if number < 0 else number


def templates_of(folder: Path) -> tuple[str, ...]:
    """Returns the prompts that lie beside the data, `{}` for the class's name."""
    return tuple(line.replace("{c}", "{}") for line in lines_of(folder, TEMPLATES) or ())


def is_picture(name: str) -> bool:
    """Whether a file is an image by the end of its name."""
    suffix = Path(name).suffix.lower()
    return suffix in PHOTOS or (suffix != ".pdf" and suffix in _suffixes())


def unread(name: str) -> str:
    """Returns why a file that is a picture to a person cannot be read; empty where it can be tried."""
    suffix = Path(name).suffix.lower()
    return f"{suffix} is not read here; convert it to JPEG or PNG" if suffix in PHOTOS else ""


def _suffixes() -> set[str]:
    return {suffix for suffix, kind in Image.registered_extensions().items() if kind in Image.OPEN}


def visible(folder: Path) -> list[Path]:
    """Returns what is in a folder, sorted, without hidden names and what file browsers leave.

    Raises:
        TaskError: it may not be read.
    """
    try:
        found = sorted(folder.iterdir())
    except OSError as error:
        raise TaskError(f"{folder}: cannot be read ({error.strerror or error}); change its permissions") from error
    return [path for path in found if not path.name.startswith((".", "__MACOSX")) and path.name not in _LEFT]


_LEFT = ("Thumbs.db", "desktop.ini")


def file_stamp(path: Path) -> tuple[int, ...]:
    """Returns what changes whenever somebody's own file does, its size and times; of one that is not there, nothing."""
    try:
        found = path.stat()
    except OSError:
        return ()
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns  # the last one cannot be set by a copy's program
