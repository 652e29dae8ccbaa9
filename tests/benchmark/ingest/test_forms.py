"""Each form of data, in files in their true layout, becomes the same tasks."""

import json
import logging

import numpy as np
import pyarrow.parquet as pq
import pytest

from condu_ray.benchmark import TaskError, check_task, load_task
from condu_ray.benchmark.ingest.bring import bring
from condu_ray.benchmark.ingest.convert import Options
from condu_ray.store.artifacts import ArtifactError
from tests.benchmark.ingest.forms import CLASSES, FORMS, class_folders, encoded, hugging_face, listed, picture, shards

WORDS = ("golden retriever", "Sea Lake", "wren")


def rows(task, split):
    table = pq.read_table(task.folder / f"{split}.parquet").to_pydict()
    return {(task.classes[label], image) for label, image in zip(table["label"], table["image"], strict=True)}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_becomes_the_task_that_it_is(form, tmp_path):
    FORMS[form](tmp_path / "data" / "birds")
    class_folders(tmp_path / "known")
    [task] = bring(tmp_path / "data", tmp_path / "storage")
    [same] = bring(tmp_path / "known", tmp_path / "storage")
    assert task.name == "birds"
    assert (task.train_rows, task.test_rows) == (12, 6)
    assert sorted(task.classes) == sorted(WORDS)
    assert task.templates == ("a photo of a {}.",)
    assert [rows(task, split) for split in ("train", "test")] == [rows(same, split) for split in ("train", "test")]
    assert check_task(task) == []


def test_what_was_converted_is_used_at_once_and_is_known_by_its_content(tmp_path, monkeypatch):
    from condu_ray.benchmark.ingest import gather

    class_folders(tmp_path / "data" / "birds")
    said = []
    [task] = bring(tmp_path / "data", tmp_path / "storage", say=said.append)
    assert ["12 train and 6 test images of 3 classes" in line for line in said] == [False, True]
    (tmp_path / "data").rename(tmp_path / "moved")
    monkeypatch.setattr(gather, "inspect", None)
    assert bring(tmp_path / "moved", tmp_path / "storage") == [task]
    monkeypatch.undo()
    for path in (tmp_path / "moved").rglob("*.png"):
        path.touch()
    assert bring(tmp_path / "moved", tmp_path / "storage") == [task]  # looked at anew, and the same content
    path = tmp_path / "moved" / "birds" / "train" / "wren" / "0.png"
    path.write_bytes(encoded(picture(2, 50)))
    [other] = bring(tmp_path / "moved", tmp_path / "storage")
    assert other.folder != task.folder
    assert other.test_fingerprint == task.test_fingerprint
    assert other.train_fingerprint != task.train_fingerprint
    assert not [path for path in (tmp_path / "storage" / "datasets").iterdir() if path.name.startswith(".")]


def test_what_was_converted_and_damaged_is_named(tmp_path):
    class_folders(tmp_path / "birds")
    [task] = bring(tmp_path / "birds", tmp_path / "storage")
    with task.test.open("ab") as file:
        file.write(b"more")
    with pytest.raises(ArtifactError, match=r"test.parquet: content differs from its checksum; remove"):
        bring(tmp_path / "birds", tmp_path / "storage")


def test_a_data_set_a_folder_of_them_and_a_file_are_taken_in_the_order_asked_for(tmp_path):
    class_folders(tmp_path / "data" / "a")
    hugging_face(tmp_path / "data" / "b")
    listed(tmp_path / "data" / "c")
    storage = tmp_path / "storage"
    assert [task.name for task in bring(tmp_path / "data", storage)] == ["a", "b", "c"]
    assert [task.name for task in bring(tmp_path / "data", storage, ["c", "a"])] == ["c", "a"]
    assert [task.name for task in bring(tmp_path / "data" / "b", storage)] == ["b"]
    assert [task.name for task in bring(tmp_path / "data" / "c" / "all.csv", storage)] == ["all"]
    (tmp_path / "data" / "order.json").write_text(json.dumps(["b", "a"]))
    assert [task.name for task in bring(tmp_path / "data", storage)] == ["b", "a"]
    with pytest.raises(TaskError, match=r"no task 'aa' there \(did you mean a\?\)"):
        bring(tmp_path / "data", storage, ["aa"])
    with pytest.raises(TaskError, match="'a' is named twice"):
        bring(tmp_path / "data", storage, ["a", "a"])


def test_a_template_is_the_users_else_the_datas(tmp_path):
    shards(tmp_path / "birds")
    (tmp_path / "birds" / "zeroshot_classification_templates.txt").write_text("a {c}.\na photo of the {c}.\n")
    [task] = bring(tmp_path / "birds", tmp_path / "storage")
    assert task.templates == ("a {}.", "a photo of the {}.")
    [task] = bring(tmp_path / "birds", tmp_path / "storage", options=Options(template="one {}"))
    assert task.templates == ("one {}",)


def test_tasks_in_the_packages_form_are_as_they_were(task_data, tmp_path, caplog):
    [*tasks] = bring(task_data, tmp_path / "storage")
    assert [task.folder.parent for task in tasks] == [load_task(task_data / "walls").folder.parent] * 3
    assert not (tmp_path / "storage").exists()
    for options, flag in ((Options(template="a {}"), "--template"), (Options(test_share=0.5), "--test_share")):
        with pytest.raises(TaskError, match=f"{flag}: the tasks in .* are in the package's form"):
            bring(task_data, tmp_path / "storage", options=options)


def test_another_form_beside_the_packages_is_told_of(make_task, tmp_path, caplog):
    make_task()
    class_folders(tmp_path / "birds")
    with caplog.at_level(logging.WARNING):
        assert [task.name for task in bring(tmp_path, tmp_path / "storage")] == ["digits"]
    assert "birds: skipped, it is a tree of class folders beside tasks in the package's form" in caplog.text
    assert "condu-ray prepare --from" in caplog.text


def test_rows_are_mixed_whatever_order_the_source_has(tmp_path):
    class_folders(tmp_path / "birds")
    [task] = bring(tmp_path / "birds", tmp_path / "storage")
    labels = pq.read_table(task.train)["label"].to_numpy()
    assert np.abs(np.diff(labels)).astype(bool).sum() > len(CLASSES)


def test_of_several_class_labels_the_finest_is_taken_and_said(tmp_path, caplog):
    hugging_face(tmp_path / "cifar", label="fine_label")
    path = tmp_path / "cifar" / "data" / "train-00000-of-00001.parquet"
    for path in (tmp_path / "cifar" / "data").iterdir():
        table = pq.read_table(path)
        said = json.loads(table.schema.metadata[b"huggingface"])
        said["info"]["features"]["coarse_label"] = {"names": ["all"], "_type": "ClassLabel"}
        table = table.append_column("coarse_label", [[0] * len(table)])
        pq.write_table(table.replace_schema_metadata({"huggingface": json.dumps(said)}), path)
    [task] = bring(tmp_path / "cifar", tmp_path / "storage")
    assert set(task.classes) == set(WORDS)
    assert "fine_label is taken (3 names)" in caplog.text
