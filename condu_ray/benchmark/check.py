"""Full checks of a task's content: labels, images, and what the two splits share.

Each split is read in small batches, so a file never has to fit in memory, only a few of its pages (pyarrow writes 1024
rows a page, or fewer by `write_batch_size`); 16 bytes an image stay, its hash. Rows are counted from 0.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Literal

import numpy as np
import pyarrow as pa

from condu_ray.benchmark.columns import unreadable_rows
from condu_ray.benchmark.rows import Layout, layout, open_parquet
from condu_ray.benchmark.stretch import Run, Stretch, Tally, look
from condu_ray.benchmark.tasks import META, TEST, TRAIN, Task, TaskError
from condu_ray.store.artifacts import ArtifactError, WriteError, read_sealed, read_text, write_sealed
from condu_ray.store.layout import verdict_path
from condu_ray.store.location import Place

logger = logging.getLogger(__name__)

#: Part of a cached verdict: raise it when a check is added or changes, and every task is checked again.
CHECK_VERSION = 5

CARRIED = "checked.json"
"""File in a task's folder that has the verdict of who prepared it: whoever reads these data decodes none of them."""
_MAX_LISTED = 20  # problems that one error lists
_OFFICIAL = "the official splits share them, so figures stay comparable"


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with a task.

    Attributes:
        severity: "error" (the task cannot be used) or "warning".
        file: Name of the file inside the task's folder.
        row: First row that it is about, from 0; None if it is about the whole file.
        message: What is wrong, with the rows, and what to do.
        transparent: Whether it is about transparent images, which a run may refuse.
    """

    severity: Literal["error", "warning"]
    file: str
    row: int | None
    message: str
    transparent: bool = False

    def __str__(self) -> str:
        return f"{self.file}: {self.message}"


def check_task(task: Task, *, workers: int = 1) -> list[Problem]:
    """Checks every row of both splits.

    Args:
        task: A task from `load_task`.
        workers: Threads that decode images.

    Returns:
        Errors (labels out of range or null, classes without an image, images that do not decode, have more than
        `MAX_PIXELS` pixels, sides beyond `MAX_RATIO` or more than 8 bits a channel, images in both splits) and warnings
        (images twice in a split, with several frames or transparent, a single class, a large file in no random order);
        empty if all is well. Palettes and CMYK pass: training converts them to RGB. One `Problem` stands for one kind
        of problem in one file, and names its first rows.
    """
    with ThreadPoolExecutor(max_workers=max(1, workers)) as pool:
        # With one worker the pool would only cost hand-overs.
        run: Run = map if workers <= 1 else pool.map
        return judge(task, {split: look(task, split, run=run) for split in (TRAIN, TEST)})


def judge(task: Task, found: Mapping[str, Stretch]) -> list[Problem]:
    """Says what is wrong with a task, of which all rows of both splits were looked at.

    Args:
        task: A task from `load_task`.
        found: What its splits hold, by `TRAIN` and `TEST`.

    Returns:
        As `check_task`.
    """
    problems: list[Problem] = []
    if len(task.classes) == 1:
        message = f"{task.classes[0]!r} is the only class: accuracy is always 100 %; add classes, or leave the task out"
        problems.append(Problem("warning", META, None, message))
    for split in (TRAIN, TEST):
        problems += _of_split(task, split, found[split])
    digests = [np.frombuffer(found[split].digests, dtype=np.uint64).reshape(-1, 2) for split in (TRAIN, TEST)]
    _check_repeats(task, digests, problems)
    return problems


def cores() -> int:
    """Returns how many threads decode images, where nothing else is at work: one a CPU of this process, at most 16."""
    return min(16, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)


def carry_verdict(task: Task, *, workers: int = 1) -> list[Problem]:
    """Checks a task that was prepared, and leaves a good verdict beside its data, by their content.

    Args:
        task: A task from `load_task`, on a disk.
        workers: Threads that decode images.

    Returns:
        Its problems; with an error among them no verdict is left.
    """
    place = task.folder / CARRIED
    problems = _read_verdict(task, place)
    if problems is None:
        problems = check_task(task, workers=workers)
        if not any(problem.severity == "error" for problem in problems):
            _write_verdict(task, place, problems)
    return problems


def require_valid(
    tasks: Sequence[Task],
    cache_folder: Place | None = None,
    *,
    workers: int = 1,
    refuse_transparent: bool = False,
    say: Callable[[str], None] = logger.info,
    before: Callable[[list[Task]], object] = len,
) -> None:
    """Checks the content of tasks, logs the warnings, and refuses tasks with errors.

    Args:
        tasks: Tasks from `load_tasks`.
        cache_folder: Where a good verdict is kept, as `<fingerprint>.json`, so that the same data are checked once;
            None: check each time.
        workers: Threads that decode images.
        refuse_transparent: Whether transparent images are an error.
        say: Takes a line for people before images are decoded.
        before: Takes the tasks whose images are to be decoded, for what is looked at sooner than these.

    Raises:
        TaskError: Listing the first errors of all tasks, and how many more there are.
    """
    verdicts: list[tuple[Task, list[Problem]]] = []
    known = [known_verdict(task, cache_folder) for task in tasks]
    before([task for task, problems in zip(tasks, known, strict=True) if problems is None])
    for task, problems in zip(tasks, known, strict=True):
        if problems is None:
            say(f"{task.name}: {task.train_rows + task.test_rows:,} images are checked, once")
            problems = check_task(task, workers=workers)
            keep_verdict(task, cache_folder, problems)
        verdicts.append((task, problems))
    require(verdicts, refuse_transparent=refuse_transparent)


def known_verdict(task: Task, cache_folder: Place | None) -> list[Problem] | None:
    """Returns a good verdict that is in the folder of verdicts or beside the data; None where there is none."""
    places = [verdict_path(cache_folder, task.fingerprint)] if cache_folder is not None else []
    found = (_read_verdict(task, place) for place in (*places, task.folder / CARRIED))
    return next((verdict for verdict in found if verdict is not None), None)


def keep_verdict(task: Task, cache_folder: Place | None, problems: list[Problem]) -> None:
    """Keeps a good verdict alone: a failure may be the disk's, and has to be looked at again anyway."""
    if cache_folder is not None and not any(problem.severity == "error" for problem in problems):
        _write_verdict(task, verdict_path(cache_folder, task.fingerprint), problems)


def require(verdicts: Iterable[tuple[Task, list[Problem]]], *, refuse_transparent: bool = False) -> None:
    """Logs the warnings of tasks, and refuses tasks with errors.

    Args:
        verdicts: Tasks and what is wrong with them.
        refuse_transparent: Whether transparent images are an error.

    Raises:
        TaskError: Listing the first errors of all tasks, and how many more there are.
    """
    errors = []
    for task, problems in verdicts:
        for problem in problems:
            if problem.severity == "error" or (refuse_transparent and problem.transparent):
                errors.append(f"{task.folder}{os.sep}{problem}")
            else:
                logger.warning("%s%s%s", task.folder, os.sep, problem)
    if errors:
        rest = [f"... and {len(errors) - _MAX_LISTED} more"] if len(errors) > _MAX_LISTED else []
        raise TaskError("\n".join([f"{len(errors)} errors in the tasks' data:", *errors[:_MAX_LISTED], *rest]))


def _of_split(task: Task, name: str, found: Stretch) -> list[Problem]:
    """Returns what is wrong with one file, of which all rows were looked at."""
    if found.broken is not None:
        return [Problem("error", name, *found.broken)]
    problems: list[Problem] = []
    counts, rows = found.counts.copy(), found.rows

    def report(tally: Tally, message: str, severity: Literal["error", "warning"] = "error") -> None:
        if tally.count:
            problems.append(Problem(severity, name, tally.row, f"{tally.count} of {rows} {message}"))

    report(found.nulls, f"labels are null: {found.nulls.text()}; give each image a label")
    wanted = f"labels are out of range 0 to {len(counts) - 1}"
    shifted = found.span == (1, len(counts))
    if shifted:
        message = f"{wanted}: all labels of the file are 1 to {len(counts)}, shifted by one; subtract 1"
    else:
        message = f"{wanted}: {found.outside.text()}; correct them, or add their classes to meta.json"
    report(found.outside, message)
    report(found.unusable, f"images cannot be used: {found.unusable.text()}; write these anew, or leave them out")
    report(
        found.animated, f"images have several frames: {found.animated.text()}; only the first one is used", "warning"
    )
    if found.transparent.count:
        message = f"{found.transparent.count} of {rows} images are transparent in places: {found.transparent.text()}; "
        message += "white is put behind them, or --transparent refuse"
        problems.append(Problem("warning", name, found.transparent.row, message, transparent=True))
    if name == TRAIN:
        try:
            with open_parquet(task.train, streaming=True) as file:
                order = layout(file)
        except (OSError, pa.ArrowException) as error:
            return [Problem("error", name, rows, unreadable_rows(rows, error))]
        if not order.mixed:
            problems.append(Problem("warning", name, None, _order_text(order)))
    empty = Tally()
    if shifted:
        counts[0] = 1  # that no label is 0 is said already
    for label in np.flatnonzero(counts == 0).tolist():
        empty.add(label, f"{label} {task.classes[label]!r}")
    if empty.count:
        message = f"{empty.count} of {len(counts)} classes have no image: {empty.text()}; add images or drop the class"
        problems.append(Problem("error", name, None, message))
    return problems


def _order_text(order: Layout) -> str:
    """Returns what a large file's order of rows costs training."""
    found = "are sorted by class" if order.sorted else "are in no random order"
    cost = f", from a copy of {order.size / 1e9:.1f} GB in each reader's temporary folder" if order.copied else ""
    advice = "; written in random order, they would need none" if order.copied else ""
    return f"rows {found}: training shuffles them over the whole file{cost}{advice}"


def _official_repeats(task: Task) -> int:
    """Returns how many images the official splits themselves share, as the converters of `mtil` count them."""
    try:
        known = json.loads(read_text(task.folder / META)).get("images_in_both_splits", 0)
    except (OSError, ValueError):
        return 0
    return known if isinstance(known, int) else 0


def _check_repeats(task: Task, digests: list[np.ndarray], problems: list[Problem]) -> None:
    """Finds images with the same bytes, within and across the splits, by one sort of all hashes."""
    train_rows = len(digests[0])
    both = np.concatenate(digests)
    order = np.lexsort((both[:, 1], both[:, 0]))  # stable: equal images stay in the order train, test, row
    same = (both[order[1:]] == both[order[:-1]]).all(axis=1)
    pairs: dict[str, list[tuple[int, int]]] = {"shared": [], TRAIN: [], TEST: []}
    first = 0  # position in `order` of the first image of the current group
    for position in (np.flatnonzero(same) + 1).tolist():
        if position == 1 or not same[position - 2]:
            first = position - 1
        start, previous, row = (int(order[index]) for index in (first, position - 1, position))
        if previous < train_rows <= row:
            pairs["shared"].append((start, row - train_rows))
        else:
            split, offset = (TEST, train_rows) if previous >= train_rows else (TRAIN, 0)
            pairs[split].append((previous - offset, row - offset))
    for kind, found in pairs.items():
        tally = Tally()
        for one, other in sorted(found):
            tally.add(one, f"row {one} is row {other}" + (f" of {TEST}" if kind == "shared" else ""))
        if found and kind == "shared":
            message = f"{tally.count} images are in {TEST} too: {tally.text()}; "
            if tally.count <= _official_repeats(task):
                problems.append(Problem("warning", TRAIN, tally.row, message + _OFFICIAL))
            else:
                problems.append(Problem("error", TRAIN, tally.row, message + "remove them from one of the two"))
        elif found:
            message = f"{tally.count} images repeat: {tally.text()}; keep one of each, or they count more than once"
            problems.append(Problem("warning", kind, tally.row, message))


def _read_verdict(task: Task, place: Place) -> list[Problem] | None:
    try:
        verdict = read_sealed(place, required=True)
        # One in a folder of verdicts has the content in its name.
        content = verdict["content"] if place.name == CARRIED else task.fingerprint
        if verdict["version"] == CHECK_VERSION and content == task.fingerprint:
            problems = [Problem(**entry) for entry in verdict["problems"]]
            # What meta.json says of the official splits is not of the content: by a smaller number they may be bad.
            shared = [int(one.message.split()[0]) for one in problems if one.message.endswith(_OFFICIAL)]
            return problems if not shared or max(shared) <= _official_repeats(task) else None
    except (OSError, ArtifactError, KeyError, TypeError, ValueError):
        return None  # none yet, or damaged: check again
    return None


def _write_verdict(task: Task, place: Place, problems: list[Problem]) -> None:
    content = {"content": task.fingerprint} if place.name == CARRIED else {}
    entries = [asdict(problem) for problem in problems]
    try:
        write_sealed(place, {"version": CHECK_VERSION, "task": task.name, **content, "problems": entries})
    except WriteError as error:
        logger.warning("%s: the verdict on %s is not kept (%s)", place.parent, task.name, error)
