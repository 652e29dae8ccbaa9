"""Content checks: many faults make one report, good data pass, a good verdict is kept (faults: test_bad_data.py)."""

from __future__ import annotations

import io
import json
import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from condu_ray.benchmark import TaskError, check, check_task, load_task, load_tasks, require_valid, rows, stretch
from condu_ray.benchmark.images import inspect_image
from condu_ray.benchmark.references import load_references, require_decodable
from condu_ray.config import Distillation
from condu_ray.store.artifacts import read_sealed

Change = Callable[[Any, Path], None]
MTIL11 = Path(__file__).parents[3] / "shared" / "data" / "mtil11"


def _split(split: str, images: dict[int, Any] | None = None, labels: dict[int, int | None] | None = None) -> Change:
    return lambda make_task, folder: make_task.change_split(folder / split, images, labels)


def _train(images: dict[int, Any] | None = None, labels: dict[int, int | None] | None = None) -> Change:
    return _split("train.parquet", images, labels)


def test_good_task_has_no_problem(make_task: Any) -> None:
    assert check_task(load_task(make_task())) == []


def test_many_faults_make_a_short_message(make_task: Any) -> None:
    folder = make_task()
    make_task.write_split(
        folder / "train.parquet", [b"x%d" % row for row in range(100)], [row % 3 for row in range(100)]
    )
    (problem,) = check_task(load_task(folder))
    assert problem.message.startswith("100 of 100 images cannot be used: row 0:")
    assert "row 4:" in problem.message
    assert "and 95 more" in problem.message


def test_image_twice_in_each_split(make_task: Any) -> None:
    folder = make_task()
    _train(images={3: 0})(make_task, folder)
    _split("test.parquet", {1: 0, 4: 0})(make_task, folder)
    found = {(problem.severity, problem.file): problem.message for problem in check_task(load_task(folder))}
    assert "row 0 is row 1 of test.parquet" in found["error", "train.parquet"]
    assert "row 0 is row 3" in found["warning", "train.parquet"]
    assert "row 1 is row 4" in found["warning", "test.parquet"]
    assert len(found) == 3


@pytest.mark.parametrize(("known", "severity"), [(2, "warning"), (1, "error"), (0, "error"), ("many", "error")])
def test_images_that_the_official_splits_share(make_task: Any, known: Any, severity: str) -> None:
    folder = make_task(images_in_both_splits=known)
    _split("test.parquet", {0: 0, 4: 1})(make_task, folder)
    (problem,) = [problem for problem in check_task(load_task(folder)) if "too" in problem.message]
    assert problem.severity == severity
    assert "2 images are in test.parquet too" in problem.message


def test_a_good_verdict_is_good_by_what_is_known_of_the_official_splits(make_task: Any, tmp_path: Path) -> None:
    folder = make_task(images_in_both_splits=2)
    _split("test.parquet", {0: 0, 4: 1})(make_task, folder)
    require_valid([load_task(folder)], tmp_path / "checked")
    meta = folder / "meta.json"
    meta.write_text(json.dumps(json.loads(meta.read_text()) | {"images_in_both_splits": 1}))
    with pytest.raises(TaskError, match=r"2 images are in test\.parquet too"):
        require_valid([load_task(folder)], tmp_path / "checked")


def test_damage_inside_a_file(make_task: Any) -> None:
    # The footer is whole, so that loading passes; the pages in the middle are not.
    folder = make_task()
    data = bytearray((folder / "train.parquet").read_bytes())
    data[4 : len(data) // 2] = b"\xff" * (len(data) // 2 - 4)
    (folder / "train.parquet").write_bytes(data)
    problems = check_task(load_task(folder))
    assert any("the file is damaged" in problem.message for problem in problems if problem.file == "train.parquet")


def test_require_valid_lists_all(make_task: Any, tmp_path: Path) -> None:
    _train(labels={7: 3})(make_task, make_task("a"))
    make_task("b")
    _train(images={2: b"no image"})(make_task, make_task("c"))
    with pytest.raises(TaskError) as caught:
        require_valid(load_tasks(tmp_path), None)
    lines = str(caught.value).splitlines()
    assert lines[0].startswith("2 errors")
    assert str(tmp_path / "a" / "train.parquet") in lines[1]
    assert str(tmp_path / "c" / "train.parquet") in lines[2]


def test_require_valid_has_an_end(make_task: Any, tmp_path: Path) -> None:
    for index in range(11):
        folder = make_task(f"t{index:02d}")
        _train(labels={0: None, 1: 9})(make_task, folder)
    with pytest.raises(TaskError) as caught:
        require_valid(load_tasks(tmp_path), None)
    lines = str(caught.value).splitlines()
    assert len(lines) == 22
    assert lines[-1] == "... and 2 more"


def test_good_verdict_is_kept(
    make_task: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    folder = make_task()
    _train(images={3: 0})(make_task, folder)
    task, cache = load_task(folder), tmp_path / "a" / "cache"
    for _ in range(2):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            require_valid([task], cache)
        assert "row 0 is row 3" in caplog.text
        monkeypatch.setattr(check, "check_task", lambda *_, **__: pytest.fail("checked again"))
    assert [path.name for path in cache.iterdir()] == [f"{task.fingerprint}.json"]


def test_transparent_images_are_refused_where_that_is_asked_for(make_task: Any, tmp_path: Path) -> None:
    buffer = io.BytesIO()
    Image.new("RGBA", (8, 8)).save(buffer, "PNG")
    folder = make_task()
    _train({4: buffer.getvalue()})(make_task, folder)
    references = load_references(Distillation(reference=(folder,)))
    for _ in range(2):  # a verdict that was kept says the same
        require_valid([load_task(folder)], tmp_path / "cache")
        require_decodable(references, tmp_path / "cache")
        with pytest.raises(TaskError, match=r"train\.parquet: 1 of 9 images are transparent in places: row 4"):
            require_valid([load_task(folder)], tmp_path / "cache", refuse_transparent=True)
        with pytest.raises(TaskError, match=r"1 of 9 images cannot be used: row 4: is transparent in places"):
            require_decodable(references, tmp_path / "cache", refuse_transparent=True)


@pytest.mark.parametrize(
    ("labels", "bytes_kept", "said"),
    [
        ([0] * 20 + [1] * 20 + [2] * 20, 2**30, "rows are sorted by class: training shuffles them over the whole file"),
        ([2] * 20 + [0] * 20 + [1] * 20, 100, "in no random order.*over the whole file, from a copy of 0.0 GB in each"),
        ([0, 1, 2] * 20, 100, None),
    ],
)
def test_the_order_of_rows_of_a_large_file_is_said(
    make_task: Any, labels: list[int], bytes_kept: int, said: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rows, "WINDOW_ROWS", 12)
    monkeypatch.setattr(rows, "CACHED_BYTES", bytes_kept)
    folder = make_task()
    make_task.write_split(folder / "train.parquet", range(60), labels)
    found = [(problem.severity, problem.file, problem.message) for problem in check_task(load_task(folder))]
    assert len(found) == (said is not None)
    if said is not None:
        assert found[0][:2] == ("warning", "train.parquet")
        assert re.search(said, found[0][2])


@pytest.mark.parametrize("content", ["", "{", "[]", '{"version": 0, "problems": []}', '{"version": 1}'])
def test_bad_verdict_is_replaced(content: str, make_task: Any, tmp_path: Path) -> None:
    task = load_task(make_task())
    (tmp_path / f"{task.fingerprint}.json").write_text(content)
    require_valid([task], tmp_path)
    assert read_sealed(tmp_path / f"{task.fingerprint}.json") == {
        "version": check.CHECK_VERSION,
        "task": "digits",
        "problems": [],
    }


def test_error_is_not_kept(make_task: Any, tmp_path: Path) -> None:
    folder = make_task()
    _train(labels={7: 3})(make_task, folder)
    with pytest.raises(TaskError, match="out of range"):
        require_valid([load_task(folder)], tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_no_place_for_the_verdict(make_task: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").touch()
    require_valid([load_task(make_task())], tmp_path / "file")
    assert "is not kept" in caplog.text


@pytest.mark.skipif(not MTIL11.is_dir(), reason="the real images lie beside the project and are not part of it")
def test_real_images() -> None:
    tasks = load_tasks(MTIL11)
    assert [task.name for task in tasks][:2] == ["aircraft47", "caltech101"]
    task = next(task for task in tasks if task.name == "dtd10")
    assert (task.train_rows, task.test_rows, len(task.classes)) == (940, 240, 10)
    assert check_task(task) == []


class TestAVerdictThatDataCarry:
    @pytest.fixture
    def carried(self, make_task: Any, monkeypatch: pytest.MonkeyPatch) -> Path:
        """A task with a warning whose verdict is beside its data, where no image is decoded any more."""
        folder = make_task()
        _split("test.parquet", {1: 500})(make_task, folder)
        (problem,) = check.carry_verdict(load_task(folder))
        assert problem.severity == "warning"
        self.count = 0

        def decoded(data: bytes) -> Any:
            self.count += 1
            return inspect_image(data)

        monkeypatch.setattr(stretch, "inspect_image", decoded)
        return folder

    def test_it_is_believed_and_its_warnings_are_said(self, carried: Path, tmp_path: Path, caplog: Any) -> None:
        told: list[str] = []
        require_valid([load_task(carried)], tmp_path / "verdicts", say=told.append)
        assert (self.count, told) == (0, [])
        assert "repeat" in caplog.text
        require_valid([load_task(carried.rename(tmp_path / "elsewhere"))])  # under another name it is another's
        assert self.count == 15

    @pytest.mark.parametrize("what", ["data", "verdict", "another task's", "an older check"])
    def test_it_is_not_believed_of_other_data(
        self, carried: Path, what: str, make_task: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = carried / check.CARRIED
        if what == "data":
            _train(images={0: 77})(make_task, carried)
        elif what == "verdict":
            path.write_text(path.read_text().replace("warning", "WARNING"))
        elif what == "another task's":
            other = make_task("other")
            check.carry_verdict(load_task(other))
            path.write_bytes((other / check.CARRIED).read_bytes())
            self.count = 0
        else:
            monkeypatch.setattr(check, "CHECK_VERSION", check.CHECK_VERSION + 1)
        told: list[str] = []
        require_valid([load_task(carried)], say=told.append)
        assert self.count == 15
        assert told == ["digits: 15 images are checked, once"]

    def test_errors_are_no_verdict(self, make_task: Any) -> None:
        folder = make_task()
        _train(images={3: b"x"})(make_task, folder)
        (problem,) = check.carry_verdict(load_task(folder))
        assert problem.severity == "error"
        assert not (folder / check.CARRIED).exists()
        with pytest.raises(TaskError, match="cannot be used"):
            require_valid([load_task(folder)])
