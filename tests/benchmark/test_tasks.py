"""Loading tasks: what is accepted, order, fingerprints (what is refused: test_bad_data.py)."""

from __future__ import annotations

import dataclasses
import json
import os
import pickle
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from condu_ray.benchmark import Task, TaskError, load_task, load_tasks, tasks
from condu_ray.store.location import Location


def test_good_task(make_task: Any) -> None:
    folder = make_task()
    task = load_task(folder)
    assert task == Task("digits", Location(folder), ("one", "two", "three"), ("a photo of a {}.",), 9, 6)
    assert task.train == folder / "train.parquet"
    assert task.test == folder / "test.parquet"
    assert task.prompts() == ["a photo of a one.", "a photo of a two.", "a photo of a three."]
    assert pickle.loads(pickle.dumps(task)) == task
    with pytest.raises(dataclasses.FrozenInstanceError):
        task.name = "other"  # type: ignore[misc]


def test_several_templates(make_task: Any) -> None:
    # A class name is never read as a format.
    folder = make_task(template=..., templates=["one {}!", "a {}."], classes=["a{0}", "{}", "%s"])
    assert load_task(folder).prompts() == ["one a{0}!", "one {}!", "one %s!"]


def test_relative_path_and_other_integers(make_task: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_task()
    make_task.write_split(folder / "test.parquet", [77], [2], pa.int64())
    monkeypatch.chdir(folder)
    task = load_task(".")
    assert (task.name, str(task.folder), task.test_rows) == ("digits", str(folder), 1)


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


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_closed_folder_is_skipped_aloud(make_task: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    make_task("a")
    make_task("b").chmod(0)
    assert [task.name for task in load_tasks(tmp_path)] == ["a"]
    assert f"{tmp_path / 'b'}: skipped, it may not be read by this user" in caplog.text


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


def test_hashes_travel_and_count_for_the_very_file_alone(make_task: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    task = load_task(make_task())
    first = task.fingerprint
    known = tasks.known_hashes()
    monkeypatch.setattr(tasks, "_file_hashes", {})  # another process
    tasks.take_hashes(known)
    with monkeypatch.context() as patch:
        patch.setattr("hashlib.file_digest", lambda *_: pytest.fail("the file is read again"))
        assert task.fingerprint == first
    make_task.change_split(Path(task.train), images={0: 77})
    assert task.fingerprint != first


def test_a_task_is_known_by_what_it_was_known_by(monkeypatch: pytest.MonkeyPatch) -> None:
    """All keys of experts, prototypes and measurements are made of these: one that moved would have all made anew."""
    monkeypatch.setattr(tasks, "hash_file", lambda path: f"hash of {path.name}")
    templates = ("a {} wall.", "one {} wall.")
    task = Task("walls", Location("/data/walls"), ("red", "dark grey"), templates, 3, 2)
    prints = [task.fingerprint, task.train_fingerprint, task.test_fingerprint]
    assert [one[:12] for one in prints] == ["8d94e6dd69b9", "6fe879bb4cb7", "7e79cb005a2d"]
    monkeypatch.setattr(tasks, "DECODING", tasks.DECODING + 1)  # the same bytes are other pictures
    assert task.train_fingerprint.startswith("a5900c81292e")
