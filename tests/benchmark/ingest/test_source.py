"""What lies beside data: class names by number, and prompts."""

import pyarrow.parquet as pq
import pytest

from condu_ray.benchmark import TaskError
from condu_ray.benchmark.ingest.bring import bring
from condu_ray.benchmark.ingest.shards import _label
from condu_ray.benchmark.ingest.source import lines_of
from tests.benchmark.ingest.forms import CLASSES, class_folders, hugging_face, listed, samples, shards


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


def test_a_name_goes_to_the_end_of_its_line(tmp_path):
    (tmp_path / "classnames.txt").write_bytes("sea\x85lake\r\nape\u2028gnu\n".encode())
    assert lines_of(tmp_path, "classnames.txt") == ("sea\x85lake", "ape\u2028gnu")


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


def prefixed(folder):
    """Puts a word before the split in the names of all files (`birds-train-000000.tar`)."""
    for path in [one for one in folder.rglob("*") if one.suffix in (".parquet", ".tar", ".csv")]:
        path.rename(folder / f"birds-{path.name}")


def lists_of_splits(folder):
    listed(folder)
    head, *lines = (folder / "all.csv").read_text().splitlines()
    for split in ("train", "test"):
        own = [line.rsplit(",", 1)[0] for line in lines if line.endswith(split)]
        (folder / f"{split}.csv").write_text("\n".join([head.rsplit(",", 1)[0], *own]))
    (folder / "all.csv").unlink()


@pytest.mark.parametrize("form", [hugging_face, shards, lists_of_splits])
def test_splits_that_file_names_say_after_another_word_stay_apart(tmp_path, form):
    folder = tmp_path / "birds"
    form(folder)
    prefixed(folder)
    [task] = bring(folder, tmp_path / "storage")
    for split, path in (("train", task.train), ("test", task.test)):
        wanted = {data for part, _, _, data in samples() if part == split}
        assert set(pq.read_table(path)["image"].to_pylist()) == wanted


def test_a_word_in_a_files_name_is_no_split_where_there_is_no_other(tmp_path):
    folder = tmp_path / "birds"
    shards(folder)
    for path in folder.glob("test-*"):
        path.unlink()
    prefixed(folder)
    [task] = bring(folder, tmp_path / "storage")
    assert task.train_rows + task.test_rows == 12
    for number, path in enumerate(sorted(folder.glob("*.tar"))):
        path.rename(folder / f"crash-test-{number}.tar")
    [task] = bring(folder, tmp_path / "storage")
    assert task.train_rows + task.test_rows == 12


def test_a_line_without_a_name_gives_no_other_class_its_name(tmp_path):
    shards(tmp_path / "birds")
    (tmp_path / "birds" / "classnames.txt").write_text("ape\n\ngnu\nzebra\n\n")
    with pytest.raises(TaskError, match=r"classnames.txt: line 2 is empty; write a name a line, the first for 0"):
        bring(tmp_path / "birds", tmp_path / "storage")
    (tmp_path / "birds" / "classnames.txt").write_text("ape\ngnu\nzebra\n\n")
    [task] = bring(tmp_path / "birds", tmp_path / "storage")
    assert task.classes == ("ape", "gnu", "zebra")


@pytest.mark.parametrize(
    ("said", "label"),
    [
        ('{"label": 3, "category": "dog"}', "dog"), ('{"category": "dog", "cls": 3}', "dog"), ('{"label": "03"}', 3),
        ('{"class": "cat", "category": "dog"}', "cat"), ("3", 3),
    ],
)  # fmt: skip
def test_a_shards_sample_is_called_by_a_word_where_it_says_a_number_too(said, label):
    assert _label({"jpg": b"", "json": said.encode()}) == (label, "")
