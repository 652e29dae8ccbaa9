"""What would make a task that cannot be loaded is refused by the data's own place, before anything is written."""

import os

import pytest

from condu_ray.benchmark import TaskError
from condu_ray.benchmark.ingest.bring import bring
from condu_ray.benchmark.ingest.convert import Options
from tests.benchmark.ingest.forms import class_folders


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("wren\u200b", r"birds: class 'wren\\u200b' holds U\+200B ZERO WIDTH SPACE, .*rename it"),
        (os.fsdecode(b"caf\xe9"), r"birds: class 'caf\\udce9' holds U\+DCE9"),
        ("_", "birds: nothing is left of class '_' in words; give it a name"),
    ],
)
def test_names_that_no_task_may_have_are_refused(tmp_path, name, words):
    class_folders(tmp_path / "birds", split=False)
    (tmp_path / "birds" / "wren").rename(tmp_path / "birds" / name)
    with pytest.raises(TaskError, match=words):
        bring(tmp_path / "birds", tmp_path / "storage")
    assert not list((tmp_path / "storage" / "datasets").iterdir())


@pytest.mark.parametrize(
    ("file", "text", "words"),
    [
        ("zeroshot_classification_templates.txt", "a {c}.\na photo\n", "templates.txt: template 'a photo': write"),
        ("classnames.txt", "ape\ngnu\nape\n", "birds: classes 'ape' and 'ape' are both 'ape' in words"),
    ],
)
def test_words_beside_data_are_looked_at_before_the_pictures(tmp_path, monkeypatch, file, text, words):
    class_folders(tmp_path / "birds")
    for number, name in enumerate(("golden_retriever", "SeaLake", "wren")):
        for path in (tmp_path / "birds").glob(f"*/{name}"):
            path.rename(path.with_name(str(number)))
    (tmp_path / "birds" / file).write_text(text)
    monkeypatch.setattr("condu_ray.benchmark.ingest.convert.gather", lambda *_, **__: pytest.fail("pictures were read"))
    with pytest.raises(TaskError, match=words):
        bring(tmp_path / "birds", tmp_path / "storage")


def test_a_share_that_counts_for_nothing_is_told_of(tmp_path, caplog):
    class_folders(tmp_path / "data" / "birds")
    class_folders(tmp_path / "data" / "tools", split=False)
    for share in (0.2, 0.4, 0.4):
        caplog.clear()
        [birds, tools] = bring(tmp_path / "data", tmp_path / "storage", options=Options(test_share=share))
        told = "birds: --test_share changes nothing, for " in caplog.text
        assert (told, birds.test_rows, tools.test_rows) == (share == 0.4, 6, 3 if share == 0.2 else 6)
    assert "tools" not in caplog.text


def renamed(folder, names):
    class_folders(folder)
    for name, other in zip(("golden_retriever", "SeaLake", "wren"), names, strict=True):
        for path in folder.glob(f"*/{name}"):
            path.rename(path.with_name(other))


def test_words_beside_data_that_are_written_anew_are_read_anew(tmp_path):
    """Not one picture has changed, by which what was converted before is known again."""
    renamed(tmp_path / "birds", "012")
    for names, template in (("ape,gnu,owl", "a {c}."), ("ape,gnu,emu", "a {c}."), ("ape,gnu,emu", "b {c}.")):
        (tmp_path / "birds" / "classnames.txt").write_text(names.replace(",", "\n"))
        (tmp_path / "birds" / "zeroshot_classification_templates.txt").write_text(template)
        [task] = bring(tmp_path / "birds", tmp_path / "storage")
        assert (task.classes, task.templates) == (tuple(names.split(",")), (template.replace("c", ""),))


def test_classes_are_counted_as_people_do(tmp_path):
    renamed(tmp_path / "birds", ("kind 10", "kind 2", "kind 1"))
    [task] = bring(tmp_path / "birds", tmp_path / "storage")
    assert task.classes == ("kind 1", "kind 2", "kind 10")
