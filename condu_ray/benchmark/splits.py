"""Writes a split of a task: encoded images and labels, streamed into row groups that readers like."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

GROUP_ROWS, GROUP_BYTES = 1024, 32 * 2**20
"""A row group ends at whichever comes first; this much is in memory at a time."""


def write_split(path: Path, rows: Iterable[tuple[bytes, int]], about: Mapping[str, Any]) -> None:
    """Streams a split into a Parquet file.

    Args:
        path: the file.
        rows: encoded image and label of each row.
        about: what the file's metadata says of the data set; JSON values.
    """
    columns = [("image", pa.binary()), ("label", pa.int32())]
    schema = pa.schema(columns, metadata={"dataset": json.dumps(dict(about), sort_keys=True)})
    with pq.ParquetWriter(path, schema, compression="none", use_dictionary=False, write_statistics=["label"]) as writer:
        images: list[bytes] = []
        labels: list[int] = []
        size = 0

        def write() -> None:
            if images:
                arrays = [pa.array(images, pa.binary()), pa.array(labels, pa.int32())]
                writer.write_table(pa.table(arrays, schema=schema), row_group_size=len(images))
            images.clear()
            labels.clear()

        for image, label in rows:
            images.append(image)
            labels.append(label)
            size += len(image)
            if len(images) >= GROUP_ROWS or size >= GROUP_BYTES:
                write()
                size = 0
        write()
