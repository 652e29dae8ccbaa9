"""Conversion: counts, resuming, interruptions, and what lies in the way."""

import json
import multiprocessing
import os
from dataclasses import replace

import pyarrow.parquet as pq
import pytest

from condu_ray.benchmark import check_task, load_task, splits
from condu_ray.benchmark.mtil import CATALOG, IngestError, convert, prepare
from condu_ray.benchmark.mtil.convert import accepting
from condu_ray.store.claims import Claims


def files(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_other_counts_are_refused_unless_they_are_accepted(trees, tmp_path):
    tree, out = trees("aircraft"), tmp_path / "out"
    [outcome] = prepare([CATALOG["aircraft"]], tree.root, out)
    assert outcome.state == "failed"
    assert "counts differ: train: expected 3334, found 6; test: expected 3333, found 4" in outcome.note
    assert "(images are missing, as where an archive was not unpacked to its end" in outcome.note
    assert "--allow-counts" in outcome.note
    assert not out.exists()
    assert accepting(CATALOG["aircraft"], {"train": 3334, "test": 3400}) == "--allow-counts accepts them"
    [outcome] = prepare([CATALOG["aircraft"]], tree.root, out, allow_counts=True)
    assert (outcome.state, outcome.counts) == ("converted", {"train": 6, "test": 4})
    assert "expected 3334, found 6" in outcome.note
    assert json.loads((out / "aircraft" / "meta.json").read_text())["counts_as_published"] is False
    # A task with other counts is ready only for those who accept them.
    assert [o.state for o in prepare([CATALOG["aircraft"]], tree.root, out, allow_counts=True)] == ["ready"]
    before = files(out)
    assert [o.state for o in prepare([CATALOG["aircraft"]], tree.root, out)] == ["failed"]
    assert files(out) == before


def test_one_side_of_the_counts_is_enough(trees, tmp_path):
    tree = trees("mnist")
    entry = replace(trees.entry("mnist", tree), test=10_000)
    with pytest.raises(IngestError, match=r"mnist: counts differ: test: expected 10000, found 2 \("):
        convert.convert(entry, tree.root, tmp_path)


@pytest.mark.parametrize("name", ["mnist", "dtd"])
def test_the_same_files_give_the_same_bytes(name, trees, tmp_path):
    tree = trees(name)
    entry = trees.entry(name, tree)
    hashes = [
        convert.convert(entry, tree.root, tmp_path / place, workers=n)["files"] for place, n in (("a", 1), ("b", 3))
    ]
    assert hashes[0] == hashes[1]
    assert load_task(tmp_path / "a" / name).fingerprint == load_task(tmp_path / "b" / name).fingerprint


@pytest.mark.parametrize(
    ("limits", "rows"),
    [
        ({"GROUP_ROWS": 4}, [4, 4, 4, 4]),
        ({"GROUP_ROWS": 7}, [7, 7, 2]),
        ({"GROUP_BYTES": 1}, [1] * 16),
        ({"_BATCH": 3, "GROUP_ROWS": 5}, [5, 5, 5, 1]),
    ],
)
def test_row_groups_are_bounded(limits, rows, trees, tmp_path, monkeypatch):
    tree = trees("eurosat")
    for limit, value in limits.items():
        monkeypatch.setattr(convert if limit == "_BATCH" else splits, limit, value)
    convert.convert(trees.entry("eurosat", tree), tree.root, tmp_path / "out")
    metadata = pq.read_metadata(tmp_path / "out" / "eurosat" / "train.parquet")
    assert [metadata.row_group(index).num_rows for index in range(metadata.num_row_groups)] == rows


@pytest.mark.parametrize("stop", [KeyboardInterrupt, OSError])
@pytest.mark.parametrize("after", [1, 20])
def test_a_stopped_conversion_leaves_nothing_and_can_be_repeated(stop, after, trees, tmp_path, monkeypatch):
    tree, out = trees("oxford_pets"), tmp_path / "out"
    entry, seen, inspect = trees.entry("oxford_pets", tree), [], convert.inspect_image

    def stopping(data):
        seen.append(data)
        if len(seen) > after:
            raise stop("stopped")
        return inspect(data)

    monkeypatch.setattr(convert, "inspect_image", stopping)
    with pytest.raises(stop):
        convert.convert(entry, tree.root, out, workers=1)
    assert list(out.iterdir()) == []
    monkeypatch.undo()
    assert [outcome.state for outcome in prepare([entry], tree.root, out)] == ["converted"]


def _killed(entry, root, out):
    seen, inspect = [], convert.inspect_image

    def killing(data):
        seen.append(data)
        if len(seen) > 50:  # train is written, test is not
            os._exit(9)
        return inspect(data)

    convert.inspect_image = killing
    convert.convert(entry, root, out, workers=1)


@pytest.mark.timeout(60)
def test_what_a_killed_process_left_is_removed_by_the_next(trees, tmp_path):
    tree, out = trees("oxford_pets"), tmp_path / "out"
    entry = trees.entry("oxford_pets", tree)
    process = multiprocessing.get_context("fork").Process(target=_killed, args=(entry, tree.root, out))
    process.start()
    process.join()
    assert process.exitcode == 9
    draft, claim = sorted(out.iterdir())
    assert draft.name.startswith(".oxford_pets.")
    assert claim.name == ".oxford_pets.json"
    assert (draft / "train.parquet").is_file()
    assert [outcome.state for outcome in prepare([entry], tree.root, out, check=True)] == ["found"]
    (out / ".oxford_pets_of_mine").mkdir()
    assert [outcome.state for outcome in prepare([entry], tree.root, out)] == ["converted"]
    assert sorted(path.name for path in out.iterdir()) == [".oxford_pets_of_mine", "oxford_pets"]


@pytest.mark.parametrize("harm", ["flip", "cut", "gone", "outdated"])
def test_a_damaged_or_outdated_task_is_written_anew(harm, trees, tmp_path):
    tree, out = trees("food"), tmp_path / "out"
    entry = trees.entry("food", tree)
    prepare([entry], tree.root, out)
    whole = files(out)
    path, meta = out / "food" / "test.parquet", out / "food" / "meta.json"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    if harm == "outdated":
        meta.write_text(json.dumps(json.loads(meta.read_text()) | {"ingest": "0" * 64}))
    else:
        path.write_bytes(data if harm == "flip" else data[:9])
    if harm == "gone":
        path.unlink()
    [outcome] = prepare([entry], tree.root, out, check=True)
    assert outcome.state == "found"
    assert ("written by another version" if harm == "outdated" else "test.parquet is damaged") in outcome.note
    assert [outcome.state for outcome in prepare([entry], tree.root, out)] == ["converted"]
    assert files(out) == whole


def test_a_damaged_task_stays_if_it_cannot_be_written_anew(trees, tmp_path):
    tree, out = trees("food"), tmp_path / "out"
    entry = trees.entry("food", tree)
    prepare([entry], tree.root, out)
    (out / "food" / "test.parquet").write_bytes(b"")
    tree.images[0].write_bytes(b"")
    left = files(out)
    [outcome] = prepare([entry], tree.root, out)
    assert outcome.state == "failed"
    assert str(tree.images[0]) in outcome.note
    assert "has no bytes" in outcome.note
    assert files(out) == left


@pytest.mark.parametrize("content", [None, "{}", '{"classes": ["a"], "template": "a {}."}', "not JSON"])
def test_a_folder_of_somebody_else_is_not_touched(content, trees, tmp_path):
    tree, out = trees("mnist"), tmp_path / "out"
    (out / "mnist").mkdir(parents=True)
    (out / "mnist" / "train.parquet").write_text("mine")
    if content is not None:
        (out / "mnist" / "meta.json").write_text(content)
    before = files(out)
    [outcome] = prepare([trees.entry("mnist", tree)], tree.root, out, allow_counts=True)
    assert outcome.state == "failed"
    assert f"{out / 'mnist'}: there is a folder that this tool did not write" in outcome.note
    assert files(out) == before


def test_two_processes_do_not_write_into_the_same_folder(trees, tmp_path):
    tree = trees("mnist")
    with Claims(tmp_path) as claims:
        assert claims.acquire(".mnist")
        with pytest.raises(IngestError, match="mnist: another process is writing it; wait for it"):
            convert.convert(trees.entry("mnist", tree), tree.root, tmp_path)
    convert.convert(trees.entry("mnist", tree), tree.root, tmp_path)


def test_images_in_both_splits_are_kept_and_counted(trees, tmp_path):
    tree, out = trees("stanford_cars"), tmp_path / "out"
    train, test = tree.images
    test.write_bytes(train.read_bytes())
    [outcome] = prepare([trees.entry("stanford_cars", tree)], tree.root, out)
    assert (outcome.state, outcome.note) == ("converted", "1 test images are in train too")
    assert load_task(out / "stanford_cars").test_rows == 3
    assert any("are in test.parquet too" in str(problem) for problem in check_task(load_task(out / "stanford_cars")))


def test_many_bad_images_end_the_conversion_early(trees, tmp_path):
    tree = trees("dtd")
    for path in (tree.root / "dtd" / "dtd" / "images").rglob("*.jpg"):
        path.write_bytes(b"")
    with pytest.raises(IngestError, match=r"dtd: images cannot be used: .* and at least 42 more") as error:
        convert.convert(trees.entry("dtd", tree), tree.root, tmp_path / "out", workers=1)
    assert str(error.value).count(".jpg: has no bytes") == 5


def test_a_split_without_images_is_refused_whatever_counts_are_accepted(trees, tmp_path):
    tree = trees("aircraft")
    (tree.root / "fgvc-aircraft-2013b" / "data" / "images_variant_test.txt").write_text("")
    with pytest.raises(IngestError, match=r"no image for test\.parquet"):
        convert.convert(CATALOG["aircraft"], tree.root, tmp_path / "out", allow_counts=True)
