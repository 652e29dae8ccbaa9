from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest

from condu_ray.learn.stream import Chunk, ChunkReader, batches, epoch_order, training_chunks
from condu_ray.vlm.model import backbone_spec


@pytest.mark.parametrize("groups", [[10], [4, 4, 2], [1], [3, 5, 7, 9, 2]])
@pytest.mark.parametrize("window", [1, 6, 100])
def test_an_epoch_has_every_row_once_and_differs_from_the_next(groups, window):
    orders = [epoch_order(groups, seed=0, epoch=epoch, window=window) for epoch in range(3)]
    for order in orders:
        assert sorted(order) == list(range(sum(groups)))
    if sum(groups) > 8:
        assert not np.array_equal(orders[0], orders[1])
    assert np.array_equal(orders[0], epoch_order(groups, seed=0, epoch=0, window=window))
    if sum(groups) > 8:
        assert not np.array_equal(orders[0], epoch_order(groups, seed=1, epoch=0, window=window))


def test_rows_stay_within_their_window():
    order = epoch_order([5] * 6, seed=3, epoch=0, window=10)
    for start in range(0, 30, 10):
        assert len({row // 10 for row in order[start : start + 10]}) == 1


def test_chunks_are_whole_batches_and_cover_the_training():
    chunks = list(training_chunks(0, "p", seed=0, steps=10, batch_size=24, rows=100))
    assert [(c.start, c.stop) for c in chunks] == [(0, 96), (96, 192), (192, 240)]
    assert len(list(training_chunks(0, "p", seed=0, steps=3, batch_size=500))) == 3


@pytest.fixture
def reader(small_backbone):
    return ChunkReader(backbone_spec(pretrained=str(small_backbone)).preprocess, augment=True)


@pytest.fixture
def chunk(task_data):
    return Chunk(0, str(task_data / "walls" / "train.parquet"), seed=5, start=0, stop=60, rank=0, world=1)


def same(one, other):
    return all(np.array_equal(one[name], other[name]) for name in one)


def test_a_chunk_reads_the_same_for_anyone_in_any_order(reader, chunk, small_backbone):
    whole = reader.read(chunk)
    assert whole["image"].shape == (60, 16, 16, 3)
    assert whole["image"].dtype == np.uint8
    other = ChunkReader(backbone_spec(pretrained=str(small_backbone)).preprocess, augment=True)
    parts = [other.read(replace(chunk, start=a, stop=b)) for a, b in ((40, 60), (0, 13), (13, 40))]
    joined = {name: np.concatenate([parts[i][name] for i in (1, 2, 0)]) for name in whole}
    assert same(whole, joined)


def test_the_workers_shares_make_up_the_whole(reader, chunk):
    whole, shares = reader.read(chunk), [reader.read(replace(chunk, rank=rank, world=3)) for rank in range(3)]
    for rank, share in enumerate(shares):
        assert same(share, {name: column[rank::3] for name, column in whole.items()})


def test_an_epoch_shows_every_label_as_often_as_the_file_has_it(reader, chunk):
    labels = pq.read_table(chunk.path)["label"].to_numpy()
    seen = reader.read(replace(chunk, stop=2 * len(labels)))["label"]
    for epoch in (seen[: len(labels)], seen[len(labels) :]):
        assert np.array_equal(np.bincount(epoch), np.bincount(labels))


def test_augmentation_differs_between_epochs_and_seeds(reader, chunk):
    assert not same(reader.read(chunk), reader.read(replace(chunk, seed=6)))


def test_batches_have_one_size_and_never_mix_tasks(reader, task_data):
    chunks = [
        chunk
        for number, name in enumerate(("walls", "doors"))
        for chunk in training_chunks(
            number, str(task_data / name / "train.parquet"), seed=0, steps=5, batch_size=8, rows=20
        )
    ]
    found = list(batches(reader, iter(chunks), 8))
    assert [len(batch["label"]) for batch in found] == [8] * 10
    assert [set(batch["task"].tolist()) for batch in found] == [{0}] * 5 + [{1}] * 5
