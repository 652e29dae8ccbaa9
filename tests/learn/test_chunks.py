import itertools
import threading
from dataclasses import replace
from itertools import count

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import condu_ray.learn.chunks as module
from condu_ray.benchmark import images
from condu_ray.learn.chunks import (
    Chunk,
    ChunkReader,
    ahead,
    batches,
    epoch_order,
    reference_images,
    task_images,
    training_chunks,
)
from condu_ray.vlm.model import backbone_spec
from condu_ray.vlm.preprocess import Preprocessor


@pytest.mark.parametrize("windows", [(0, 10), (0, 4, 8, 10), (0, 1), (0, 3, 8, 15, 24, 26), tuple(range(13))])
def test_an_epoch_has_every_row_once_and_differs_from_the_next(windows):
    orders = [epoch_order(windows, seed=0, epoch=epoch) for epoch in range(3)]
    for order in orders:
        assert sorted(order) == list(range(windows[-1]))
    assert np.array_equal(orders[0], epoch_order(windows, seed=0, epoch=0))
    if windows[-1] > 8:
        assert not np.array_equal(orders[0], orders[1])
        assert not np.array_equal(orders[0], epoch_order(windows, seed=1, epoch=0))


def test_rows_stay_within_their_window():
    order = epoch_order((0, 10, 20, 30), seed=3, epoch=0)
    for start in range(0, 30, 10):
        assert len({row // 10 for row in order[start : start + 10]}) == 1


def test_the_order_is_what_earlier_experts_were_trained_in():
    assert epoch_order((0, 10), seed=3, epoch=1).tolist() == [4, 1, 2, 8, 5, 0, 7, 9, 6, 3]
    assert epoch_order((0, 10, 20), seed=3, epoch=0).tolist()[:8] == [19, 17, 10, 12, 11, 14, 16, 18]


@pytest.mark.parametrize(
    ("frozen", "expected"),
    [(False, [16823399, 3796490668, 3226123765]), (True, [1008748114, 1468047861, 772704146])],
)
def test_the_crops_are_those_that_earlier_experts_were_trained_on(reader, chunk, monkeypatch, frozen, expected):
    seen = []
    monkeypatch.setattr(reader, "_frozen", frozen)
    monkeypatch.setattr(reader._preprocessor, "prepared", lambda image, seed: seen.append(seed) or np.zeros((1, 1, 3)))
    reader.read(replace(chunk, stop=3))
    assert seen == expected


def test_chunks_are_whole_batches_and_cover_the_training():
    chunks = list(training_chunks("p", seed=0, steps=10, batch_size=24, rows=100))
    assert [(c.start, c.stop) for c in chunks] == [(0, 96), (96, 192), (192, 240)]
    assert len(list(training_chunks("p", seed=0, steps=3, batch_size=500))) == 3


@pytest.fixture
def reader(small_backbone):
    return ChunkReader(backbone_spec(pretrained=str(small_backbone)).preprocess, augment=True)


@pytest.fixture
def chunk(task_data):
    return Chunk(str(task_data / "walls" / "train.parquet"), seed=5, start=0, stop=60, rank=0, world=1)


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


def test_a_frozen_crop_is_the_same_each_time_that_its_image_is_seen(task_data, small_backbone, chunk):
    spec = backbone_spec(pretrained=str(small_backbone))
    frozen = ChunkReader(spec.preprocess, augment=True, frozen=True)
    rows = pq.read_metadata(chunk.path).num_rows
    epochs = [frozen.read(replace(chunk, start=first, stop=first + rows)) for first in (0, rows)]
    seen = [{image.tobytes() for image in epoch["image"]} for epoch in epochs]
    assert seen[0] == seen[1]
    assert len(seen[0]) == rows
    assert not np.array_equal(*(epoch["image"] for epoch in epochs))  # in another order
    other = frozen.read(replace(chunk, seed=chunk.seed + 1, start=0, stop=rows))
    assert {image.tobytes() for image in other["image"]} != seen[0]


@pytest.mark.parametrize("room", ["for all", "for some", "for none"])
def test_images_are_decoded_once_where_there_is_room(reader, chunk, small_backbone, monkeypatch, room):
    wanted = [reader.read(replace(chunk, start=start, stop=start + 60)) for start in (0, 60, 120)]
    rows, decoded = pq.read_metadata(chunk.path).num_rows, []

    def decode(encoded):
        decoded.append(encoded)
        return images.decode(encoded)

    size = images.decode(pq.read_table(chunk.path)["image"][0].as_py()).size
    limit = {"for all": 2**20, "for some": 4 * size[0] * size[1] * 5, "for none": -1}[room]
    monkeypatch.setattr(module, "PICTURE_BYTES", limit)
    monkeypatch.setattr(module, "decode", decode)
    other = ChunkReader(backbone_spec(pretrained=str(small_backbone)).preprocess, augment=True)
    for at, start in enumerate((0, 60, 120)):
        assert same(wanted[at], other.read(replace(chunk, start=start, stop=start + 60)))
    assert rows < 60
    if room == "for all":
        assert len(decoded) == len(set(decoded)) == rows
    else:
        assert len(decoded) == 180 if room == "for none" else rows < len(decoded) < 180
    before = len(decoded)  # a file that comes when it is full has the room to itself
    second = replace(chunk, path=chunk.path.replace("train", "test"), stop=2)
    for _ in range(2):
        other.read(second)
    assert len(decoded) == before + (4 if room == "for none" else 2)


def test_batches_have_one_size_and_never_mix_tasks(reader, task_data):
    chunks = [
        list(training_chunks(str(task_data / name / "train.parquet"), seed=0, steps=5, batch_size=8, rows=20))
        for name in ("walls", "doors")
    ]
    found = list(batches(reader, itertools.chain(*chunks), 8))
    apart = [batch for own in chunks for batch in batches(reader, iter(own), 8)]
    assert [len(batch["label"]) for batch in found] == [8] * 10
    assert all(map(same, found, apart))


@pytest.fixture
def preprocess(small_backbone):
    return backbone_spec(pretrained=str(small_backbone)).preprocess


@pytest.fixture
def files(task_data, tmp_path):
    """Two files of reference images, of which the second has no labels."""
    table = pq.read_table(task_data / "cars" / "train.parquet", columns=["image"])
    pq.write_table(table.append_column("caption", pa.array(["x"] * len(table))), tmp_path / "r.parquet")
    return [task_data / "walls" / "train.parquet", tmp_path / "r.parquet"]


def test_reference_images_take_the_files_in_turn_each_in_its_own_order(files, preprocess):
    steps, size = 9, 8  # five batches of the first file, which has 24 rows: into its second epoch
    found = list(reference_images(files, preprocess, seed=3, steps=steps, batch_size=size))
    assert [batch.shape for batch in found] == [(size, 16, 16, 3)] * steps
    preprocessor = Preprocessor(preprocess)
    for number, path in enumerate(files):
        rows = pq.read_metadata(path).num_rows
        order = np.concatenate([epoch_order((0, rows), 3, epoch) for epoch in range(2)])
        encoded = pq.read_table(path)["image"]
        mine = np.concatenate(found[number :: len(files)])
        expected = [preprocessor.pixels(encoded[row].as_py()) for row in order[: len(mine)]]
        assert np.array_equal(mine, np.stack(expected))


def test_reference_images_follow_the_seed_alone(files, preprocess):
    def stream(seed):
        return np.stack(list(reference_images(files, preprocess, seed=seed, steps=4, batch_size=6)))

    assert np.array_equal(stream(0), stream(0))
    assert not np.array_equal(stream(0), stream(1))


def test_the_workers_shares_of_reference_images_make_up_each_batch(files, preprocess):
    options = {"seed": 0, "steps": 5, "batch_size": 6}
    whole = list(reference_images(files, preprocess, **options))
    shares = [list(reference_images(files, preprocess, **options, rank=rank, world=3)) for rank in range(3)]
    for step, batch in enumerate(whole):
        for rank in range(3):
            assert np.array_equal(shares[rank][step], batch[rank::3])


def test_a_split_is_read_in_file_order(task_data, preprocess):
    path = task_data / "walls" / "test.parquet"
    table, found = pq.read_table(path), list(task_images(path, preprocess, 7))
    preprocessor = Preprocessor(preprocess)
    assert max(len(labels) for _, labels in found) <= 7
    assert all(pixels.dtype == np.uint8 and labels.dtype == np.int64 for pixels, labels in found)
    assert np.concatenate([labels for _, labels in found]).tolist() == table["label"].to_pylist()
    expected = [preprocessor.pixels(encoded.as_py()) for encoded in table["image"]]
    assert np.array_equal(np.concatenate([pixels for pixels, _ in found]), np.stack(expected))


@pytest.mark.parametrize("rows", [[0], [6, 7, 8, 20], [23]])
def test_rows_of_a_split_alone_are_decoded_where_they_are_named(task_data, preprocess, rows, monkeypatch):
    path = task_data / "walls" / "test.parquet"
    whole = [np.concatenate(part) for part in zip(*task_images(path, preprocess, 7), strict=True)]
    decoded, original = [], Preprocessor.pixels
    monkeypatch.setattr(Preprocessor, "pixels", lambda self, data: decoded.append(data) or original(self, data))
    found = list(task_images(path, preprocess, 3, np.asarray(rows)))
    assert [len(labels) for _, labels in found] == [3, 1] if len(rows) == 4 else [1]
    for part, expected in zip(zip(*found, strict=True), whole, strict=True):
        assert np.array_equal(np.concatenate(part), expected[rows])
    assert len(decoded) == len(rows)


def reader_threads():
    return [thread for thread in threading.enumerate() if thread.name == "ahead"]


def ended(before):
    """Whether all threads that read ahead, but those that did so before, end soon."""
    for thread in set(reader_threads()) - set(before):
        thread.join(10)
    return set(reader_threads()) <= set(before)


@pytest.mark.parametrize("depth", [1, 2, 50])
def test_ahead_yields_the_same_items_in_order(depth):
    before = reader_threads()
    assert list(ahead(iter(range(20)), depth)) == list(range(20))
    assert list(ahead(iter(()), depth)) == []
    assert list(ahead(iter([None, 0]), depth)) == [None, 0]
    assert ended(before)


def test_ahead_makes_items_before_they_are_wanted_but_not_all(files):
    made, enough = [], threading.Event()

    def items():
        for number in count():
            made.append(number)
            if number == 3:
                enough.set()
            yield number

    stream = ahead(items(), depth=2)
    assert next(stream) == 0
    assert enough.wait(10)  # one handed out, two waiting, one in hand: nobody asked for those
    assert made == [0, 1, 2, 3]
    stream.close()


def test_an_error_comes_in_its_place():
    def items():
        yield from range(3)
        raise OSError("damaged")

    stream = ahead(items(), depth=50)
    assert [next(stream) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(OSError, match="damaged"):
        next(stream)
    assert list(stream) == []


@pytest.mark.parametrize("taken", [1, 5])
def test_a_stream_that_is_left_early_ends_its_thread(taken):
    before = reader_threads()
    stream = ahead(count(), depth=2)
    for _ in range(taken):
        next(stream)
    assert len(set(reader_threads()) - set(before)) == 1  # others may end meanwhile
    stream.close()
    assert ended(before)
