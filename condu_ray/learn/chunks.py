"""The training stream: which rows of a Parquet file are seen when, as a pure function of the seed.

Position p of the endless stream of a task is row `order(epoch)[p % rows]`, epoch = p // rows. The shuffle moves rows
within windows of row groups and the windows among each other, so that a reader needs one window of a file at a time:
a data set never has to fit in memory. Any chunk of positions can be read by anyone, in any order, with the same result,
which is what makes a restarted worker give the same expert bit for bit.
"""

from __future__ import annotations

import queue
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from condu_ray.vlm.preprocess import Preprocessor

T = TypeVar("T")
WINDOW_ROWS = 16_384
"""Rows that are shuffled together, at most (at least one row group)."""
CACHED_BYTES = 512 * 2**20
"""Encoded images that a reader keeps, at most (at least one row group)."""
WINDOW_BYTES = CACHED_BYTES // 2
"""Bytes that are shuffled together, at most: a window has to stay in the reader's cache while it is read."""


@dataclass(frozen=True)
class Chunk:
    """Positions [start, stop) of a task's training stream, of which a worker takes every `world`-th.

    Attributes:
        path: Parquet file.
        seed: the run's seed.
        start, stop: stream positions.
        rank, world: this worker's share is the positions p with p % world == rank.
    """

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
    path: str, *, seed: int, steps: int, batch_size: int, rank: int = 0, world: int = 1, rows: int = 256
) -> Iterator[Chunk]:
    """Yields the chunks of `steps` batches of `batch_size`; chunks hold about `rows` rows, whole batches each."""
    stride = batch_size * max(1, rows // batch_size)
    for start in range(0, steps * batch_size, stride):
        yield Chunk(path, seed, start, min(start + stride, steps * batch_size), rank, world)


def epoch_order(
    group_rows: Sequence[int],
    seed: int,
    epoch: int,
    window: int = WINDOW_ROWS,
    group_bytes: Sequence[int] | None = None,
) -> np.ndarray:
    """Returns the rows of a file in the order of one epoch, int64, every row once.

    Args:
        group_rows: rows of each row group of the file.
        seed: the run's seed.
        epoch: 0-based epoch.
        window: rows shuffled together, at least; the row group that reaches it is the window's last.
        group_bytes: bytes of each row group; `WINDOW_BYTES` of them end a window too.
    """
    generator = np.random.default_rng([seed, epoch])
    edges, windows, start = np.cumsum([0, *group_rows]), [], 0
    sizes = np.cumsum([0, *(group_bytes or [0] * len(group_rows))])
    for end in range(1, len(group_rows) + 1):
        full = edges[end] - edges[start] >= window or sizes[end] - sizes[start] >= WINDOW_BYTES
        if full or end == len(group_rows):
            windows.append(np.arange(edges[start], edges[end]))
            start = end
    return np.concatenate([generator.permutation(windows[i]) for i in generator.permutation(len(windows))])


class ChunkReader:
    """Reads, decodes and augments chunks; one a process, caching open files and row groups.

    Args:
        preprocess: open_clip's PreprocessCfg as a dict.
        augment: whether training augmentation is applied.
        frozen: whether an image's augmentation is the same each time that it is seen.
    """

    def __init__(self, preprocess: dict[str, Any], augment: bool, frozen: bool = False) -> None:
        self._preprocessor, self._frozen = Preprocessor(preprocess, augment), frozen
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
            columns = [name for name in ("image", "label") if name in self._file(path).schema_arrow.names]
            self._groups[key] = self._file(path).read_row_group(group, columns=columns)
            while len(self._groups) > 1 and sum(t.nbytes for t in self._groups.values()) > CACHED_BYTES:
                self._groups.popitem(last=False)
        self._groups.move_to_end(key)
        return self._groups[key]

    def _rows(self, chunk: Chunk) -> Iterator[tuple[int, int]]:
        """Yields (position, row of the file) of this worker's share."""
        metadata = self._file(chunk.path).metadata
        groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
        group_rows = [group.num_rows for group in groups]
        total = sum(group_rows)
        for position in range(chunk.start, chunk.stop):
            if position % chunk.world != chunk.rank:
                continue
            key = (chunk.path, chunk.seed, position // total)
            if key not in self._orders:
                self._orders = {k: v for k, v in self._orders.items() if k[0] == chunk.path}
                self._orders[key] = epoch_order(
                    group_rows, chunk.seed, key[2], group_bytes=[group.total_byte_size for group in groups]
                )
            yield position, int(self._orders[key][position % total])

    def read(self, chunk: Chunk) -> dict[str, np.ndarray]:
        """Returns `image` uint8 [n, H, W, 3] and `label` int64 [n], in stream order.

        The labels of a file without such a column (reference images) are 0.
        """
        metadata = self._file(chunk.path).metadata
        edges = np.cumsum([0] + [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)])
        images, labels = [], []
        for position, row in self._rows(chunk):
            group = int(np.searchsorted(edges, row, side="right")) - 1
            table, offset = self._group(chunk.path, group), row - int(edges[group])
            seed = int(np.random.SeedSequence([chunk.seed, row if self._frozen else position]).generate_state(1)[0])
            images.append(self._preprocessor.pixels(table["image"][offset].as_py(), seed))
            labels.append(table["label"][offset].as_py() if "label" in table.column_names else 0)
        return {"image": np.stack(images), "label": np.asarray(labels, dtype=np.int64)}


def batches(reader: ChunkReader, chunks: Iterator[Chunk], batch_size: int) -> Iterator[dict[str, np.ndarray]]:
    """Yields batches in this process, the same ones that Ray Data streams to a worker."""
    for chunk in chunks:
        rows = reader.read(chunk)
        for start in range(0, len(rows["label"]), batch_size):
            yield {name: column[start : start + batch_size] for name, column in rows.items()}


def ahead(items: Iterator[T], depth: int = 2) -> Iterator[T]:
    """Yields the same items, made by a thread up to `depth` before they are wanted; an error is raised in its place."""
    waiting: queue.Queue[tuple[bool, Any]] = queue.Queue(depth)
    closed = threading.Event()

    def put(entry: tuple[bool, Any]) -> None:
        while not closed.is_set():
            try:
                return waiting.put(entry, timeout=0.1)
            except queue.Full:
                continue

    def work() -> None:
        try:
            for item in items:
                put((True, item))
                if closed.is_set():
                    return
            put((False, None))
        except Exception as error:
            put((False, error))

    threading.Thread(target=work, name="ahead", daemon=True).start()
    try:
        while True:
            more, item = waiting.get()
            if not more:
                if item is not None:
                    raise item
                return
            yield item
    finally:
        closed.set()


def reference_images(
    files: Sequence[Path],
    preprocess: dict[str, Any],
    *,
    seed: int,
    steps: int,
    batch_size: int,
    rank: int = 0,
    world: int = 1,
) -> Iterator[np.ndarray]:
    """Yields this worker's share of `steps` batches of reference images, a file after the other in turn.

    Args:
        files: Parquet files with a column `image`.
        preprocess: open_clip's PreprocessCfg as a dict; no augmentation.
        seed: the run's seed.
        steps: batches to yield.
        batch_size: images a batch over all workers.
        rank: this worker among those of the expert.
        world: how many they are.

    Yields:
        Pixels uint8 [b, H, W, 3].
    """
    reader = ChunkReader(preprocess, augment=False)
    count = len(files)

    def read() -> Iterator[np.ndarray]:
        for step in range(steps):
            start = (step // count) * batch_size
            path = str(files[step % count])
            yield reader.read(Chunk(path, seed, start, start + batch_size, rank, world))["image"]

    return ahead(read())


def task_images(path: Path, preprocess: dict[str, Any], batch_size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields pixels uint8 [b, H, W, 3] and labels int64 [b] of a split in file order, without augmentation."""
    preprocessor = Preprocessor(preprocess)
    with pq.ParquetFile(path) as file:
        for record in file.iter_batches(batch_size, columns=["image", "label"]):
            pixels = np.stack([preprocessor.pixels(encoded.as_py()) for encoded in record["image"]])
            yield pixels, np.asarray(record["label"], dtype=np.int64)
