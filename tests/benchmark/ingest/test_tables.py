"""Parquet with columns that could be classes or images: the right one is taken, or a line says which one is."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from condu_ray.benchmark.ingest.bring import bring
from condu_ray.benchmark.ingest.tables import _columns
from tests.benchmark.ingest.forms import CLASSES, hugging_face, samples


def changed(folder, change, **options):
    hugging_face(folder, **options)
    for path in (folder / "data").iterdir():
        pq.write_table(change(pq.read_table(path)), path)
    return folder


def labels_of(task):
    table = pq.read_table(task.train).to_pydict()
    return dict(zip(table["image"], table["label"], strict=True))


def test_a_class_label_of_something_else_is_not_taken_for_the_class(tmp_path, caplog):
    def change(table):
        words = pa.array([CLASSES[(one + 1) % 3] for one in table["source"].to_pylist()])
        return table.append_column("label", words)

    folder = changed(tmp_path / "birds", change, names=("web", "camera", "book"), label="source")
    [task] = bring(folder, tmp_path / "storage")
    found = labels_of(task)
    wanted = [(data, ("golden retriever", "Sea Lake", "wren")[(label + 1) % 3]) for _, label, _, data in samples()[:12]]
    assert [task.classes[found[data]] for data, _ in wanted] == [name for _, name in wanted]
    assert "of its classes label, source, label is taken" in caplog.text


@pytest.mark.parametrize("form", ["{}", "0{}", "{}.0"])
def test_numbers_that_are_texts_get_their_names_from_beside_them(tmp_path, form):
    def change(table):
        words = pa.array([form.format(one) for one in table["label"].to_pylist()])
        return pa.table({"image": table["image"], "label": words})

    folder = changed(tmp_path / "birds", change)
    (folder / "classnames.txt").write_text("zebra\nape\ngnu\n")
    [task] = bring(folder, tmp_path / "storage")
    assert task.classes == ("zebra", "ape", "gnu")
    found = labels_of(task)
    assert {found[data] == label for split, label, _, data in samples() if split == "train"} == {True}


def test_of_several_columns_of_images_the_one_that_is_taken_is_said(tmp_path, caplog):
    folder = changed(tmp_path / "birds", lambda table: table.append_column("mask", table["image"]))
    bring(folder, tmp_path / "storage")
    assert "columns of images" not in caplog.text
    for path in (folder / "data").iterdir():
        table = pq.read_table(path)
        pq.write_table(table.rename_columns(["left", "label", "right"]), path)
    (folder / "classnames.txt").write_text("zebra\nape\ngnu\n")
    bring(folder, tmp_path / "storage")
    assert "of its columns of images left, right, left is taken; call another one image" in caplog.text


@pytest.mark.parametrize(
    ("labels", "taken"),
    [
        ({"coarse": "ab", "fine": "abc"}, "fine"),  # as CIFAR-100 has them
        ({"fine": "abc", "coarse": "ab"}, "fine"),
        ({"species": "abc", "label": "ab"}, "label"),
        ({"label": "ab"}, "label"),
    ],
)
def test_of_several_columns_of_classes_the_one_called_so_is_taken_or_the_finest(tmp_path, labels, taken):
    features = {name: {"_type": "ClassLabel", "names": list(names)} for name, names in labels.items()}
    columns = {"image": pa.array([b"x"]), **{name: pa.array([0]) for name in labels}}
    about = {"huggingface": json.dumps({"info": {"features": features}})}
    pq.write_table(pa.table(columns).replace_schema_metadata(about), tmp_path / "train.parquet")
    notes = []
    assert _columns(tmp_path / "train.parquet", None, notes) == ("image", taken, tuple(labels[taken]))
    assert len(notes) == (len(labels) > 1)
