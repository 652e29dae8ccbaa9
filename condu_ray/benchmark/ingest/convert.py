"""From a source to a task's folder in the package's form: one pass, atomic, known again by its content."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import IO, Any

from condu_ray.benchmark.ingest.gather import Picture, Say, gather
from condu_ray.benchmark.ingest.names import in_words, natural
from condu_ray.benchmark.ingest.shares import divide
from condu_ray.benchmark.ingest.source import NAMES, TEMPLATES, Source, file_stamp
from condu_ray.benchmark.meta import TaskError, unseen, wrong_template
from condu_ray.benchmark.splits import write_split
from condu_ray.benchmark.tasks import TEST, TRAIN
from condu_ray.config import content_hash
from condu_ray.store.artifacts import exists, publish, read_meta, writing
from condu_ray.store.backend import backend, on_disk
from condu_ray.store.location import Place
from condu_ray.store.sole_writer import sole_writer

FORM = 1
"""Part of what a converted task is known by: raise it when folders are written in another way."""
READING = 3
"""Part of what files are known by: raise it when some come out as another task, and all are converted once more."""
TEMPLATE = "a photo of a {}."
"""The prompt of a task that brings none, where `--template` gives none."""
_SHOWN = 5


@dataclass(frozen=True)
class Options:
    """What a user says of data that do not say it themselves.

    Attributes:
        template: the prompt; None: what the data bring, else `TEMPLATE`.
        test_share: of each class for the test, of data without a test split.
    """

    template: str | None = None
    test_share: float = 0.2


def unused_share(source: Source, options: Options) -> str:
    """Returns what to say of a share that somebody gave for data that have a test split; empty where it counts."""
    if "all" in source.splits or options.test_share == Options.test_share:
        return ""
    return f"--test_share changes nothing, for {source.place} has a test split of its own"


def stamp(source: Source, options: Options) -> str:
    """Returns what changes whenever a file of a source does (hex): paths, sizes and times; no file is read."""
    beside = [source.place / name for name in (NAMES, TEMPLATES)]
    files = [(os.path.relpath(path, source.place), *file_stamp(path)) for path in (*source.files, *beside)]
    said = [options.template, options.test_share if "all" in source.splits else None]
    return content_hash(["ingest", READING, source.name, source.form, sorted(source.splits), said, files])


def convert(
    source: Source,
    folder_of: Callable[[str], Place],
    spool: Place,
    options: Options,
    say: Say,
    more: Mapping[str, Any] = MappingProxyType({}),
) -> dict[str, Any]:
    """Writes a source as a task's folder, unless a task of the same content is there.

    Args:
        source: the data set.
        folder_of: where the task goes, by a hash of its content (16 hex digits).
        spool: a folder on a disk that has room for all its images once more, while it works.
        options: what the data do not say.
        say: takes a line for people.
        more: what else the manifest records; JSON values.

    Returns:
        The task's `meta.json`.

    Raises:
        TaskError: pictures, classes or splits are not what they should be, by file and row.
        WriteError: it cannot be written.
    """
    for template in source.templates if options.template is None else ():  # before hours are spent on pictures
        if wrong := wrong_template(template):
            raise TaskError(f"{source.place / TEMPLATES}: {wrong}")
    if source.names is not None:
        _in_words(source, source.names, [])
    say(f"{source.name}: is converted from {source.place} ({source.form})")
    notes = list(source.notes)
    with writing(spool), tempfile.TemporaryFile(dir=_made(spool)) as held:  # it has no name, so a kill leaves nothing
        found = gather(source, held, say, look="all" in source.splits)
        classes, number = _classes(source, found, notes)
        together = 0
        if "all" in found:
            train, test, together = divide(found["all"], options.test_share, str(source.place))
            found = {"train": train, "test": test}
        _require_every_class(source, found, number, classes)
        shared = _shared(source, found, notes)
        _note_repeats(found, notes)
        meta: dict[str, Any] = {
            "name": source.name,
            "classes": classes,
            "templates": [options.template] if options.template else list(source.templates or (TEMPLATE,)),
            "source": source.form,
            "order": "rows are in one random order, a function of their content",
            "counts": {split: len(pictures) for split, pictures in found.items()},
            "images_in_both_splits": shared,
            "notes": notes,
        }
        if "all" in source.splits:
            meta |= {"test_share": options.test_share, "near_duplicates_kept_together": together}
        digest = _content(found, number, meta)

        def write(folder: Path) -> None:
            about = {key: meta[key] for key in ("name", "source", "order")}
            for split, file in (("train", TRAIN), ("test", TEST)):
                rows = sorted(found[split], key=lambda picture: picture.rank)
                write_split(folder / file, _rows(held, rows, number), about)

        made = publish(folder_of(digest), {**meta, **more, "content": digest}, write)
    counts = made["counts"]
    images = f"{counts['train']:,} train and {counts['test']:,} test images of {len(classes)} classes"
    say(f"{source.name}: {images} are in {folder_of(digest)}")
    return made


def prepare_own(source: Source, target: Place, options: Options, say: Say) -> dict[str, Any]:
    """Converts a source into a folder that a user names.

    Args:
        source: the data set.
        target: where its folder goes.
        options: what the data do not say.
        say: takes a line for people.

    Returns:
        The task's `meta.json`.

    Raises:
        TaskError: as `convert`, or other data have the place.
        BusyError: another process is preparing it.
    """
    folder, known = target / source.name, stamp(source, options)
    if backend(folder).exists(folder):
        found = read_meta(folder) if exists(folder) else {}
        if found.get("stamp") == known:
            say(f"{source.name}: is in {folder} already")
            return found
        raise TaskError(
            f"{folder}: is there already, of other data or options, or by another version; move it, or give another "
            "--to"
        )
    with sole_writer(folder):
        return convert(source, lambda _: folder, target, options, say, {"stamp": known})


def _made(folder: Place) -> Path | None:
    """A folder for what is held while it works; None, where storage is a bucket: the temporary folder."""
    if (path := on_disk(folder)) is not None:
        path.mkdir(parents=True, exist_ok=True)
    return path


def _rows(held: IO[bytes], pictures: Sequence[Picture], number: dict[object, int]) -> Iterator[tuple[bytes, int]]:
    for picture in pictures:
        held.seek(picture.start)
        yield held.read(picture.size), number[picture.label]


def _classes(source: Source, found: dict[str, list[Picture]], notes: list[str]) -> tuple[list[str], dict[object, int]]:
    """Returns the classes in words, and the label of what samples call them."""
    labels = {picture.label for pictures in found.values() for picture in pictures}
    numbers = sorted(label for label in labels if isinstance(label, int))
    if source.names is not None:
        if strange := [label for label in labels if not (isinstance(label, int) and 0 <= label < len(source.names))]:
            example = next(one for some in found.values() for one in some if one.label in strange)
            raise TaskError(
                f"{source.place}: {example.origin} has class {example.label!r}, and the {len(source.names)} class "
                f"names are for 0 to {len(source.names) - 1}; correct the list of names, or the class"
            )
        names = list(source.names)
        number: dict[object, int] = {label: label for label in range(len(names))}
    elif numbers:
        raise TaskError(
            f"{source.place}: classes are numbers ({numbers[0]} to {numbers[-1]}), and nothing says their names; write "
            f"{source.place / NAMES}, a name a line, the first for 0"
        )
    else:
        names = sorted(map(str, labels), key=natural)
        number = {name: index for index, name in enumerate(names)}
    return _in_words(source, names, notes), number


def _in_words(source: Source, names: Sequence[str], notes: list[str]) -> list[str]:
    """Returns what prompts call the classes, of which no two are one, and none is empty or has signs that nobody sees.

    Raises:
        TaskError: one is.
    """
    words = in_words(names, notes)
    first: dict[str, int] = {}
    for index, word in enumerate(words):
        if not word:
            raise TaskError(f"{source.place}: nothing is left of class {names[index]!r} in words; give it a name")
        if sign := unseen(word):
            raise TaskError(
                f"{source.place}: class {names[index]!r} holds {sign}, which nobody sees; rename it without"
            )
        if (earlier := first.setdefault(word.casefold(), index)) != index:
            raise TaskError(
                f"{source.place}: classes {names[earlier]!r} and {names[index]!r} are both {word!r} in words; rename "
                "or join them"
            )
    return words


def _require_every_class(
    source: Source, found: dict[str, list[Picture]], number: dict[object, int], classes: list[str]
) -> None:
    for split, pictures in found.items():
        there = {number[picture.label] for picture in pictures}
        if empty := [name for index, name in enumerate(classes) if index not in there]:
            more = f" and {len(empty) - _SHOWN} more" if len(empty) > _SHOWN else ""
            hint = "; or are these captions, and no classes?" if len(empty) > len(classes) // 2 else ""
            raise TaskError(
                f"{source.place}: {len(empty)} of {len(classes)} classes have no image for {split}: "
                f"{', '.join(map(repr, empty[:_SHOWN]))}{more}; add some, or leave the classes out{hint}"
            )


def _shared(source: Source, found: dict[str, list[Picture]], notes: list[str]) -> int:
    """Returns how many test images are training images too; refuses them where a person can move the files."""
    trained = {picture.digest: picture for picture in found["train"]}
    both = [(trained[one.digest], one) for one in found["test"] if one.digest in trained]
    if both:
        shown = "; ".join(f"{one.origin} is {other.origin}" for one, other in both[:_SHOWN])
        more = f" and {len(both) - _SHOWN} more" if len(both) > _SHOWN else ""
        said = f"{len(both)} test images are training images too: {shown}{more}"
        if not source.official:
            raise TaskError(f"{source.place}: {said}; remove them from one of the two")
        notes.append(f"{said}; they are kept, for the splits are the data set's own")
    return len(both)


def _note_repeats(found: dict[str, list[Picture]], notes: list[str]) -> None:
    for split, pictures in found.items():
        first: dict[bytes, Picture] = {}
        pairs = [(first.setdefault(one.digest, one), one) for one in pictures]
        repeats = [(one, other) for one, other in pairs if one is not other]
        if repeats:
            shown = "; ".join(f"{other.origin} is {one.origin}" for one, other in repeats[:_SHOWN])
            more = f" and {len(repeats) - _SHOWN} more" if len(repeats) > _SHOWN else ""
            unlike = sum(one.label != other.label for one, other in repeats)
            odd = f" ({unlike} of them in another class)" if unlike else ""
            notes.append(f"{len(repeats)} {split} images repeat{odd}: {shown}{more}; keep one of each")


def _content(found: dict[str, list[Picture]], number: dict[object, int], meta: dict[str, Any]) -> str:
    """Hashes what the task will be: every image with its split and label, classes and templates."""
    rows = {
        split: sorted([number[one.label], one.digest.hex()] for one in pictures) for split, pictures in found.items()
    }
    content = [FORM, rows, meta["classes"], meta["templates"]]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
