"""Trees of class folders: no folder is taken for a class, or left out, without a word."""

import pytest

from condu_ray.benchmark import TaskError
from condu_ray.benchmark.ingest.bring import bring
from tests.benchmark.ingest.forms import class_folders, encoded, picture


def test_a_split_whose_name_is_not_known_is_not_left_out_in_silence(tmp_path, caplog):
    folder = tmp_path / "birds"
    class_folders(folder)
    (folder / "test").rename(folder / "held out")
    with pytest.raises(TaskError, match=r"as held out/ beside it does, .*call it train or test"):
        bring(folder, tmp_path / "storage")
    class_folders(folder)
    [task] = bring(folder, tmp_path / "storage")
    assert task.test_rows == 6
    assert "as held out/ beside it does, whose name says no split, and which is left out" in caplog.text


def test_pictures_to_be_tested_on_are_no_class(tmp_path):
    folder = tmp_path / "birds"
    class_folders(folder, split=False)
    (folder / "test").mkdir()
    for number in range(3):
        (folder / "test" / f"{number}.png").write_bytes(encoded(picture(number, 500)))
    with pytest.raises(TaskError, match=r"test/ holds pictures without class folders, beside class folders such"):
        bring(folder, tmp_path / "storage")
    (folder / "test").rename(folder / "train")  # a class as any other
    [task] = bring(folder, tmp_path / "storage")
    assert "train" in task.classes


def test_links_to_a_folder_that_they_lie_in_are_not_followed(tmp_path):
    folder = tmp_path / "birds"
    class_folders(folder)
    (folder / "train" / "wren").rename(tmp_path / "elsewhere")
    (folder / "train" / "wren").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "self").symlink_to(".")
    (tmp_path / "elsewhere" / "back").symlink_to(folder / "train" / "wren")
    (folder / "train" / "SeaLake" / "up").symlink_to("../..")
    [task] = bring(folder, tmp_path / "storage")
    assert (task.train_rows, task.test_rows) == (12, 6)


def test_what_a_mac_leaves_below_a_class_is_no_picture_of_it(tmp_path):
    class_folders(tmp_path / "birds")
    left = tmp_path / "birds" / "train" / "wren" / "__MACOSX"
    left.mkdir()
    (left / "a.png").write_bytes(encoded(picture(0, 900)))
    [task] = bring(tmp_path / "birds", tmp_path / "storage")
    assert task.train_rows == 12


def test_pictures_in_folders_within_a_class_are_told_of(tmp_path, caplog):
    folder = tmp_path / "birds"
    class_folders(folder)
    [before] = bring(folder, tmp_path / "storage")
    assert "within a class folder" not in caplog.text
    for name in ("SeaLake", "wren"):
        inner = folder / "train" / name / "old" / "scans"
        inner.mkdir(parents=True)
        (inner / "1.png").write_bytes(encoded(picture(1, 700)))
    [task] = bring(folder, tmp_path / "storage")
    assert task.classes == before.classes
    assert task.train_rows == before.train_rows + 2
    assert "as those of SeaLake/old/scans/ of 'SeaLake' (2 class folders have such folders)" in caplog.text


def test_folders_within_a_class_are_told_of_in_whichever_folder_of_a_split_they_are(tmp_path, caplog):
    folder = tmp_path / "birds"
    class_folders(folder)
    for split in ("train", "training"):  # both are of one split
        inner = folder / split / "wren" / "old"
        inner.mkdir(parents=True)
        (inner / "1.png").write_bytes(encoded(picture(1, 700)))
    bring(folder, tmp_path / "storage")
    assert "train/: pictures in folders within a class folder are of its class, as those of wren/old/" in caplog.text
    assert "(2 class folders have such folders)" in caplog.text
