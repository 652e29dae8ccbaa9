"""Rows in any order: from memory, or from a copy on the disk, the same ones at a known cost."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from condu_ray.benchmark import rows
from condu_ray.learn import row_reader as module
from condu_ray.learn.row_reader import RowReader

LABELS = np.repeat(np.arange(4), 50)
IMAGES = [bytes([row % 256]) * (1000 + row) for row in range(200)]


@pytest.fixture
def write(tmp_path):
    def new(name="a", images=IMAGES, labels=LABELS, group=10):
        columns = {"image": pa.array(images, pa.binary())} | ({} if labels is None else {"label": pa.array(labels)})
        pq.write_table(pa.table(columns), tmp_path / f"{name}.parquet", row_group_size=group, use_dictionary=False)
        return str(tmp_path / f"{name}.parquet")

    return new


@pytest.fixture
def small(monkeypatch):
    """Bounds that the files of these tests exceed."""
    for name, value in {"WINDOW_ROWS": 50, "CACHED_BYTES": 30_000, "BLOCK_BYTES": 11_000}.items():
        monkeypatch.setattr(rows, name, value)
    monkeypatch.setattr(module, "CACHED_BYTES", 30_000)


@pytest.fixture
def read_groups(monkeypatch):
    """Rows of each group that pyarrow is asked for."""
    calls, original = [], pq.ParquetFile.read_row_groups

    def counted(self, groups, *args, **options):
        table = original(self, groups, *args, **options)
        calls.append(len(table))
        return table

    monkeypatch.setattr(pq.ParquetFile, "read_row_groups", counted)
    return calls


def expected(row, labels=LABELS):
    return IMAGES[row], 0 if labels is None else int(labels[row])


@pytest.mark.parametrize("labels", [LABELS, None])
@pytest.mark.parametrize("group", [1, 10, 1000])
def test_rows_of_a_file_that_fits_are_read_once(write, read_groups, labels, group):
    path, reader = write(labels=labels, group=group), RowReader()
    for row in np.random.default_rng(0).permutation(200).tolist() * 2:
        assert reader.read(path, row) == expected(row, labels)
    assert read_groups == [200]


@pytest.mark.parametrize("labels", [LABELS, None])
def test_rows_of_a_large_file_in_no_random_order_come_from_a_copy(write, small, read_groups, labels):
    path, reader = write(labels=labels), RowReader()
    assert reader.layout(path).copied
    for row in np.random.default_rng(0).permutation(200).tolist():
        assert reader.read(path, row) == expected(row, labels)
    assert read_groups == []  # a pass from start to end, and then the copy alone


def test_rows_of_a_large_mixed_file_are_kept_while_a_window_needs_them(write, small, read_groups):
    labels = np.random.default_rng(0).permutation(LABELS)
    path, reader = write(labels=labels), RowReader()
    assert len(reader.layout(path).windows) == 5
    for row in range(200):
        assert reader.read(path, row) == expected(row, labels)
    assert read_groups == [10] * 20
    assert reader.read(path, 199) == expected(199, labels)  # kept
    assert reader.read(path, 0) == expected(0, labels)  # gone
    assert read_groups == [10] * 21
    assert reader._cached == sum(table.nbytes for table in reader._tables.values()) <= 30_000


def test_copies_that_were_used_longest_ago_make_room(write, small, monkeypatch):
    paths, reader, free = [write("a"), write("b"), write("c")], RowReader(), [2]

    def disk_usage(folder):  # room for two copies
        held = sum(source.spool is not None for source in reader._sources.values())
        usage = type("usage", (), {"free": module.SPARE_BYTES + (free[0] - held) * 300_000})
        return usage

    monkeypatch.setattr(module.shutil, "disk_usage", disk_usage)
    for path in paths:
        assert reader.read(path, 120) == expected(120)
    assert [reader._sources[path].spool is not None for path in paths] == [False, True, True]
    assert reader.read(paths[1], 7) == expected(7)
    assert reader.read(paths[0], 7) == expected(7)
    assert [reader._sources[path].spool is not None for path in paths] == [True, True, False]
    free[0] = 0
    with pytest.raises(OSError, match=r"c\.parquet: its rows are in no random order.*set TMPDIR"):
        reader.read(paths[2], 0)
