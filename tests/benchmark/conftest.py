"""Task folders that the tests write, break and load."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image


class TaskFolders:
    """Writes small tasks below a folder; calling it writes a good one of three classes."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def __call__(self, name: str = "digits", **meta: Any) -> Path:
        """Returns the task's folder; `meta` changes its metadata, and `...` as a value leaves a key out."""
        folder = self.root / name
        folder.mkdir()
        content = {"name": name, "classes": ["one", "two", "three"], "template": "a photo of a {}.", **meta}
        (folder / "meta.json").write_text(
            json.dumps({key: entry for key, entry in content.items() if entry is not ...})
        )
        self.write_split(folder / "train.parquet", range(9), [0, 1, 2] * 3)
        self.write_split(folder / "test.parquet", range(500, 506), [0, 1, 2] * 2)
        return folder

    @staticmethod
    def png(seed: int) -> bytes:
        """A small PNG; another seed gives other bytes."""
        buffer = io.BytesIO()
        Image.fromarray(np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(buffer, "PNG")
        return buffer.getvalue()

    def write_split(self, path: Path, images: Sequence[Any], labels: Sequence[Any], kind: Any = None) -> None:
        """Writes a split in row groups of four rows; an image given as a number is the PNG of that seed."""
        encoded = [self.png(image) if isinstance(image, int) else image for image in images]
        columns = {"image": pa.array(encoded, pa.binary()), "label": pa.array(labels, kind or pa.int32())}
        pq.write_table(pa.table(columns), path, row_group_size=4)

    def change_split(
        self, path: Path, images: dict[int, Any] | None = None, labels: dict[int, Any] | None = None
    ) -> None:
        """Replaces single images or labels, by row."""
        table = pq.read_table(path).to_pydict()
        for column, changes in (("image", images), ("label", labels)):
            for row, value in (changes or {}).items():
                table[column][row] = value
        self.write_split(path, table["image"], table["label"])


@pytest.fixture
def make_task(tmp_path: Path) -> TaskFolders:
    """Writes tasks below `tmp_path`."""
    return TaskFolders(tmp_path)
