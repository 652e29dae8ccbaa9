"""Lists of paths and class names: columns that say the split, and separators, as people's programs write them."""

import pytest

from condu_ray.benchmark import TaskError
from condu_ray.benchmark.ingest.bring import bring
from tests.benchmark.ingest.forms import listed


def changed(folder, change):
    listed(folder)
    path = folder / "all.csv"
    path.write_text(change(path.read_text()))
    return folder


@pytest.mark.parametrize("name", ["data set", "phase", "usage"])
def test_a_column_of_splits_is_one_whatever_it_is_called(tmp_path, name):
    folder = changed(tmp_path / "birds", lambda text: text.replace("split", name, 1))
    [task] = bring(folder, tmp_path / "storage")
    assert (task.train_rows, task.test_rows) == (12, 6)


def test_a_column_that_says_the_split_by_numbers_is_refused(tmp_path):
    def change(text):
        return text.replace("split", "is_training_image", 1).replace(",train", ",1").replace(",test", ",0")

    folder = changed(tmp_path / "birds", change)
    with pytest.raises(TaskError, match=r"column 'is_training_image' holds '0', '1'; call it split, and write train"):
        bring(folder, tmp_path / "storage")


def test_a_column_twice_is_refused(tmp_path):
    def change(text):
        head, *lines = text.splitlines()
        return "\n".join([f"class,{head}", *(f"a,{line}" for line in lines)])

    folder = changed(tmp_path / "birds", change)
    with pytest.raises(TaskError, match=r"all.csv: column 'class' is there 2 times; keep one of them"):
        bring(folder, tmp_path / "storage")


@pytest.mark.parametrize("note", ["two\u2028lines", '"two\nlines"', "two\x85lines"])
def test_a_cell_may_hold_what_python_ends_a_line_at(tmp_path, note):
    def change(text):
        head, *lines = text.splitlines()
        return "\n".join([f"note,{head}", *(f"{note},{line}" for line in lines)])

    [task] = bring(changed(tmp_path / "birds", change), tmp_path / "storage")
    assert (task.train_rows, task.test_rows) == (12, 6)


def test_paths_as_windows_writes_them_are_found(tmp_path):
    folder = changed(tmp_path / "birds", lambda text: text.replace("images/", "images\\"))
    [task] = bring(folder, tmp_path / "storage")
    assert (task.train_rows, task.test_rows) == (12, 6)
