"""The training stream: which rows of a Parquet file are seen when, as a pure function of the file and the seed.

Position p of the endless stream of a task is row `order(epoch)[p % rows]`, epoch = p // rows. Rows are shuffled over
the whole file, so that every class comes in proportion whatever the file's order; where a large file's rows are mixed
already (`benchmark.rows.layout`), within windows of neighbouring rows and the windows among each other, for then a
reader needs one window at a time. A data set never has to fit in memory. Any chunk of positions can be read by anyone,
in any order, with the same result, which is what makes a restarted worker give the same expert bit for bit.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from PIL import Image

from condu_ray.benchmark.images import decode
from condu_ray.benchmark.rows import open_parquet
from condu_ray.learn.row_reader import RowReader
from condu_ray.vlm.preprocess import Preprocessor

T = TypeVar("T")

PICTURE_BYTES = 2**26
"""Decoded images that a reader keeps, at most: all of a small data set, which a fine-tune sees many times."""


@dataclass(frozen=True)
class Chunk:
    """Positions [start, stop) of a task's training stream, of which a worker takes every `world`-th.

    Attributes:
        path: Parquet file, by its location: another machine may read it, from a copy of its own.
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
    path: str, *, seed: int, steps: int, batch_size: int, rank: int = 0, world: int = 1, rows: int = 256,
    begin: int = 0,
) -> Iterator[Chunk]:  # fmt: skip
    """Yields the chunks of `steps` batches of `batch_size`, without the first `begin`; about `rows` rows each."""
    stride = batch_size * max(1, rows // batch_size)
    for start in range(begin * batch_size, steps * batch_size, stride):
        yield Chunk(path, seed, start, min(start + stride, steps * batch_size), rank, world)


def epoch_order(windows: Sequence[int], seed: int, epoch: int) -> np.ndarray:
    """Returns the rows of a file in the order of one epoch, int64, every row once.

    Args:
        windows: rows at which windows begin, and the file's end; rows of a window are shuffled together.
        seed: the run's seed.
        epoch: 0-based epoch.
    """
    generator = np.random.default_rng([seed, epoch])
    rows = [np.arange(start, stop) for start, stop in pairwise(windows)]
    return np.concatenate([generator.permutation(rows[i]) for i in generator.permutation(len(rows))])


class Pictures:
    """Decoded images, kept while they fit; a file that comes when there is no room left takes that of those before."""

    def __init__(self) -> None:
        self._kept: dict[str, dict[int, Image.Image]] = {}
        self._bytes, self._full = 0, False

    def get(self, path: str, row: int, encoded: bytes) -> Image.Image:
        """Returns a row's image; raises what `benchmark.images.decode` does."""
        if path not in self._kept:
            if self._full:
                self._kept, self._bytes, self._full = {}, 0, False
            self._kept[path] = {}
        kept = self._kept[path]
        if row in kept:
            return kept[row]
        picture = decode(encoded)
        size = 4 * picture.width * picture.height  # Pillow gives RGB a word a pixel
        if self._bytes + size > PICTURE_BYTES:
            self._full = True
            return picture
        kept[row], self._bytes = picture, self._bytes + size
        return picture


class ChunkReader:
    """Reads, decodes and augments chunks; one a process, keeping open files and what was read of them.

    Args:
        preprocess: open_clip's PreprocessCfg as a dict.
        augment: whether training augmentation is applied.
        frozen: whether an image's augmentation is the same each time that it is seen.
    """

    def __init__(self, preprocess: dict[str, Any], augment: bool, frozen: bool = False) -> None:
        self._preprocessor, self._frozen = Preprocessor(preprocess, augment), frozen
        self._rows, self._pictures = RowReader(), Pictures()
        self._orders: dict[str, tuple[tuple[int, int], np.ndarray]] = {}

    def _order(self, path: str, seed: int, epoch: int) -> np.ndarray:
        if path not in self._orders or self._orders[path][0] != (seed, epoch):
            self._orders[path] = (seed, epoch), epoch_order(self._rows.layout(path).windows, seed, epoch)
        return self._orders[path][1]

    def read(self, chunk: Chunk) -> dict[str, np.ndarray]:
        """Returns `image` uint8 [n, H, W, 3] and `label` int64 [n], in stream order.

        The labels of a file without such a column (reference images) are 0.

        Raises:
            OSError: a copy of the file is needed, and the disk of the temporary folder has no room for it.
        """
        images, labels = [], []
        for position in range(chunk.start, chunk.stop):
            if position % chunk.world != chunk.rank:
                continue
            epoch, place = divmod(position, self._rows.layout(chunk.path).rows)
            row = int(self._order(chunk.path, chunk.seed, epoch)[place])
            encoded, label = self._rows.read(chunk.path, row)
            seed = int(np.random.SeedSequence([chunk.seed, row if self._frozen else position]).generate_state(1)[0])
            images.append(self._preprocessor.prepared(self._pictures.get(chunk.path, row, encoded), seed))
            labels.append(label)
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
    begin: int = 0,
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
        begin: batches to leave out first.

    Yields:
        Pixels uint8 [b, H, W, 3].
    """
    reader = ChunkReader(preprocess, augment=False)
    count = len(files)

    def read() -> Iterator[np.ndarray]:
        for step in range(begin, steps):
            start = (step // count) * batch_size
            path = str(files[step % count])
            yield reader.read(Chunk(path, seed, start, start + batch_size, rank, world))["image"]

    return ahead(read())


def task_images(
    path: Path, preprocess: dict[str, Any], batch_size: int, rows: np.ndarray | None = None
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields pixels uint8 [b, H, W, 3] and labels int64 [b] of a split in file order, without augmentation.

    Args:
        path: Parquet file.
        preprocess: open_clip's PreprocessCfg as a dict.
        batch_size: images a batch, at most.
        rows: those that are wanted, ascending; None: all. Others are not decoded.
    """
    preprocessor = Preprocessor(preprocess)
    encoded: list[bytes] = []
    labels: list[int] = []

    def batch() -> tuple[np.ndarray, np.ndarray]:
        pixels, label = np.stack([preprocessor.pixels(image) for image in encoded]), np.asarray(labels, dtype=np.int64)
        encoded.clear()
        labels.clear()
        return pixels, label

    start = 0
    with open_parquet(path) as file:
        for record in file.iter_batches(batch_size, columns=["image", "label"]):
            wanted: Sequence[int] = range(record.num_rows)
            if rows is not None:
                first, stop = np.searchsorted(rows, [start, start + record.num_rows])
                wanted = (rows[first:stop] - start).tolist()
            start += record.num_rows
            for row in wanted:
                encoded.append(record["image"][row].as_py())
                labels.append(record["label"][row].as_py())
                if len(encoded) == batch_size:
                    yield batch()
    if encoded:
        yield batch()
