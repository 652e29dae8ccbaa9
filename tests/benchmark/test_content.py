"""Files of tasks that are written anew while somebody reads them are told, before and after."""

import shutil

import pytest

from condu_ray.benchmark import load_task
from condu_ray.benchmark.content import ChangedError, contents_of, require_test, require_train


@pytest.fixture
def task(task_data, tmp_path):
    shutil.copytree(task_data / "cars", tmp_path / "cars")
    return load_task(tmp_path / "cars")


def test_what_is_as_it_was_passes_and_so_does_what_nobody_has_looked_at(task):
    for contents in (contents_of([task]), {}):
        require_train(task, contents)
        require_test(task, contents)


@pytest.mark.parametrize(("split", "require", "other"), [
    ("train.parquet", require_train, require_test), ("test.parquet", require_test, require_train),
])  # fmt: skip
def test_a_file_that_was_written_anew_is_named(task, task_data, split, require, other):
    contents = contents_of([task])
    shutil.copy(task_data / "walls" / split, task.folder / split)
    with pytest.raises(ChangedError, match=rf"cars/{split}: is not what it was when the command began"):
        require(task, contents)
    other(task, contents)


def test_other_classes_are_other_content(task):
    contents = contents_of([task])
    again = task.__class__(task.name, task.folder, task.classes[::-1], task.templates, task.train_rows, task.test_rows)
    with pytest.raises(ChangedError):
        require_train(again, contents)
