"""Ray Data pipelines: training batches for a worker, and the one pass that makes all prototypes.

Both are made from chunks (which rows of which file), each read whole by one actor: what a chunk gives does not depend
on timing, so a run gives the same bits however Ray schedules it. `ray.data.read_parquet` splits and groups blocks by
size and load, which would not.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import ray.data
from ray.data import ActorPoolStrategy, DataContext

from condu_ray.learn.chunks import Chunk, ChunkReader
from condu_ray.orchestration.cluster.env import quiet_data
from condu_ray.orchestration.cluster.room import DECODER_ASKS


def ordered_context() -> None:
    """Blocks come out in the order of the chunks, whichever actor is done first."""
    context = DataContext.get_current()
    context.execution_options.preserve_order = True
    context.enable_progress_bars = False
    context.issue_detectors_config.detectors = []  # they advise to reserve memory that two-core machines do not have
    quiet_data()


class DecodeChunks:
    """Ray Data actor: a chunk in, its decoded and augmented rows out."""

    def __init__(self, preprocess: dict[str, Any], augment: bool, frozen: bool) -> None:
        self._reader = ChunkReader(preprocess, augment, frozen)

    def __call__(self, rows: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Reads the one chunk that a batch of size 1 holds."""
        return self._reader.read(Chunk(**{name: column.tolist()[0] for name, column in rows.items()}))


def chunk_dataset(rows: Sequence[dict[str, Any]]) -> ray.data.Dataset:
    """Returns a dataset with one block a chunk, so that the first rows arrive before the last chunk is read."""
    ordered_context()
    return ray.data.from_items(list(rows), override_num_blocks=len(rows))


def training_batches(
    chunks: Sequence[Chunk],
    *,
    preprocess: dict[str, Any],
    augment: bool,
    batch_size: int,
    decoders: int,
    frozen: bool = False,
) -> Iterator[dict[str, np.ndarray]]:
    """Streams batches of one worker, over all of its tasks, in order.

    Args:
        chunks: chunks of this worker; each task's rows are a multiple of `batch_size`, so no batch mixes tasks.
        preprocess: open_clip's PreprocessCfg as a dict.
        augment: whether training augmentation is applied.
        batch_size: rows a batch for this worker.
        decoders: actors that decode.
        frozen: whether an image's augmentation is the same each time that it is seen.

    Yields:
        `image` uint8 [b, H, W, 3], `label` int64 [b].
    """
    decoded = chunk_dataset([chunk.row() for chunk in chunks]).map_batches(
        DecodeChunks,
        batch_size=1,
        fn_constructor_kwargs={"preprocess": preprocess, "augment": augment, "frozen": frozen},
        compute=ActorPoolStrategy(size=decoders),
        num_cpus=DECODER_ASKS,
    )
    yield from decoded.iter_batches(batch_size=batch_size, prefetch_batches=4, batch_format="numpy")


def started(stream: Iterator[dict[str, np.ndarray]]) -> Iterator[dict[str, np.ndarray]]:
    """Returns the same stream, its first batch already on the way: its actors start while the model is loaded."""
    pool = ThreadPoolExecutor(1, thread_name_prefix="stream")
    first = pool.submit(next, stream)
    pool.shutdown(wait=False)

    def joined() -> Iterator[dict[str, np.ndarray]]:
        yield first.result()
        yield from stream

    return joined()
