"""The training stream: which rows of a Parquet file are seen when, as a pure function of the seed.

Position p of the endless stream of a task is row `order(epoch)[p % rows]`, epoch = p // rows. The shuffle moves rows
within windows of row groups and the windows among each other, so that a reader needs one window of a file at a time:
a data set never has to fit in memory. Any chunk of positions can be read by anyone, in any order, with the same result,
which is what makes a restarted worker give the same expert bit for bit.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from condu_ray.vlm.preprocess import Preprocessor

WINDOW_ROWS = 16_384
"""Rows that are shuffled together (at least one row group)."""
CACHED_BYTES = 512 * 2**20
"""Encoded images that a reader keeps, at most (at least one row group)."""


@dataclass(frozen=True)
class Chunk:
    """Positions [start, stop) of a task's training stream, of which a worker takes every `world`-th.

    Attributes:
        task: index of the task in the worker's plan.
        path: Parquet file.
        seed: the run's seed.
        start, stop: stream positions.
        rank, world: this worker's share is the positions p with p % world == rank.
    """

    task: int
    path: str
    seed: int
    start: int
    stop: int
    rank: int
    world: int

    def row(self) -> dict[str, Any]:
        """Returns the chunk as a row for Ray Data."""
        return asdict(self)


def training_chunks(
    task: int, path: str, *, seed: int, steps: int, batch_size: int, rank: int = 0, world: int = 1, rows: int = 256
) -> Iterator[Chunk]:
    """Yields the chunks of `steps` batches of `batch_size`; chunks hold about `rows` rows, whole batches each."""
    stride = batch_size * max(1, rows // batch_size)
    for start in range(0, steps * batch_size, stride):
        yield Chunk(task, path, seed, start, min(start + stride, steps * batch_size), rank, world)


def epoch_order(group_rows: list[int], seed: int, epoch: int, window: int = WINDOW_ROWS) -> np.ndarray:
    """Returns the rows of a file in the order of one epoch, int64, every row once.

    Args:
        group_rows: rows of each row group of the file.
        seed: the run's seed.
        epoch: 0-based epoch.
        window: rows shuffled together.
    """
    generator = np.random.default_rng([seed, epoch])
    edges, windows, start = np.cumsum([0, *group_rows]), [], 0
    for end in range(1, len(group_rows) + 1):
        if edges[end] - edges[start] >= window or end == len(group_rows):
            windows.append(np.arange(edges[start], edges[end]))
            start = end
    return np.concatenate([generator.permutation(windows[i]) for i in generator.permutation(len(windows))])


class ChunkReader:
    """Reads, decodes and augments chunks; one a process, caching open files and row groups.

    Args:
        preprocess: open_clip's PreprocessCfg as a dict.
        augment: whether training augmentation is applied.
    """

    def __init__(self, preprocess: dict[str, Any], augment: bool) -> None:
        self._preprocessor = Preprocessor(preprocess, augment)
        self._files: dict[str, pq.ParquetFile] = {}
        self._orders: dict[tuple[str, int, int], np.ndarray] = {}
        self._groups: OrderedDict[tuple[str, int], pa.Table] = OrderedDict()

    def _file(self, path: str) -> pq.ParquetFile:
        if path not in self._files:
            self._files[path] = pq.ParquetFile(path)
        return self._files[path]

    def _group(self, path: str, group: int) -> pa.Table:
        key = (path, group)
        if key not in self._groups:
            self._groups[key] = self._file(path).read_row_group(group, columns=["image", "label"])
            while len(self._groups) > 1 and sum(t.nbytes for t in self._groups.values()) > CACHED_BYTES:
                self._groups.popitem(last=False)
        self._groups.move_to_end(key)
        return self._groups[key]

    def _rows(self, chunk: Chunk) -> Iterator[tuple[int, int]]:
        """Yields (position, row of the file) of this worker's share."""
        metadata = self._file(chunk.path).metadata
        group_rows = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
        total = sum(group_rows)
        for position in range(chunk.start, chunk.stop):
            if position % chunk.world != chunk.rank:
                continue
            key = (chunk.path, chunk.seed, position // total)
            if key not in self._orders:
                self._orders = {k: v for k, v in self._orders.items() if k[0] == chunk.path}
                self._orders[key] = epoch_order(group_rows, chunk.seed, key[2])
            yield position, int(self._orders[key][position % total])

    def read(self, chunk: Chunk) -> dict[str, np.ndarray]:
        """Returns `image` uint8 [n, H, W, 3], `label` int64 [n] and `task` int64 [n], in stream order."""
        metadata = self._file(chunk.path).metadata
        edges = np.cumsum([0] + [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)])
        images, labels = [], []
        for position, row in self._rows(chunk):
            group = int(np.searchsorted(edges, row, side="right")) - 1
            table, offset = self._group(chunk.path, group), row - int(edges[group])
            seed = int(np.random.SeedSequence([chunk.seed, position]).generate_state(1)[0])
            images.append(self._preprocessor.pixels(table["image"][offset].as_py(), seed))
            labels.append(table["label"][offset].as_py())
        count = len(labels)
        return {
            "image": np.stack(images),
            "label": np.asarray(labels, dtype=np.int64),
            "task": np.full(count, chunk.task, dtype=np.int64),
        }


def batches(reader: ChunkReader, chunks: Iterator[Chunk], batch_size: int) -> Iterator[dict[str, np.ndarray]]:
    """Yields batches in this process, the same ones that Ray Data streams to a worker."""
    for chunk in chunks:
        rows = reader.read(chunk)
        for start in range(0, len(rows["label"]), batch_size):
            yield {name: column[start : start + batch_size] for name, column in rows.items()}
