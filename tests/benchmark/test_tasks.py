"""Loading tasks: what is accepted, what is refused and in which words, order, fingerprints."""

from __future__ import annotations

import dataclasses
import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from condu_ray.benchmark import Task, TaskError, load_task, load_tasks
from condu_ray.benchmark.tasks import MTIL11_ORDER


def test_good_task(make_task: Any) -> None:
    folder = make_task()
    task = load_task(folder)
    assert task == Task("digits", folder, ("one", "two", "three"), ("a photo of a {}.",), 9, 6)
    assert task.train == folder / "train.parquet"
    assert task.test == folder / "test.parquet"
    assert task.prompts() == ["a photo of a one.", "a photo of a two.", "a photo of a three."]
    assert pickle.loads(pickle.dumps(task)) == task
    with pytest.raises(dataclasses.FrozenInstanceError):
        task.name = "other"  # type: ignore[misc]


def test_several_templates(make_task: Any) -> None:
    # A class name is never read as a format.
    folder = make_task(template=..., templates=["a {}.", "one {}!"], classes=["a{0}", "{}", "%s"])
    task = load_task(folder)
    assert task.prompts(1) == ["one a{0}!", "one {}!", "one %s!"]
    assert task.prompts_by_template() == [task.prompts(0), task.prompts(1)]
    with pytest.raises(IndexError):
        task.prompts(2)


def test_relative_path_and_other_integers(make_task: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_task()
    make_task.write_split(folder / "test.parquet", [77], [2], pa.int64())
    monkeypatch.chdir(folder)
    task = load_task(".")
    assert (task.name, task.folder, task.test_rows) == ("digits", folder, 1)


def _column(split: str, change: Callable[[pa.Table], pa.Table]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        pq.write_table(change(pq.read_table(folder / split)), folder / split)

    return apply


def _cut(folder: Path) -> None:
    data = (folder / "train.parquet").read_bytes()
    (folder / "train.parquet").write_bytes(data[: len(data) // 2])


def _text(name: str, content: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_text(content)


def _float_labels(table: pa.Table) -> pa.Table:
    return table.set_column(1, "label", table["label"].cast(pa.float32()))


def _paths(table: pa.Table) -> pa.Table:
    return table.set_column(0, "image", pa.array(["a.png"] * len(table)))


BROKEN_FILES: dict[str, tuple[Callable[[Path], object], list[str]]] = {
    "wrong column": (
        _column("test.parquet", lambda table: table.rename_columns(["picture", "label"])),
        ["test.parquet", "'image' is missing", "picture"],
    ),
    "column twice": (
        _column("test.parquet", lambda table: table.append_column("label", table["label"])),
        ["test.parquet", "'label' is there 2 times"],
    ),
    "float labels": (_column("train.parquet", _float_labels), ["train.parquet", "'label' holds float", "integers"]),
    "paths for images": (_column("train.parquet", _paths), ["train.parquet", "'image' holds string", "bytes"]),
    "no rows": (_column("train.parquet", lambda table: table.slice(0, 0)), ["train.parquet", "no rows"]),
    "truncated": (_cut, ["train.parquet", "cut short", "anew"]),
    "no split": (lambda folder: (folder / "test.parquet").unlink(), ["test.parquet", "missing"]),
    "no meta": (lambda folder: (folder / "meta.json").unlink(), ["meta.json", "missing", "'classes'"]),
    "not JSON": (_text("meta.json", '{"classes": ['), ["meta.json", "not JSON"]),
    "a list": (_text("meta.json", "[]"), ["meta.json", "holds a list", "object"]),
}


@pytest.mark.parametrize("case", BROKEN_FILES)
def test_broken_files(case: str, make_task: Any) -> None:
    folder = make_task()
    change, words = BROKEN_FILES[case]
    change(folder)
    with pytest.raises(TaskError) as caught:
        load_task(folder)
    assert len(str(caught.value).splitlines()) == 1
    for word in words:
        assert word in str(caught.value)


BROKEN_META: dict[str, tuple[dict[str, Any], list[str]]] = {
    "no classes": ({"classes": ...}, ["'classes' is missing", "list the class names"]),
    "empty classes": ({"classes": []}, ["'classes' is not a list of names, or is empty"]),
    "classes is a text": ({"classes": "cat"}, ["'classes' is not a list"]),
    "repeated class": ({"classes": ["cat", "dog", "cat "]}, ["'classes'[2] repeats 'cat '", "'classes'[0]", "rename"]),
    "blank class": ({"classes": ["cat", " ", "dog"]}, ["'classes'[1]", "not empty"]),
    "class is a number": ({"classes": ["cat", 1, "dog"]}, ["'classes'[1] is 1"]),
    "no template": ({"template": ...}, ["either key 'template' or key 'templates'"]),
    "both templates": ({"templates": ["a {}"]}, ["either key 'template' or key 'templates'"]),
    "no templates": ({"template": ..., "templates": []}, ["'templates' (a list)"]),
    "template without a place": ({"template": "a photo"}, ["'a photo'", "exactly one '{}'"]),
    "template with two places": ({"template": "a {} of {}"}, ["'a {} of {}'", "exactly one '{}'"]),
    "template with a name": ({"template": "a {} of {x}"}, ["exactly one '{}'"]),
    "template is empty": ({"template": ""}, ["exactly one '{}'"]),
    "template is a number": ({"template": 3}, ["template 3", "exactly one '{}'"]),
    "one bad template": ({"template": ..., "templates": ["a {}", "b"]}, ["template 'b'"]),
}


@pytest.mark.parametrize("case", BROKEN_META)
def test_broken_meta(case: str, make_task: Any) -> None:
    meta, words = BROKEN_META[case]
    folder = make_task(**meta)
    with pytest.raises(TaskError) as caught:
        load_task(folder)
    assert len(str(caught.value).splitlines()) == 1
    for word in ["meta.json", *words]:
        assert word in str(caught.value)


@pytest.mark.parametrize("name", ["two words", "-first", "_first", "ä"])
def test_unsafe_folder_name(name: str, make_task: Any) -> None:
    with pytest.raises(TaskError, match="not safe in paths; rename the folder"):
        load_task(make_task(name))


def test_order_of_tasks(make_task: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("b", "c", "a"):
        make_task(name)
    (tmp_path / "no_task").mkdir()
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "train.parquet").touch()
    assert [task.name for task in load_tasks(tmp_path)] == ["a", "b", "c"]
    assert "half: skipped" in caplog.text
    assert [task.name for task in load_tasks(tmp_path, ("c", "a"))] == ["c", "a"]
    (tmp_path / "order.json").write_text(json.dumps(["c", "b", "a"]))
    assert [task.name for task in load_tasks(tmp_path)] == ["c", "b", "a"]
    assert [task.name for task in load_tasks(tmp_path, ["a", "b"])] == ["a", "b"]


def test_order_of_mtil(make_task: Any, tmp_path: Path) -> None:
    for name in sorted(MTIL11_ORDER):
        make_task(name)
    assert tuple(task.name for task in load_tasks(tmp_path)) == MTIL11_ORDER
    make_task("x")
    assert [task.name for task in load_tasks(tmp_path)] == [*sorted(MTIL11_ORDER), "x"]


BAD_NAMES: dict[str, tuple[Any, list[str]]] = {
    "unknown, near": (["stanford_car"], ["no task 'stanford_car'", "did you mean stanford_cars?"]),
    "unknown, other case": (["MNIST"], ["no task 'MNIST'", "did you mean mnist?"]),
    "unknown, far": (["zzz"], ["no task 'zzz'", "there are: mnist, stanford_cars"]),
    "out of the folder": (["../outside"], ["no task '../outside'"]),
    "parent": ([".."], ["no task '..'"]),
    "absolute": (["/tmp"], ["no task '/tmp'"]),
    "twice": (["mnist", "stanford_cars", "mnist"], ["'mnist' is named twice"]),
    "none": ([], ["no task to load"]),
    "a text": ("mnist", ["give a list of names"]),
    "a number": ([7], ["no task 7"]),
}


@pytest.mark.parametrize("case", BAD_NAMES)
def test_bad_names(case: str, make_task: Any, tmp_path: Path) -> None:
    make_task("outside")
    (tmp_path / "tasks").mkdir()
    for name in ("stanford_cars", "mnist"):
        make_task(f"tasks/{name}")
    names, words = BAD_NAMES[case]
    with pytest.raises(TaskError) as caught:
        load_tasks(tmp_path / "tasks", names)
    for word in words:
        assert word in str(caught.value)


def test_bad_folders(make_task: Any, tmp_path: Path) -> None:
    with pytest.raises(TaskError, match="no such folder"):
        load_tasks(tmp_path / "nowhere")
    with pytest.raises(TaskError, match="no task to load"):
        load_tasks(tmp_path)
    with pytest.raises(TaskError, match="itself a task: give its parent"):
        load_tasks(make_task())
    (tmp_path / "order.json").write_text('{"a": 1}')
    with pytest.raises(TaskError, match=r"order\.json: holds a dict"):
        load_tasks(tmp_path)
    (tmp_path / "order.json").write_text('["digits", "digits", "digit"]')
    with pytest.raises(TaskError, match=r"order\.json: 'digits' is named twice") as caught:
        load_tasks(tmp_path)
    assert "did you mean digits?" in str(caught.value)


def test_all_errors_at_once(make_task: Any, tmp_path: Path) -> None:
    (make_task("a", classes=...) / "test.parquet").unlink()
    make_task("b")
    make_task("c", template="none")
    with pytest.raises(TaskError) as caught:
        load_tasks(tmp_path)
    message = str(caught.value)
    assert len(message.splitlines()) == 3
    for word in (f"a{os.sep}meta.json", f"a{os.sep}test.parquet", f"c{os.sep}meta.json"):
        assert word in message


def test_fingerprints(make_task: Any) -> None:
    def prints(folder: Path) -> tuple[str, str, str]:
        task = load_task(folder)
        return task.train_fingerprint, task.test_fingerprint, task.fingerprint

    folder = make_task("a")
    before = prints(folder)
    assert len({*before}) == 3
    assert all(len(text) == 64 for text in before)
    # The name and free metadata say nothing about the data.
    assert prints(make_task("b", licence="MIT")) == before
    assert all(one != two for one, two in zip(prints(make_task("c", template="a {}")), before, strict=True))
    assert all(one != two for one, two in zip(prints(make_task("d", classes=["x", "y", "z"])), before, strict=True))
    make_task.write_split(folder / "test.parquet", [900], [0])
    after = prints(folder)
    assert after[0] == before[0]
    assert after[1] != before[1]
    assert after[2] != before[2]


def test_hash_is_remembered(make_task: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    task = load_task(make_task())
    first = task.fingerprint
    monkeypatch.setattr("hashlib.file_digest", lambda *_: pytest.fail("the file is read again"))
    assert task.fingerprint == first
