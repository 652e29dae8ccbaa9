"""Every data set's true layout, converted and read back."""

import io
import json
import os
import re

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from condu_ray.benchmark import check_task, load_task
from condu_ray.benchmark.mtil import CATALOG, prepare
from condu_ray.benchmark.mtil.names import IngestError
from condu_ray.benchmark.mtil.sources import read_layout

ARRAYS = {"cifar100", "mnist"}
NUMBERS_ALONE = {"flowers", "mnist"}
# These layouts are the listing of a folder: a file that is gone is not in them.
UNLISTED = {("caltech101", "gone"), ("eurosat", "gone"), ("sun397", "gone")}
FILES = [name for name in CATALOG if name not in ARRAYS]
NAMED = [name for name in CATALOG if name not in NUMBERS_ALONE]


def drawn(rows):
    """Rows in the order of torch's permutation at seed 42, which `random_split` cuts too."""
    return [rows[index] for index in torch.randperm(len(rows), generator=torch.Generator().manual_seed(42)).tolist()]


def expected(tree):
    if "pool" not in tree.rows:
        return drawn(tree.rows["train"]), drawn(tree.rows["test"])
    rows = drawn(tree.rows["pool"])
    cut = int(0.8 * len(rows))
    return rows[:cut], rows[cut:]


def stored(path, arrays):
    table = pq.read_table(path).to_pydict()
    contents = table["image"]
    if arrays:
        contents = [np.asarray(Image.open(io.BytesIO(data))).tobytes() for data in contents]
    return list(zip(table["label"], contents, strict=True))


@pytest.mark.parametrize("name", CATALOG)
def test_a_layout_becomes_a_task(name, trees, tmp_path):
    tree, out = trees(name), tmp_path / "out"
    entry = trees.entry(name, tree)
    [outcome] = prepare([entry], tree.root, out)
    assert (outcome.state, outcome.note) == ("converted", "")
    assert outcome.counts == {"train": entry.train, "test": entry.test}
    task, names = load_task(out / name), entry.names()
    assert (task.classes, task.templates) == (names.classes, names.templates)
    for path, rows in zip((task.train, task.test), expected(tree), strict=True):
        assert stored(path, name in ARRAYS) == rows
        assert pq.read_schema(path).types == ["binary", "int32"]
        assert json.loads(pq.read_schema(path).metadata[b"dataset"])["name"] == name
    # Only that small trees have classes without an image is wrong with them.
    assert all("have no image" in problem.message for problem in check_task(task) if problem.severity == "error")
    meta = json.loads((out / name / "meta.json").read_text())
    assert meta["source"] == entry.page
    assert meta["licence"] == entry.licence
    assert meta["split"] == entry.split
    assert meta["counts_as_published"]
    assert meta["images_in_both_splits"] == 0
    assert set(meta["files"]) == {"train.parquet", "test.parquet"}
    assert [path.name for path in out.iterdir()] == [name]

    before = {path: path.stat().st_mtime_ns for path in (out / name).iterdir()}
    for path in tree.images:
        path.unlink()  # what is converted does not need them any more
    [again] = prepare([entry], tree.root, out)
    assert (again.state, again.counts) == ("ready", outcome.counts)
    assert before == {path: path.stat().st_mtime_ns for path in (out / name).iterdir()}


@pytest.mark.parametrize(
    ("name", "damage"),
    [(name, damage) for name in FILES for damage in ("garbled", "cut", "gone") if (name, damage) not in UNLISTED],
)
def test_images_that_cannot_be_used_are_named(name, damage, trees, tmp_path):
    tree, out = trees(name), tmp_path / "out"
    for path in tree.images:
        data = path.read_bytes()
        path.write_bytes(b"no picture" if damage == "garbled" else data[: len(data) // 2])
        if damage == "gone":
            path.unlink()
    [outcome] = prepare([trees.entry(name, tree)], tree.root, out)
    assert outcome.state == "failed"
    reason = {"garbled": "not an image in a known format", "cut": "does not decode", "gone": "No such file"}[damage]
    assert f"{tree.images[0]}: " in outcome.note
    assert reason in outcome.note
    assert list(out.iterdir()) == []


@pytest.mark.parametrize("name", NAMED)
@pytest.mark.parametrize("number", [0, 3, -1])
def test_a_class_of_another_name_is_refused(name, number, trees, tmp_path):
    labels = list(CATALOG[name].names().labels)
    right, labels[number] = labels[number], "Zeppelin"
    tree = trees(name, labels)
    [outcome] = prepare([trees.entry(name, tree)], tree.root, tmp_path / "out")
    assert outcome.state == "failed"
    assert "'Zeppelin', which the data set does not have" in outcome.note
    assert name in outcome.note
    assert str(tree.root) in outcome.note
    if name in ("aircraft", "cifar100", "stanford_cars", "sun397"):  # the others sort their classes
        assert f"class {number % len(labels)} is" in outcome.note
        assert repr(right) in outcome.note


@pytest.mark.parametrize("name", ["dtd", "oxford_pets", "food", "sun397"])
def test_a_class_that_is_not_there_is_named(name):
    *labels, last = CATALOG[name].names().labels
    with pytest.raises(IngestError, match=f"1 of {len(labels) + 1} classes are not there, the first is '{last}'"):
        CATALOG[name].names().match(labels, "the layout")


def test_a_class_that_is_listed_twice_is_refused():
    labels = CATALOG["dtd"].names().labels
    with pytest.raises(IngestError, match="class 'banded' is listed twice"):
        CATALOG["dtd"].names().match((*labels, "banded"), "the layout")


@pytest.mark.parametrize("name", ["aircraft", "cifar100", "stanford_cars", "sun397"])
def test_labels_do_not_depend_on_the_order_of_a_layouts_class_list(name, trees, tmp_path):
    labels, out = CATALOG[name].names().labels, tmp_path / "out"
    tree = trees(name, labels[::-1])
    [outcome] = prepare([trees.entry(name, tree)], tree.root, out)
    assert outcome.state == "converted", outcome.note
    last = len(labels) - 1
    tree.rows = {split: [(last - label, data) for label, data in rows] for split, rows in tree.rows.items()}
    for split, rows in zip(("train", "test"), expected(tree), strict=True):
        assert stored(out / name / f"{split}.parquet", name in ARRAYS) == rows


def test_a_class_number_out_of_range_is_refused(trees, tmp_path):
    tree = trees("mnist")
    path = tree.root / "MNIST" / "raw" / "t10k-labels-idx1-ubyte"
    path.write_bytes(path.read_bytes()[:-1] + b"\x0a")
    [outcome] = prepare([trees.entry("mnist", tree)], tree.root, tmp_path / "out")
    assert outcome.state == "failed"
    assert "image 1 of the array has class number 10, outside 0 to 9" in outcome.note


@pytest.mark.parametrize("name", ["cifar100", "flowers"])
def test_changed_originals_are_refused_by_their_md5(name, trees, tmp_path, monkeypatch):
    tree = trees(name)
    monkeypatch.undo()  # torchvision checks again
    with pytest.raises(IngestError, match=rf"{name}: torchvision cannot read the files below .*corrupted"):
        read_layout(name, tree.root)


def test_sun397_is_split_the_same_in_any_order_of_the_file_system(trees, tmp_path, monkeypatch):
    tree = trees("sun397")
    parts = [part.order for part in read_layout("sun397", tree.root)]
    files = [part.images for part in read_layout("sun397", tree.root)]
    listed, type_of = type(tree.root).rglob, type(tree.root)
    monkeypatch.setattr(type_of, "rglob", lambda self, pattern: reversed(list(listed(self, pattern))))
    assert [part.order for part in read_layout("sun397", tree.root)] == parts
    assert [part.images for part in read_layout("sun397", tree.root)] == files
    assert not set(parts[0]) & set(parts[1])


def test_the_background_of_caltech_is_no_class_and_faces_are_two(trees, tmp_path):
    tree, out = trees("caltech101"), tmp_path / "out"
    prepare([trees.entry("caltech101", tree)], tree.root, out)
    rows = stored(out / "caltech101" / "train.parquet", False) + stored(out / "caltech101" / "test.parquet", False)
    folder = tree.root / "caltech101" / "101_ObjectCategories"
    assert load_task(out / "caltech101").classes[:2] == ("off-center face", "centered face")
    assert [label for label, data in rows if data == (folder / "Faces" / "image_0001.jpg").read_bytes()] == [0]
    assert [label for label, data in rows if data == (folder / "Faces_easy" / "image_0001.jpg").read_bytes()] == [1]
    background = (folder / "BACKGROUND_Google" / "image_0001.jpg").read_bytes()
    assert background not in [data for _, data in rows]
    assert os.path.isdir(folder)


@pytest.mark.parametrize("stray", [".DS_Store", "{0}/.DS_Store", "{0}/Thumbs.db", "{0}/desktop.ini", "{0}/._a.jpg"])
@pytest.mark.parametrize(("name", "place"), [("caltech101", "101_ObjectCategories"), ("eurosat", "2750")])
def test_what_a_file_browser_left_among_pictures_is_named(trees, name, place, stray):
    tree = trees(name)
    folder = tree.root / name / place
    first = min(path.name for path in folder.iterdir())
    path = folder / stray.format(first)
    path.write_bytes(b"\0\0")
    with pytest.raises(IngestError, match=rf"^{re.escape(str(path))}: was left by a file browser.*remove it$"):
        read_layout(name, tree.root)
