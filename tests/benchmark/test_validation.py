"""Validation images: which are held out, that no picture is on both sides, and that nothing else sees them."""

from __future__ import annotations

import io
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from condu_ray.benchmark import Task, TaskError, check_task, load_task
from condu_ray.benchmark.few_shot import few_shot, source_fingerprint
from condu_ray.benchmark.images import decode, picture_digest
from condu_ray.benchmark.validation import draw_validation, hold_out
from condu_ray.store.artifacts import ArtifactError


def read(path: Path) -> list[tuple[bytes, int]]:
    table = pq.read_table(path)
    return list(zip(table["image"].to_pylist(), table["label"].to_pylist(), strict=True))


def pixels(path: Path) -> set[bytes]:
    return {np.asarray(decode(image)).tobytes() for image, _ in read(path)}


def as_bmp(encoded: bytes) -> bytes:
    """The same picture in other bytes."""
    buffer = io.BytesIO()
    Image.open(io.BytesIO(encoded)).save(buffer, "BMP")
    return buffer.getvalue()


@pytest.fixture
def task(make_task: Any) -> Task:
    """Three classes of 17, 11 and 2 training images."""
    folder = make_task()
    make_task.write_split(folder / "train.parquet", range(30), [0, 1, 0, 0, 2] * 2 + [0, 0, 1, 0, 1] * 2 + [0, 1] * 5)
    labels = np.bincount(pq.read_table(folder / "train.parquet")["label"].to_numpy())
    assert labels.tolist() == [17, 11, 2]
    return load_task(folder)


@pytest.mark.parametrize("share", [0.01, 0.1, 0.5, 0.99])
@pytest.mark.parametrize("seed", [0, 7])
def test_rows_that_are_held_out(share: float, seed: int) -> None:
    random = np.random.default_rng(3)
    labels, pictures = random.integers(0, 6, 200), random.permutation(200)
    labels[labels == 4] = 5  # class 4 has no row
    labels[0], labels[1:][labels[1:] == 3] = 3, 2  # class 3 has one
    left, held = draw_validation(labels, pictures, 6, share=share, seed=seed)
    assert np.array_equal(np.sort(np.concatenate([left, held])), np.arange(200))
    assert (np.diff(left) > 0).all()
    assert (np.diff(held) > 0).all()
    sizes = np.bincount(labels, minlength=6)
    wanted = np.minimum(np.maximum(np.floor(share * sizes + 0.5), 1), np.maximum(sizes - 1, 0))
    assert np.array_equal(np.bincount(labels[held], minlength=6), wanted)
    # The numbers of pictures mean nothing, and neither do other classes.
    again = draw_validation(labels, random.permutation(200), 6, share=share, seed=seed)
    assert np.array_equal(again[1], held)
    without = draw_validation(np.where(labels == 0, 5, labels), pictures, 6, share=share, seed=seed)[1]
    assert set(held[labels[held] == 1]) == set(without[labels[without] == 1])


def test_a_draw_is_the_one_of_earlier_folders_of_this_version() -> None:
    """A folder that is there is taken for what would be held out now."""
    held = draw_validation(np.arange(30) % 3, np.arange(30), 3, share=0.2, seed=0)[1]
    assert held.tolist() == [3, 7, 15, 22, 23, 26]


def test_seeds_hold_out_different_rows_and_not_those_of_shots() -> None:
    labels = np.repeat(np.arange(3), 50)
    found = [draw_validation(labels, np.arange(150), 3, share=0.1, seed=seed)[1] for seed in range(200)]
    assert len({tuple(rows) for rows in found[:20]}) == 20
    assert len(np.unique(np.concatenate(found))) == 150
    first = np.random.default_rng([0, 0]).permutation(50)[:5]  # what shots take of class 0 at seed 0
    assert set(first) != set(found[0][:5])


def test_copies_of_a_picture_stay_together() -> None:
    labels = np.array([0] * 10 + [1] * 10 + [2] * 4)
    pictures = np.array([*range(4), 4, 4, 4, 5, 6, 7, *range(10, 16), 0, 1, 16, 17, 20, 20, 20, 21])
    for seed in range(50):
        left, held = draw_validation(labels, pictures, 3, share=0.3, seed=seed)
        assert not set(pictures[left]) & set(pictures[held])
        assert not {0, 1} & set(pictures[held]), "pictures of two classes stay in training"
        assert np.bincount(labels[held], minlength=3)[:2].tolist() == [3, 3]
        assert pictures[held][labels[held] == 2].tolist() == [21]
    # Where every picture is there more often than images are wanted, the one with the fewest copies.
    left, held = draw_validation(np.zeros(5, int), np.array([0, 0, 0, 1, 1]), 1, share=0.1, seed=0)
    assert (left.tolist(), held.tolist()) == ([0, 1, 2], [3, 4])
    assert len(draw_validation(np.zeros(3, int), np.zeros(3, int), 1, share=0.5, seed=0)[1]) == 0


def test_what_is_written(task: Task, tmp_path: Path) -> None:
    (validated,) = hold_out([task], tmp_path / "made", share=0.2, seed=3, measure_on="validation")
    (tested,) = hold_out([task], tmp_path / "made", share=0.2, seed=3, measure_on="test")
    every, left, held = read(task.train), read(validated.train), read(validated.test)
    assert sorted(left + held) == sorted(every)
    assert [row for row in every if row in left] == left, "in the order of the source"
    assert np.bincount([label for _, label in held]).tolist() == [3, 2, 1]
    assert tested.test_fingerprint == task.test_fingerprint
    # One expert serves both: it is chosen on validation and tested without being trained again.
    assert tested.train_fingerprint == validated.train_fingerprint != task.train_fingerprint
    assert validated.test_fingerprint != task.test_fingerprint
    assert (validated.classes, validated.templates, validated.name) == (task.classes, task.templates, task.name)
    assert [check_task(one) for one in (validated, tested)] == [[], []]
    assert hold_out([], tmp_path, share=0.2, seed=3, measure_on="test") == []


def test_share_and_seed_make_other_tasks(task: Task, tmp_path: Path) -> None:
    ways = [(0.2, 0), (0.2, 1), (0.4, 0), (0.4999999, 0), (0.5, 0)]
    made = [hold_out([task], tmp_path, share=share, seed=seed, measure_on="validation")[0] for share, seed in ways]
    assert len({one.train_fingerprint for one in made[:3]}) == len({one.test_fingerprint for one in made[:3]}) == 3
    folders = [one.folder.parent.name.partition("-seed")[0] for one in made]
    assert [name.rpartition("-validation")[2] for name in folders] == ["0.2", "0.2", "0.4", "0.4999999", "0.5"]


def test_same_pixels_in_other_bytes_are_one_picture(make_task: Any, tmp_path: Path) -> None:
    folder, png = make_task(), make_task.png
    images = [png(number) for number in range(6)]
    make_task.write_split(folder / "train.parquet", images + [as_bmp(one) for one in images], [0, 1, 2] * 4)
    assert picture_digest(images[0]) == picture_digest(as_bmp(images[0])) != picture_digest(images[1])
    for seed in range(4):
        (one,) = hold_out([load_task(folder)], tmp_path / "made", share=0.5, seed=seed, measure_on="validation")
        assert not pixels(one.train) & pixels(one.test)
        assert np.bincount([label for _, label in read(one.test)]).tolist() == [2, 2, 2]


def test_class_with_one_picture_is_trained_on_and_named(
    make_task: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = make_task()
    make_task.write_split(folder / "train.parquet", [0, 1, 2, 3, 3], [0, 0, 1, 2, 2])
    with caplog.at_level(logging.WARNING):
        (one,) = hold_out([load_task(folder)], tmp_path / "made", share=0.5, seed=0, measure_on="validation")
    assert [label for _, label in read(one.test)] == [0]
    assert {label for _, label in read(one.train)} == {0, 1, 2}
    assert "2 of 3 classes have one training picture alone" in caplog.text
    assert "'two', 'three'" in caplog.text
    make_task.write_split(folder / "train.parquet", [0, 1, 2], [0, 1, 2])
    with pytest.raises(TaskError, match="none of its classes has two different training pictures"):
        hold_out([load_task(folder)], tmp_path / "made", share=0.5, seed=0, measure_on="validation")


def test_shots_are_drawn_from_what_is_left(task: Task, tmp_path: Path) -> None:
    (validated,) = hold_out([task], tmp_path, share=0.2, seed=0, measure_on="validation")
    (tested,) = hold_out([task], tmp_path, share=0.2, seed=0, measure_on="test")
    few, few_tested = (few_shot([one], tmp_path, shots=2, seed=0)[0] for one in (validated, tested))
    assert set(read(few.train)) <= set(read(validated.train))
    assert np.bincount([label for _, label in read(few.train)]).tolist() == [2, 2, 1]
    assert few.test_fingerprint == validated.test_fingerprint
    assert few.train_fingerprint == few_tested.train_fingerprint
    # Prototypes of "all training images" have none that is held out.
    assert source_fingerprint(few) == validated.train_fingerprint


def test_damage_to_what_was_written_is_found(task: Task, tmp_path: Path) -> None:
    (one,) = hold_out([task], tmp_path, share=0.2, seed=0, measure_on="validation")
    one.test.write_bytes(task.test.read_bytes())
    with pytest.raises(ArtifactError, match="content differs from its checksum"):
        hold_out([task], tmp_path, share=0.2, seed=0, measure_on="validation")


@pytest.mark.parametrize(("share", "seed"), [(0.0, 0), (1.0, 0), (0.1, -1)])
def test_bad_numbers(task: Task, tmp_path: Path, share: float, seed: int) -> None:
    with pytest.raises(ValueError, match="give a share above 0 and below 1"):
        hold_out([task], tmp_path, share=share, seed=seed, measure_on="test")
