"""Which data sets lie in a folder: none of their files is left out without a word."""

import pytest

from condu_ray.benchmark import TaskError
from condu_ray.benchmark.ingest.bring import bring
from tests.benchmark.ingest.forms import class_folders, hugging_face, shards


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
