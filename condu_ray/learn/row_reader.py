"""Single rows of Parquet files in any order, at the cost of their bytes, or of the file's where it fits in memory.

A file is kept in memory as it is read, block by block, up to `CACHED_BYTES` of all files together. A larger one whose
rows are wanted all over it is copied to this machine's disk first, for Parquet gives out whole row groups: each row in
random order would cost one.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections import OrderedDict

import numpy as np
import pyarrow as pa

from condu_ray.benchmark.rows import CACHED_BYTES, Layout, blocks, has_labels, layout, open_parquet, read_labels
from condu_ray.store.artifacts import local
from condu_ray.store.location import Location

SPARE_BYTES = 2**30
"""What the disk of the temporary folder must have left beside a copy."""


class Spool:
    """The encoded images of a Parquet file, read once from its start to its end, in a temporary file without a name.

    Args:
        path: Parquet file with a column `image`.
        rows: its rows.

    Raises:
        OSError: the disk of the temporary folder is full.
    """

    def __init__(self, path: str, rows: int) -> None:
        self._file = tempfile.TemporaryFile()  # noqa: SIM115  it ends with this object
        self._edges = np.zeros(rows + 1, dtype=np.int64)
        row = 0
        with open_parquet(local(Location(path)), streaming=True) as source:
            for batch in source.iter_batches(32, columns=["image"], use_threads=False):
                for encoded in batch.column("image").to_pylist():
                    self._edges[row + 1] = self._edges[row] + self._file.write(encoded or b"")
                    row += 1
        self._file.flush()

    def __getitem__(self, row: int) -> bytes:
        start, stop = self._edges[row : row + 2].tolist()
        return os.pread(self._file.fileno(), stop - start, start)


class _Source:
    """An open file, how it is read, and its copy if it needs one and has one."""

    def __init__(self, path: str) -> None:
        self.file = open_parquet(local(Location(path)))
        self.layout, self.blocks = layout(self.file), blocks(self.file)
        self.starts = np.asarray([block.start for block in self.blocks])
        self.columns = ["image", *(["label"] if has_labels(self.file) else [])]
        self.labels: np.ndarray | None = None
        self.spool: Spool | None = None


class RowReader:
    """Reads rows of several files; one a process."""

    def __init__(self) -> None:
        self._sources: OrderedDict[str, _Source] = OrderedDict()
        self._tables: OrderedDict[tuple[str, int], pa.Table] = OrderedDict()
        self._cached = 0

    def layout(self, path: str) -> Layout:
        """Returns how a file is read."""
        return self._source(path).layout

    def read(self, path: str, row: int) -> tuple[bytes, int]:
        """Returns a row's encoded image and its label, 0 in a file without labels.

        Raises:
            OSError: the file has to be copied, and the disk of the temporary folder has no room for it.
        """
        source = self._source(path)
        if source.layout.copied:
            spool = source.spool or self._copy(path, source)
            return spool[row], 0 if source.labels is None else int(source.labels[row])
        number = int(np.searchsorted(source.starts, row, side="right")) - 1
        table, offset = self._table(path, number), row - source.blocks[number].start
        return table["image"][offset].as_py(), table["label"][offset].as_py() if "label" in source.columns else 0

    def _source(self, path: str) -> _Source:
        if path not in self._sources:
            self._sources[path] = _Source(path)
        self._sources.move_to_end(path)
        return self._sources[path]

    def _table(self, path: str, number: int) -> pa.Table:
        key = (path, number)
        if key not in self._tables:
            source, block = self._sources[path], self._sources[path].blocks[number]
            self._tables[key] = source.file.read_row_groups(range(block.first, block.stop), columns=source.columns)
            self._cached += self._tables[key].nbytes
            while len(self._tables) > 1 and self._cached > CACHED_BYTES:
                self._cached -= self._tables.popitem(last=False)[1].nbytes
        self._tables.move_to_end(key)
        return self._tables[key]

    def _copy(self, path: str, source: _Source) -> Spool:
        """Copies a file to the disk; copies that were used longest ago make room."""
        folder, size = tempfile.gettempdir(), source.layout.size
        for other in self._sources.values():
            if shutil.disk_usage(folder).free < size + SPARE_BYTES:
                other.spool = None
        if shutil.disk_usage(folder).free < size + SPARE_BYTES:
            raise OSError(
                f"{path}: its rows are in no random order, so that they are read from a copy of "
                f"{size / 1e9:.1f} GB, for which the disk of {folder} has no room; set TMPDIR to a folder on a larger "
                "one, or write the rows in random order"
            )
        source.labels, source.spool = read_labels(source.file), Spool(path, source.layout.rows)
        return source.spool
