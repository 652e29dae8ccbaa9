"""A test split for data that have none: in proportion, the same for everybody, near-duplicates on one side."""

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from condu_ray.benchmark import TaskError
from condu_ray.benchmark.images import decode
from condu_ray.benchmark.ingest.bring import bring
from condu_ray.benchmark.ingest.convert import Options
from condu_ray.benchmark.ingest.gather import Look, Picture
from condu_ray.benchmark.ingest.shares import _near, divide, groups
from tests.benchmark.ingest.forms import CLASSES, encoded, picture


def tree(folder, counts, copies=()):
    for label, count in enumerate(counts):
        (folder / CLASSES[label]).mkdir(parents=True)
        for number in range(count):
            image = picture(label, number, 48)
            (folder / CLASSES[label] / f"{number}.png").write_bytes(encoded(image))
            for name, make in copies:
                (folder / CLASSES[label] / f"{number}-{name}").write_bytes(make(image))


def split(folder, storage, **options):
    [task] = bring(folder, storage, options=Options(**options))
    read = [pq.read_table(path).to_pydict() for path in (task.train, task.test)]
    return [sorted(zip(one["label"], one["image"], strict=True)) for one in read]


def test_each_class_gives_its_share_and_everybody_gets_the_same(tmp_path):
    tree(tmp_path / "a", (20, 10, 3))
    train, test = split(tmp_path / "a", tmp_path / "storage")
    assert [sum(label == one for label, _ in test) for one in range(3)] == [2, 4, 1]  # SeaLake, golden retriever, wren
    assert [sum(label == one for label, _ in train) for one in range(3)] == [8, 16, 2]
    for number, path in enumerate(sorted((tmp_path / "a").rglob("*.png"))):
        path.rename(path.with_name(f"{1000 - number}.png"))  # other names, in another order
    assert split(tmp_path / "a", tmp_path / "elsewhere") == [train, test]
    assert len(split(tmp_path / "a", tmp_path / "storage", test_share=0.5)[1]) == 5 + 10 + 2


COPIES = (
    ("same.png", encoded),
    ("again.bmp", lambda image: encoded(image, "BMP")),
    ("jpeg.jpg", lambda image: encoded(image, "JPEG", quality=70)),
    ("larger.png", lambda image: encoded(image.resize((96, 96), Image.Resampling.BICUBIC))),
)


def test_near_duplicates_are_on_one_side(tmp_path):
    tree(tmp_path / "a", (10, 10, 10), COPIES)
    train, test = split(tmp_path / "a", tmp_path / "storage")
    assert len(train) + len(test) == 30 * 5
    assert len(test) == 30  # 20 % of each class, whole groups of five
    looks = [[Look.of(decode(image)) for _, image in side] for side in (train, test)]
    assert not [1 for one in looks[0] for other in looks[1] if _near(one, other)]


def test_pictures_that_differ_are_no_duplicates_though_all_are_flat(tmp_path):
    looks = [Look.of(Image.new("RGB", (32, 32), (value, 90, 255 - value))) for value in range(0, 250, 25)]
    assert len({look.gradients for look in looks}) == 1
    assert not any(_near(one, other) for one in looks for other in looks if one is not other)
    assert _near(looks[0], Look.of(Image.new("RGB", (48, 48), (1, 91, 254))))


def test_a_class_of_one_picture_cannot_be_divided(tmp_path):
    tree(tmp_path / "a", (5, 1, 5), COPIES[:2])
    with pytest.raises(TaskError, match=r"1 classes have not two different pictures.*'SeaLake'.*give a test split"):
        split(tmp_path / "a", tmp_path / "storage")


def seen(number, label="a", gradients=0, level=0):
    look = Look(gradients, np.full((8, 8, 3), level, np.int16))
    return Picture(f"{number}.png", label, 0, 1, bytes([number]) * 16, look)


@pytest.mark.parametrize(
    ("gradients", "level", "together"),
    [(0, 0, True), (0b111, 4, True), (1 | 1 << 16 | 1 << 32, 0, True), (0b1111, 0, False), (0, 5, False)],
)
def test_up_to_where_pictures_are_near(gradients, level, together):
    assert len(groups([seen(0), seen(1, "a", gradients, level)])) == 2 - together


@pytest.mark.parametrize(("share", "tested"), [(0.01, [1, 1]), (0.5, [1, 2]), (0.99, [1, 3])])
def test_of_each_class_something_is_left_to_train_and_to_test_on(share, tested):
    every = [seen(n, "ab"[n > 1], level=10 * n) for n in range(6)]
    train, test, together = divide(every, share, "here")
    assert [sum(one.label == label for one in test) for label in "ab"] == tested
    assert (len(train) + len(test), together) == (6, 0)
