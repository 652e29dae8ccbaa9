"""What lies beside data: class names by number, and prompts."""

import pyarrow.parquet as pq
import pytest

from condu_ray.benchmark import TaskError
from condu_ray.benchmark.ingest.bring import bring
from tests.benchmark.ingest.forms import CLASSES, class_folders, listed, samples


@pytest.mark.parametrize("form", ["tree", "list"])
@pytest.mark.parametrize("numbers", [("0", "1", "2"), ("00", "01", "02"), ("0.0", "1.0", "2.0")])
def test_numbers_get_their_names_from_beside_them(tmp_path, form, numbers):
    folder = tmp_path / "birds"
    (class_folders if form == "tree" else listed)(folder)
    for name, number in zip(CLASSES, numbers, strict=True):
        for path in [*folder.glob(f"*/{name}")]:
            path.rename(path.with_name(number))
    if form == "list":
        text = (folder / "all.csv").read_text()
        for name, number in zip(CLASSES, numbers, strict=True):
            text = text.replace(f",{name},", f",{number},")
        (folder / "all.csv").write_text(text)
    (folder / "classnames.txt").write_text("zebra\nape\ngnu\n")
    (folder / "zeroshot_classification_templates.txt").write_text("a drawing of a {c}.\n")
    [task] = bring(folder, tmp_path / "storage")
    assert task.classes == ("zebra", "ape", "gnu")
    assert task.templates == ("a drawing of a {}.",)
    labels = {bytes(row["image"]): row["label"] for row in pq.read_table(task.train).to_pylist()}
    assert {labels[data] == label for split, label, _, data in samples() if split == "train"} == {True}


def test_a_list_of_names_that_is_not_wanted_or_too_short_is_told_of(tmp_path, caplog):
    class_folders(tmp_path / "birds")
    (tmp_path / "birds" / "classnames.txt").write_text("zebra\nape\ngnu\n")
    [task] = bring(tmp_path / "birds", tmp_path / "storage")
    assert task.classes == ("Sea Lake", "golden retriever", "wren")
    assert "classnames.txt: is not read, for classes are called by words" in caplog.text
    listed(tmp_path / "other")
    path = tmp_path / "other" / "all.csv"
    for name, number in zip(CLASSES, ("3", "-1", "0"), strict=True):
        path.write_text(path.read_text().replace(f",{name},", f",{number},"))
    (tmp_path / "other" / "classnames.txt").write_text("zebra\nape\ngnu\n")
    with pytest.raises(TaskError, match=r"has no class \(null, empty or -1\)"):
        bring(tmp_path / "other", tmp_path / "storage")
    path.write_text(path.read_text().replace(",-1,", ",1,"))
    with pytest.raises(TaskError, match=r"has class 3, and the 3 class names are for 0 to 2"):
        bring(tmp_path / "other", tmp_path / "storage")


def test_folders_of_one_number_are_not_one_class_in_silence(tmp_path):
    class_folders(tmp_path / "birds")
    for path in [*(tmp_path / "birds").glob("*/*")]:
        number = ("0", "1", "01")[sorted(CLASSES).index(path.name)]
        path.rename(path.with_name(number))
    (tmp_path / "birds" / "classnames.txt").write_text("zebra\nape\n")
    with pytest.raises(TaskError, match="birds: classes '01' and '1' are one number; join them, or rename one"):
        bring(tmp_path / "birds", tmp_path / "storage")
