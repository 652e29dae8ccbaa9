"""What the rows of a stretch of a split hold: looked at by this process or another one, and added up in file order."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from condu_ray.benchmark.columns import unreadable_rows
from condu_ray.benchmark.images import Seen, inspect_image
from condu_ray.benchmark.rows import Block, blocks, open_parquet
from condu_ray.benchmark.tasks import TRAIN, Task

_BATCH_ROWS = 32
_SHOWN = 5  # rows that one message names

Run = Callable[..., Iterable[Seen]]
"""`map`, or what does as it does in several threads."""


@dataclass
class Tally:
    """Counts one kind of problem in one file, and keeps the first few."""

    count: int = 0
    row: int | None = None
    shown: list[str] = field(default_factory=list)

    def add(self, row: int, detail: str) -> None:
        """Counts one, of a row from 0."""
        self.count += 1
        self.row = row if self.row is None else self.row
        if len(self.shown) < _SHOWN:
            self.shown.append(detail)

    def join(self, later: Tally) -> None:
        """Counts those of later rows of the file too."""
        self.count += later.count
        self.row = later.row if self.row is None else self.row
        self.shown = [*self.shown, *later.shown][:_SHOWN]

    def text(self) -> str:
        """Names the first few."""
        rest = f" and {self.count - len(self.shown)} more" if self.count > len(self.shown) else ""
        return "; ".join(self.shown) + rest


@dataclass
class Stretch:
    """What was seen in rows that follow one another.

    Attributes:
        counts: images a class, int64 [C].
        rows: how many there are.
        span: the smallest and the largest label.
        digests: hashes of the images' bytes, 16 bytes each, in file order.
        broken: the row at which the file could not be read on, and why; what is behind it was not looked at.
    """

    counts: NDArray[np.int64]
    rows: int = 0
    span: tuple[int, int] = (np.iinfo(np.int64).max, np.iinfo(np.int64).min)
    digests: bytes = b""
    broken: tuple[int, str] | None = None
    nulls: Tally = field(default_factory=Tally)
    outside: Tally = field(default_factory=Tally)
    unusable: Tally = field(default_factory=Tally)
    animated: Tally = field(default_factory=Tally)
    transparent: Tally = field(default_factory=Tally)

    def join(self, later: Stretch) -> None:
        """Adds the rows that come next in the file."""
        if self.broken is not None:
            return
        self.counts = self.counts + later.counts
        self.rows += later.rows
        self.span = min(self.span[0], later.span[0]), max(self.span[1], later.span[1])
        self.digests += later.digests
        self.broken = later.broken
        for name in ("nulls", "outside", "unusable", "animated", "transparent"):
            getattr(self, name).join(getattr(later, name))


def stretches(task: Task, split: str) -> list[Block]:
    """Returns the blocks in which a split is looked at where several processes do."""
    with open_parquet(_file(task, split)) as file:
        return blocks(file)


def _file(task: Task, split: str) -> Path:
    return task.train if split == TRAIN else task.test


def look(task: Task, split: str, block: Block | None = None, run: Run = map) -> Stretch:
    """Decodes the images of some row groups and reads their labels, some rows in memory at a time.

    Args:
        task: whose.
        split: `TRAIN` or `TEST`.
        block: which row groups of the file, and which rows these are; None: all.
        run: decodes several images.

    Returns:
        What they hold; rows are counted from the file's first.
    """
    found = Stretch(np.zeros(len(task.classes), dtype=np.int64))
    first = row = block.start if block else 0
    digests = bytearray()
    try:
        with open_parquet(_file(task, split), streaming=True) as file:
            groups = list(range(block.first, block.stop)) if block else None
            for batch in file.iter_batches(
                _BATCH_ROWS, row_groups=groups, columns=["image", "label"], use_threads=False
            ):
                _labels(found, batch.column("label"), row)
                for index, seen in enumerate(run(inspect_image, batch.column("image").to_pylist())):
                    digests += seen.digest
                    if seen.wrong is not None:
                        found.unusable.add(row + index, f"row {row + index}: {seen.wrong}")
                    for tally, one in ((found.animated, seen.animated), (found.transparent, seen.transparent)):
                        if one:
                            tally.add(row + index, f"row {row + index}")
                row += batch.num_rows
    except (OSError, pa.ArrowException) as error:
        found.broken = row, unreadable_rows(row, error)
    found.rows, found.digests = row - first, bytes(digests)
    return found


def _labels(found: Stretch, column: pa.Array, row: int) -> None:
    """Counts the labels of a batch whose first row is `row`."""
    labels = column.cast(pa.int64(), safe=False)
    absent = labels.is_null().to_numpy(zero_copy_only=False)
    values = pc.fill_null(labels, 0).to_numpy()
    outside = ~absent & ((values < 0) | (values >= len(found.counts)))
    found.counts += np.bincount(values[~absent & ~outside], minlength=len(found.counts))
    if not absent.all():
        low, high = int(values[~absent].min()), int(values[~absent].max())
        found.span = min(found.span[0], low), max(found.span[1], high)
    for index in np.flatnonzero(absent).tolist():
        found.nulls.add(row + index, f"row {row + index}")
    for index in np.flatnonzero(outside).tolist():
        found.outside.add(row + index, f"row {row + index} has {values[index]}")
