"""Few-shot tasks: which images are drawn, what is written, and that it is written once and whole."""

from __future__ import annotations

import json
import logging
import os
import shutil
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from condu_ray.benchmark import Task, TaskError, check_task, load_task
from condu_ray.benchmark.few_shot import draw, few_shot, source_fingerprint
from condu_ray.benchmark.subset import read_rows
from condu_ray.store.artifacts import ArtifactError

module = sys.modules[few_shot.__module__]


def read(path: Path) -> list[tuple[bytes, int]]:
    table = pq.read_table(path)
    return list(zip(table["image"].to_pylist(), table["label"].to_pylist(), strict=True))


def hidden(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.name.startswith(".")]


@pytest.fixture
def task(make_task: Any) -> Task:
    """Three classes of 12, 4 and 2 training images, in row groups of four rows."""
    folder = make_task()
    make_task.write_split(folder / "train.parquet", range(18), [0, 1, 0, 2, 0, 0] * 2 + [0, 0, 1, 0, 0, 1])
    return load_task(folder)


@pytest.mark.parametrize("shots", [1, 2, 5, 100])
@pytest.mark.parametrize("seed", [0, 7])
def test_rows_that_are_drawn(shots: int, seed: int) -> None:
    labels = np.random.default_rng(3).integers(0, 6, 200)
    labels[labels == 4] = 5  # class 4 has no row
    rows = draw(labels, 6, shots=shots, seed=seed)
    assert rows.dtype == np.int64
    assert (np.diff(rows) > 0).all()
    assert np.array_equal(np.bincount(labels[rows], minlength=6), np.minimum(np.bincount(labels, minlength=6), shots))
    assert np.array_equal(rows, draw(labels, 6, shots=shots, seed=seed))
    # More shots keep what fewer had, and another class does not matter.
    assert set(rows) <= set(draw(labels, 6, shots=shots + 1, seed=seed))
    without = np.where(labels == 0, 5, labels)
    assert set(rows[labels[rows] == 1]) == {
        row for row in draw(without, 6, shots=shots, seed=seed) if without[row] == 1
    }


def test_a_draw_is_the_one_of_earlier_folders_of_this_version() -> None:
    """A folder that is there is taken for what would be drawn now."""
    labels = np.arange(30) % 3
    assert draw(labels, 3, shots=2, seed=0).tolist() == [4, 8, 12, 18, 26, 28]
    assert draw(labels, 3, shots=2, seed=1).tolist() == [7, 12, 17, 22, 24, 26]


def test_seeds_draw_different_rows_of_each_class() -> None:
    labels = np.repeat(np.arange(3), 50)
    by_seed = [draw(labels, 3, shots=5, seed=seed) for seed in range(20)]
    assert len({tuple(rows) for rows in by_seed}) == 20
    # One class's draw is not another's moved on, and every row has its chance.
    assert not np.array_equal(by_seed[0][:5] + 50, by_seed[0][5:10])
    assert len(np.unique(np.concatenate([draw(labels, 3, shots=5, seed=seed) for seed in range(200)]))) == 150


def test_what_is_written(task: Task, make_task: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    other = load_task(make_task("animals", licence="MIT", template=..., templates=["a {}", "one {}"]))
    few = few_shot([task, other], tmp_path / "made", shots=3, seed=5)
    assert [one.name for one in few] == ["digits", "animals"]
    (folder,) = (tmp_path / "made").iterdir()
    assert folder.name.startswith(f"{tmp_path.name}-3shot-seed5-")
    assert len(folder.name.rsplit("-", 1)[1]) == 8
    for source, made in zip([task, other], few, strict=True):
        assert Path(made.folder) == folder / source.name
        assert sorted(path.name for path in Path(made.folder).iterdir()) == [
            "meta.json",
            "test.parquet",
            "train.parquet",
        ]
        assert made.test_fingerprint == source.test_fingerprint
        assert made.train_fingerprint != source.train_fingerprint or made.train_rows == source.train_rows
        assert (made.classes, made.templates) == (source.classes, source.templates)
        rows = read(source.train)
        kept = draw(np.asarray([label for _, label in rows]), 3, shots=3, seed=5)
        assert read(made.train) == [rows[row] for row in kept]
        assert check_task(made) == []
        before = json.loads(Path(source.folder, "meta.json").read_text())
        after = json.loads(Path(made.folder, "meta.json").read_text())
        assert after.items() >= before.items()
        assert {key: after[key] for key in after.keys() - before.keys() - {"files", "versions"}} == {
            "shots": 3,
            "seed": 5,
            "source_fingerprint": source.fingerprint,
            "source_train_fingerprint": source.train_fingerprint,
        }
    assert "task 'digits'" in caplog.text
    assert "fewer than 3 training images keep all: 'three' has 2" in caplog.text
    assert "'two'" not in caplog.text
    assert "animals" not in caplog.text
    assert few_shot([], tmp_path / "nothing", shots=3, seed=5) == []
    assert not (tmp_path / "nothing").exists()


def test_all_images_behind_the_shots_are_part_of_what_they_are(task: Task, make_task: Any, tmp_path: Path) -> None:
    (few,) = few_shot([task], tmp_path / "one", shots=2, seed=0)
    assert source_fingerprint(few) == task.train_fingerprint == source_fingerprint(task)
    kept = read(few.train)
    shown = read(task.train)
    changed = next(row for row, one in enumerate(shown) if one not in kept)
    table = pq.read_table(task.train).to_pydict()
    table["image"][changed] = table["image"][(changed + 1) % len(shown)]
    pq.write_table(pa.table(table, schema=pq.read_schema(task.train)), task.train)
    (other,) = few_shot([load_task(task.folder)], tmp_path / "two", shots=2, seed=0)
    assert read(other.train) == kept
    assert source_fingerprint(other) != source_fingerprint(few)
    assert other.train_fingerprint != few.train_fingerprint  # prototypes of all images are other ones


def test_types_of_columns_stay(make_task: Any, tmp_path: Path) -> None:
    folder = make_task()
    for split in ("train", "test"):
        table = pq.read_table(folder / f"{split}.parquet")
        columns = {"more": table["label"], "label": table["label"].cast(pa.uint8())}
        columns["image"] = table["image"].cast(pa.large_binary())
        pq.write_table(pa.table(columns), folder / f"{split}.parquet", row_group_size=5)
    (few,) = few_shot([load_task(folder)], tmp_path / "made", shots=2, seed=0)
    assert pq.read_schema(few.train).equals(pa.schema([("image", pa.large_binary()), ("label", pa.uint8())]))


@pytest.mark.parametrize("kind", [pa.binary_view(), pa.large_binary(), pa.dictionary(pa.int32(), pa.binary())])
def test_images_are_drawn_in_whatever_form_they_are_kept(kind: Any, make_task: Any, tmp_path: Path) -> None:
    (few,) = few_shot([load_task(make_task())], tmp_path / "made", shots=2, seed=0)
    expected = pq.read_table(few.train)["image"].to_pylist()
    for split in ("train", "test"):
        path = tmp_path / "digits" / f"{split}.parquet"
        table = pq.read_table(path)
        images = table["image"].to_pylist()
        dictionary = pa.types.is_dictionary(kind)
        column = pa.array(images, pa.binary()).dictionary_encode() if dictionary else pa.array(images, kind)
        pq.write_table(pa.table({"image": column, "label": table["label"]}), path, row_group_size=4)
    (few,) = few_shot([load_task(tmp_path / "digits")], tmp_path / "again", shots=2, seed=0)
    assert pq.read_table(few.train)["image"].to_pylist() == expected


def test_second_call_writes_nothing(task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    first = few_shot([task], tmp_path / "made", shots=3, seed=0)
    monkeypatch.setattr(module, "draw", lambda *_, **__: pytest.fail("drawn again"))
    caplog.clear()
    assert few_shot([task], tmp_path / "made", shots=3, seed=0) == first
    assert "'three' has 2" in caplog.text


def test_same_bytes_anywhere(task: Task, tmp_path: Path) -> None:
    one, other = (few_shot([task], tmp_path / name, shots=3, seed=0)[0] for name in ("one", "other"))
    assert one.fingerprint == other.fingerprint
    assert one.train.read_bytes() == other.train.read_bytes()


def test_each_draw_has_its_own_folder(task: Task, make_task: Any, tmp_path: Path) -> None:
    made = tmp_path / "made"
    other = load_task(make_task("other"))

    def folder(tasks: list[Task], shots: int, seed: int) -> Path:
        return few_shot(tasks, made, shots=shots, seed=seed)[0].folder.parent

    calls = [([task], 2, 0), ([task], 1, 0), ([task], 2, 1), ([other], 2, 0), ([task, other], 2, 0)]
    folders = {folder(*call) for call in calls}
    assert len(folders) == 5
    assert folder([other, task], 2, 0) in folders  # the order of the tasks is no part of the data
    make_task.write_split(task.test, [900, 901, 902], [0, 1, 2])
    assert folder([load_task(task.folder)], 2, 0) not in folders


def test_test_split_is_a_link(task: Task, tmp_path: Path) -> None:
    # A split that is a symbolic link: the file behind it is linked, not the link.
    os.rename(task.test, tmp_path / "elsewhere.parquet")
    task.test.symlink_to(tmp_path / "elsewhere.parquet")
    (few,) = few_shot([task], tmp_path / "made", shots=2, seed=0)
    assert not few.test.is_symlink()
    assert few.test.samefile(tmp_path / "elsewhere.parquet")


def test_test_split_is_copied_where_links_are_not(task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    (few,) = few_shot([task], tmp_path / "made", shots=2, seed=0)
    assert not few.test.samefile(task.test)
    assert few.test.read_bytes() == task.test.read_bytes()


def test_writers_at_once(task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # All have written their own draft before the first one publishes it.
    barrier, link = threading.Barrier(4, timeout=30), module.link

    def link_together(source: Path, target: Path) -> None:
        link(source, target)
        barrier.wait()

    monkeypatch.setattr(module, "link", link_together)
    with ThreadPoolExecutor(4) as pool:
        futures = [pool.submit(few_shot, [task], tmp_path / "made", shots=2, seed=0) for _ in range(4)]
        results = [future.result() for future in futures]
    assert all(result == results[0] for result in results)
    assert hidden(tmp_path / "made") == []


def test_killed_writer_leaves_nothing(task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def kill(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module, "link", kill)
        with pytest.raises(KeyboardInterrupt):
            few_shot([task], tmp_path / "made", shots=2, seed=0)
    assert list((tmp_path / "made").rglob("*.parquet")) == []
    assert hidden(tmp_path / "made") == []
    assert len(few_shot([task], tmp_path / "made", shots=2, seed=0)) == 1


def test_few_pages_are_in_memory(make_task: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Three row groups of 24 MB each; the second one holds no row that is wanted.
    folder, generator = make_task(), np.random.default_rng(0)
    table = pa.table(
        {
            "image": pa.array([generator.bytes(24_000) for _ in range(3000)], pa.binary()),
            "label": pa.array([0] * 1000 + [1] * 1000 + [2] * 1000, pa.int32()),
        }
    )
    pq.write_table(table, folder / "train.parquet", row_group_size=1000, write_batch_size=32, compression="none")
    del table
    groups, peak, iterate, before = [], 0, pq.ParquetFile.iter_batches, pa.total_allocated_bytes()

    def watch(file: Any, *args: Any, **options: Any) -> Iterator[pa.RecordBatch]:
        nonlocal peak
        groups.extend(options["row_groups"])
        for batch in iterate(file, *args, **options):
            peak = max(peak, pa.total_allocated_bytes() - before)
            yield batch

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", watch)
    rows = np.asarray([3, 999, 2000, 2999])
    batches = list(read_rows(folder / "train.parquet", rows))
    assert groups == [0, 2]
    assert [label for batch in batches for label in batch.column("label").to_pylist()] == [0, 0, 2, 2]
    assert 0 < peak < 8_000_000


def replace(name: str, other: str) -> Callable[[Path], object]:
    """Another file in a file's place; the test split is a link, so it is never written through."""
    return lambda folder: ((folder / name).unlink(), shutil.copy(folder / other, folder / name))


def edit(old: str, new: str) -> Callable[[Path], object]:
    return lambda folder: (folder / "meta.json").write_text((folder / "meta.json").read_text().replace(old, new))


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "no training split": (lambda folder: (folder / "train.parquet").unlink(), "train.parquet: missing"),
    "other training split": (replace("train.parquet", "test.parquet"), "train.parquet: content differs"),
    "no test split": (lambda folder: (folder / "test.parquet").unlink(), "test.parquet: missing"),
    "other test split": (replace("test.parquet", "train.parquet"), "differs from"),
    "damaged meta": (lambda folder: (folder / "meta.json").write_text("{"), "damaged manifest"),
    "other classes": (edit('"one"', '"ten"'), "differs from"),
    "other seed": (edit('"seed": 0', '"seed": 1'), "differs from"),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_damage_to_what_was_written_is_found(case: str, task: Task, tmp_path: Path) -> None:
    change, words = DAMAGE[case]
    (few,) = few_shot([task], tmp_path / "made", shots=2, seed=0)
    change(Path(few.folder))
    with pytest.raises(ArtifactError) as caught:
        few_shot([task], tmp_path / "made", shots=2, seed=0)
    for word in (words, f"remove {few.folder}"):
        assert word in str(caught.value)
    shutil.rmtree(few.folder)
    assert few_shot([task], tmp_path / "made", shots=2, seed=0) == [few]


@pytest.mark.parametrize(("shots", "seed"), [(0, 0), (-3, 0), (5, -1)])
def test_bad_numbers(shots: int, seed: int, task: Task, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"shots is {shots} and seed is {seed}; give at least 1 shot"):
        few_shot([task], tmp_path / "made", shots=shots, seed=seed)
    assert not (tmp_path / "made").exists()


def test_task_named_twice(task: Task, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"named twice: \['digits'\]"):
        few_shot([task, task], tmp_path, shots=1, seed=0)


@pytest.mark.parametrize(("label", "words"), [(None, "row 4 has label None"), (3, "row 4 has label 3"), (-1, "row 4")])
def test_bad_labels(label: int | None, words: str, make_task: Any, tmp_path: Path) -> None:
    folder = make_task()
    make_task.change_split(folder / "train.parquet", labels={4: label})
    with pytest.raises(TaskError, match=words) as caught:
        few_shot([load_task(folder)], tmp_path / "made", shots=1, seed=0)
    assert str(folder / "train.parquet") in str(caught.value)
    assert "labels from 0 to 2" in str(caught.value)


def test_damaged_source(make_task: Any, tmp_path: Path) -> None:
    # The footer is whole, so that loading passes; the pages are not.
    folder = make_task()
    data = bytearray((folder / "train.parquet").read_bytes())
    data[4 : len(data) // 2] = b"\xff" * (len(data) // 2 - 4)
    (folder / "train.parquet").write_bytes(data)
    with pytest.raises(TaskError, match="write or copy") as caught:
        few_shot([load_task(folder)], tmp_path / "made", shots=1, seed=0)
    assert str(folder / "train.parquet") in str(caught.value)
    assert list((tmp_path / "made").rglob("*.parquet")) == []


def test_folder_that_cannot_be_written(task: Task, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(TaskError, match="cannot be made") as caught:
        few_shot([task], tmp_path / "file", shots=1, seed=0)
    assert str(tmp_path / "file") in str(caught.value)


def test_many_short_classes_make_a_short_warning(
    make_task: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = make_task(classes=[f"c{label}" for label in range(9)])
    make_task.write_split(folder / "train.parquet", range(8), range(8))
    with caplog.at_level(logging.WARNING):
        few_shot([load_task(folder)], tmp_path / "made", shots=2, seed=0)
    (record,) = caplog.records
    assert record.getMessage().endswith("'c0' has 1, 'c1' has 1, 'c2' has 1, 'c3' has 1, 'c4' has 1 and 4 more")
