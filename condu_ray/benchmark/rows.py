"""Rows of a Parquet file: in which windows they are shuffled, in which blocks they are read, and a sample of them.

All of it is a function of the file's content alone, so that everybody who reads the file comes to the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

WINDOW_ROWS = 16_384
"""Rows that are shuffled together in a file whose rows are mixed, at most (at least one row group)."""
CACHED_BYTES = 512 * 2**20
"""Encoded images that a reader keeps in memory, at most (at least one block)."""
WINDOW_BYTES = CACHED_BYTES // 2
"""Bytes that are shuffled together there, at most: a window has to stay in the reader's memory while it is read."""
BLOCK_ROWS, BLOCK_BYTES = 1024, 32 * 2**20
"""Row groups that are smaller are read together up to this."""


@dataclass(frozen=True)
class Block:
    """Row groups [first, stop) of a file, which hold its rows [start, end)."""

    first: int
    stop: int
    start: int
    end: int


@dataclass(frozen=True)
class Layout:
    """How a Parquet file of images is read.

    Attributes:
        rows: rows of the file.
        size: its bytes, uncompressed.
        windows: rows at which the windows of the shuffle begin, and the file's end; [0, rows]: the file is one window.
        sorted: whether rows come class by class.
        mixed: whether each window of a large file has the classes in the file's proportion; true for a small one.
    """

    rows: int
    size: int
    windows: tuple[int, ...]
    sorted: bool
    mixed: bool

    @property
    def copied(self) -> bool:
        """Whether a reader needs a copy on its disk, for rows are wanted in an order that memory cannot follow."""
        return not self.mixed and self.size > CACHED_BYTES


def open_parquet(path: str | Path, *, streaming: bool = False) -> pq.ParquetFile:
    """Opens a Parquet file.

    Args:
        path: the file.
        streaming: whether batches are read one after the other, with a few pages in memory in place of row groups.
    """
    # Without a buffer size pyarrow reads whole row groups.
    return pq.ParquetFile(path, buffer_size=1 << 20, pre_buffer=False) if streaming else pq.ParquetFile(path)


def blocks(file: pq.ParquetFile, rows: int = BLOCK_ROWS) -> list[Block]:
    """Returns row groups in file order, neighbours together up to `rows` rows and `BLOCK_BYTES` bytes."""
    found: list[Block] = []
    size, end = 0, 0
    for number in range(file.metadata.num_row_groups):
        group = file.metadata.row_group(number)
        size, start, end = size + group.total_byte_size, end, end + group.num_rows
        if found and end - found[-1].start <= rows and size <= BLOCK_BYTES:
            found[-1] = Block(found[-1].first, number + 1, found[-1].start, end)
        else:
            found.append(Block(number, number + 1, start, end))
            size = group.total_byte_size
    return found


def has_labels(file: pq.ParquetFile) -> bool:
    """Whether a file has a column of integer labels, which reference images need not have."""
    schema = file.schema_arrow
    return "label" in schema.names and pa.types.is_integer(schema.field("label").type)


def read_labels(file: pq.ParquetFile) -> np.ndarray | None:
    """Returns the labels of all rows, int64, without reading an image; -1 for null; None if they are no integers."""
    if not has_labels(file):
        return None
    return file.read(columns=["label"])["label"].cast(pa.int64(), safe=False).fill_null(-1).to_numpy()


def layout(file: pq.ParquetFile) -> Layout:
    """Decides how a file is shuffled: in windows of neighbouring rows where these are as good as the whole, else whole.

    A window at a time costs each image's bytes once, in memory alone; rows that are sorted by class, or that have no
    label to tell, are shuffled over the whole file, which a reader of more than `CACHED_BYTES` copies to its disk.
    """
    edges, size, total, start = [0], 0, 0, 0
    for number in range(file.metadata.num_row_groups):
        group = file.metadata.row_group(number)
        start, size, total = start + group.num_rows, size + group.total_byte_size, total + group.total_byte_size
        if start - edges[-1] >= WINDOW_ROWS or size >= WINDOW_BYTES:
            edges.append(start)
            size = 0
    if edges[-1] < start:
        edges.append(start)
    if len(edges) <= 2:
        return Layout(start, total, (0, start), sorted=False, mixed=True)
    labels = read_labels(file)
    if labels is not None and in_proportion(labels, edges):
        return Layout(start, total, tuple(edges), sorted=False, mixed=True)
    in_order = labels is not None and bool((np.diff(labels) >= 0).all())
    return Layout(start, total, (0, start), sorted=in_order, mixed=False)


def in_proportion(labels: np.ndarray, edges: list[int]) -> bool:
    """Whether all windows have the classes in the file's proportion, as random order would (a chi-square statistic).

    Args:
        labels: of all rows, int64.
        edges: rows at which the windows begin, and the end.
    """
    _, label = np.unique(labels, return_inverse=True)
    classes, windows = int(label.max()) + 1, len(edges) - 1
    window = np.repeat(np.arange(windows), np.diff(edges))
    seen = np.bincount(window * classes + label, minlength=windows * classes).reshape(windows, classes)
    expected = np.outer(seen.sum(axis=1), seen.sum(axis=0)) / len(labels)
    freedom = (windows - 1) * (classes - 1)
    # Five standard deviations: rows in random order are above it in one file of a million.
    return float(((seen - expected) ** 2 / expected).sum()) <= freedom + 5 * np.sqrt(2 * freedom) + 5


def sample(labels: np.ndarray, count: int) -> np.ndarray:
    """Draws rows in proportion to the classes, the same ones for everybody.

    Args:
        labels: of all rows, int64.
        count: rows to draw; 0 or more than there are: all.

    Returns:
        The rows, int64, ascending. Of a class with n of N rows, n * count / N are drawn, rounded down, and what is left
        goes to the classes with the largest remainders, equal ones by lot.
    """
    if not 0 < count < len(labels):
        return np.arange(len(labels))
    generator = np.random.default_rng([count, len(labels)])
    _, label, sizes = np.unique(labels, return_inverse=True, return_counts=True)
    wanted, remainder = np.divmod(sizes * count, len(labels))
    lot = generator.permutation(len(sizes))
    wanted[lot[np.argsort(-remainder[lot], kind="stable")[: count - wanted.sum()]]] += 1
    by_class = np.split(np.argsort(label, kind="stable"), np.cumsum(sizes)[:-1])
    return np.sort(np.concatenate([generator.permutation(rows)[:n] for rows, n in zip(by_class, wanted, strict=True)]))
