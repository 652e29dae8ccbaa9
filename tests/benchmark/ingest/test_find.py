"""Which data sets lie in a folder: none of their files is left out without a word."""

import pytest

from condu_ray.benchmark import TaskError
from condu_ray.benchmark.ingest.bring import bring
from tests.benchmark.ingest.forms import class_folders, hugging_face, listed, shards


@pytest.mark.parametrize("form", [hugging_face, shards])
def test_files_of_a_task_at_two_depths_are_refused(tmp_path, form):
    folder = tmp_path / "birds"
    form(folder)
    (folder / "test").mkdir()
    for path in [one for one in folder.rglob("*-0000*") if one.is_file()]:
        path.rename((folder / "test" if path.name.startswith("test") else folder) / path.name)
    with pytest.raises(TaskError, match=r"train-0000.* lies in it, and test/test-0000.* deeper; lay all files"):
        bring(folder, tmp_path / "storage")


def test_splits_under_longer_names_are_not_taken_for_tasks(tmp_path):
    class_folders(tmp_path / "birds")
    for split in ("train", "test"):
        (tmp_path / "birds" / split).rename(tmp_path / "birds" / f"{split}ing set")
    (tmp_path / "birds" / "testing set").rename(tmp_path / "birds" / "test_set")
    with pytest.raises(TaskError, match=r"training set/ and test_set/ are splits of one task by their names"):
        bring(tmp_path / "birds", tmp_path / "storage")


def test_a_folder_that_is_no_task_is_not_left_out_in_silence(tmp_path, caplog):
    class_folders(tmp_path / "data" / "birds")
    hugging_face(tmp_path / "data" / "cars" / "deeper")
    (tmp_path / "data" / "nothing").mkdir()
    [task] = bring(tmp_path / "data", tmp_path / "storage")
    assert task.name == "birds"
    assert "cars: is left out, it holds no data set" in caplog.text
    assert "nothing" not in caplog.text


def test_a_list_that_is_not_read_is_told_of(tmp_path, caplog):
    listed(tmp_path / "birds")
    path = tmp_path / "birds" / "all.csv"
    path.write_text(path.read_text().partition("\n")[2])  # without its head
    with pytest.raises(TaskError, match=r"all.csv: is no list of paths.*images/ beside it would be the only class"):
        bring(tmp_path / "birds", tmp_path / "storage")
    class_folders(tmp_path / "other")
    path.rename(tmp_path / "other" / "sizes.csv")
    bring(tmp_path / "other", tmp_path / "storage")
    assert "sizes.csv: is no list of paths and class names" in caplog.text
