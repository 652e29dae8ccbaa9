"""How a file is shuffled and read: windows where its rows are mixed, the whole where not; blocks; samples."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from condu_ray.benchmark import rows as module
from condu_ray.benchmark.rows import Block, blocks, in_proportion, layout, open_parquet, sample

RANDOM = np.random.default_rng(0)
BY_CLASS = np.repeat(np.arange(10), 100)
#: Labels of 1,000 rows in windows of 200, and whether each window is as good as the whole.
ORDERS = {
    "sorted": (BY_CLASS, False),
    "sorted the other way": (BY_CLASS[::-1], False),
    "two classes, sorted": (np.repeat([0, 1], 500), False),
    "half sorted, half mixed": (np.concatenate([BY_CLASS[:500], RANDOM.permutation(BY_CLASS[500:])]), False),
    "shards, each sorted": (np.sort(RANDOM.permutation(BY_CLASS).reshape(5, 200)).ravel(), True),
    "mixed": (RANDOM.permutation(BY_CLASS), True),
    "mixed, one class rare": (RANDOM.permutation(np.r_[np.zeros(990, int), np.ones(10, int)]), True),
    "mixed, one row a class": (RANDOM.permutation(1000), True),
    "in turn": (np.tile(np.arange(10), 100), True),
    "one class": (np.zeros(1000, int), True),
    "a rare class at the end": (np.r_[RANDOM.integers(0, 5, 950), np.full(50, 5)], False),
}  # fmt: skip


@pytest.fixture
def write(tmp_path: Path):
    def new(labels, group=50, image=b"x" * 10, kind=None):
        path = tmp_path / f"{len(list(tmp_path.iterdir()))}.parquet"
        columns = {"image": pa.array([image] * len(labels), pa.binary())}
        if kind is not ...:
            columns["label"] = pa.array(labels, kind)
        pq.write_table(pa.table(columns), path, row_group_size=group, use_dictionary=False)
        return open_parquet(path)

    return new


@pytest.mark.parametrize("case", ORDERS)
def test_only_rows_that_are_mixed_are_shuffled_in_windows(case, write, monkeypatch):
    monkeypatch.setattr(module, "WINDOW_ROWS", 200)
    labels, mixed = ORDERS[case]
    found = layout(write(labels))
    assert found.mixed == mixed == in_proportion(labels, list(range(0, 1001, 200)))
    assert found.windows == (tuple(range(0, 1001, 200)) if mixed else (0, 1000))
    assert found.sorted == (not mixed and bool((np.diff(labels) >= 0).all()))


def test_random_order_is_taken_for_sorted_in_none_of_many_files():
    generator, edges = np.random.default_rng(1), [0, 400, 800, 1000]
    for classes in (2, 10, 300):
        for _ in range(200):
            assert in_proportion(generator.integers(0, classes, 1000), edges)


def test_a_small_file_is_one_window_in_whatever_order(write):
    found = layout(write(BY_CLASS))
    assert (found.windows, found.mixed, found.copied) == ((0, 1000), True, False)


@pytest.mark.parametrize("labels", [np.tile(np.arange(10), 100), BY_CLASS])
def test_windows_of_large_images_have_fewer_rows(write, labels, monkeypatch):
    monkeypatch.setattr(module, "WINDOW_BYTES", 100_000)
    file = write(labels, image=b"x" * 1000)
    found = layout(file)
    if labels is BY_CLASS:
        assert (found.windows, found.sorted) == ((0, 1000), True)
    else:
        assert found.windows == tuple(range(0, 1001, 100))  # a group of 50 has a little more than 50,000 bytes
    monkeypatch.setattr(module, "CACHED_BYTES", 500_000)
    assert found.copied == (labels is BY_CLASS)


@pytest.mark.parametrize("kind", [..., pa.string()])
def test_rows_without_labels_are_shuffled_as_a_whole(write, kind, monkeypatch):
    monkeypatch.setattr(module, "WINDOW_ROWS", 200)
    labels = RANDOM.permutation(BY_CLASS)
    found = layout(write(labels if kind is ... else list(map(str, labels)), kind=kind))
    assert (found.windows, found.mixed, found.sorted) == ((0, 1000), False, False)


@pytest.mark.parametrize(
    ("group", "rows", "size", "expected"),
    [
        (1, 4, 2**20, [(0, 4), (4, 8), (8, 10)]),
        (3, 4, 2**20, [(0, 3), (3, 6), (6, 10)]),
        (3, 7, 2**20, [(0, 6), (6, 10)]),
        (5, 4, 2**20, [(0, 5), (5, 10)]),
        (10, 4, 2**20, [(0, 10)]),
        (1, 1000, 1, [(row, row + 1) for row in range(10)]),
    ],
)
def test_small_row_groups_are_read_together(write, group, rows, size, expected, monkeypatch):
    monkeypatch.setattr(module, "BLOCK_BYTES", size)
    file = write(np.arange(10), group)
    found = blocks(file, rows)
    assert [(block.start, block.end) for block in found] == expected
    for block in found:
        table = file.read_row_groups(range(block.first, block.stop))
        assert table["label"].to_pylist() == list(range(block.start, block.end))
    assert found[0] == Block(0, -(-expected[0][1] // group), *expected[0])


@pytest.mark.parametrize("count", [1, 7, 10, 100, 995])
@pytest.mark.parametrize("order", [BY_CLASS, RANDOM.permutation(BY_CLASS), np.r_[np.zeros(900, int), BY_CLASS[900:]]])
def test_a_sample_is_in_proportion_to_the_classes(count, order):
    rows = sample(order, count)
    assert len(rows) == len(np.unique(rows)) == count
    assert (np.diff(rows) > 0).all()
    assert np.array_equal(rows, sample(order, count))
    for label, size in zip(*np.unique(order, return_counts=True), strict=True):
        assert abs((order[rows] == label).sum() - size * count / len(order)) < 1
    assert rows.tolist() != list(range(count))


def test_a_sample_is_the_one_that_earlier_accuracies_were_measured_on():
    """Keys of measurements name how many images, and not which."""
    assert sample(np.arange(30) % 3, 6).tolist() == [3, 12, 17, 19, 22, 29]


@pytest.mark.parametrize("count", [0, 1000, 5000])
def test_a_sample_of_all_is_all(count):
    assert np.array_equal(sample(BY_CLASS, count), np.arange(1000))
