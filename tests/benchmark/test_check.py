"""Content checks: each fault is found and told, good data pass, and a good verdict is kept."""

from __future__ import annotations

import json
import logging
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from condu_ray.benchmark import TaskError, check, check_task, load_task, load_tasks, require_valid

Change = Callable[[Any, Path], None]
MTIL11 = Path(__file__).parents[3] / "shared" / "data" / "mtil11"


def png_of_size(side: int) -> bytes:
    """A PNG of a few hundred bytes that claims side x side pixels and holds none of them."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 9)) + chunk(b"IEND", b"")
    )


def _split(split: str, images: dict[int, Any] | None = None, labels: dict[int, int | None] | None = None) -> Change:
    return lambda make_task, folder: make_task.change_split(folder / split, images, labels)


def _train(images: dict[int, Any] | None = None, labels: dict[int, int | None] | None = None) -> Change:
    return _split("train.parquet", images, labels)


#: change -> severity, file, row, words of the one problem
FAULTS: dict[str, tuple[Change, str, str, int | None, list[str]]] = {
    "label too large": (
        _train(labels={7: 3, 8: 40}),
        "error",
        "train.parquet",
        7,
        ["2 of 9 labels are out of range 0 to 2", "row 7 has 3; row 8 has 40", "meta.json"],
    ),
    "label negative": (_train(labels={5: -1}), "error", "train.parquet", 5, ["out of range", "row 5 has -1"]),
    "null label": (_train(labels={6: None}), "error", "train.parquet", 6, ["1 of 9 labels are null: row 6"]),
    "class without training images": (
        _train(labels={1: 0, 4: 0, 7: 0}),
        "error",
        "train.parquet",
        None,
        ["1 of 3 classes have no image: 1 'two'"],
    ),
    "class without test images": (
        _split("test.parquet", labels={0: 2, 3: 2}),
        "error",
        "test.parquet",
        None,
        ["1 of 3 classes have no image: 0 'one'"],
    ),
    "not an image": (
        _train(images={2: b"no image"}),
        "error",
        "train.parquet",
        2,
        ["1 of 9 images cannot be used: row 2: not an image in a known format"],
    ),
    "image cut short": (_train(images={8: png_of_size(64)}), "error", "train.parquet", 8, ["does not decode"]),
    "null images": (_train(images={1: None, 3: None}), "error", "train.parquet", 1, ["row 1: is null; row 3: is null"]),
    "empty image": (_split("test.parquet", {5: b""}), "error", "test.parquet", 5, ["row 5: has no bytes"]),
    "large image": (
        _train(images={4: png_of_size(8001)}),
        "error",
        "train.parquet",
        4,
        ["8001 x 8001", "64 megapixels"],
    ),
    "bomb": (
        _train(images={4: png_of_size(40_000)}),
        "error",
        "train.parquet",
        4,
        ["more than 64 megapixels", "scale it"],
    ),
    "image in both splits": (
        _split("test.parquet", {5: 3}),
        "error",
        "train.parquet",
        3,
        ["1 images are in test.parquet too: row 3 is row 5 of test.parquet"],
    ),
    "image twice in a split": (
        _train(images={6: 0, 3: 0}),
        "warning",
        "train.parquet",
        0,
        ["2 images repeat: row 0 is row 3; row 3 is row 6"],
    ),
}


def test_good_task_has_no_problem(make_task: Any) -> None:
    assert check_task(load_task(make_task())) == []


@pytest.mark.parametrize("case", FAULTS)
def test_fault_is_found(case: str, make_task: Any) -> None:
    change, severity, file, row, words = FAULTS[case]
    folder = make_task()
    change(make_task, folder)
    (problem,) = check_task(load_task(folder))
    assert (problem.severity, problem.file, problem.row) == (severity, file, row)
    for word in words:
        assert word in problem.message
    assert [problem] == check_task(load_task(folder), workers=3)


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


def test_damage_inside_a_file(make_task: Any) -> None:
    # The footer is whole, so that loading passes; the pages in the middle are not.
    folder = make_task()
    data = bytearray((folder / "train.parquet").read_bytes())
    data[4 : len(data) // 2] = b"\xff" * (len(data) // 2 - 4)
    (folder / "train.parquet").write_bytes(data)
    problems = check_task(load_task(folder))
    assert any("the file is damaged" in problem.message for problem in problems if problem.file == "train.parquet")


def test_unsigned_label_of_another_width(make_task: Any) -> None:
    folder = make_task()
    make_task.write_split(folder / "test.parquet", range(60, 64), [0, 1, 2, 2**64 - 1], pa.uint64())
    (problem,) = check_task(load_task(folder))
    assert "out of range" in problem.message
    assert problem.row == 3


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


@pytest.mark.parametrize("content", ["", "{", "[]", '{"version": 0, "problems": []}', '{"version": 1}'])
def test_bad_verdict_is_replaced(content: str, make_task: Any, tmp_path: Path) -> None:
    task = load_task(make_task())
    (tmp_path / f"{task.fingerprint}.json").write_text(content)
    require_valid([task], tmp_path)
    assert json.loads((tmp_path / f"{task.fingerprint}.json").read_text()) == {
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
