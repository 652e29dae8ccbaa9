"""What is odd in data of other forms: taken as a person expects, or named with file and row."""

import io
import itertools
import json
import tarfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from condu_ray.benchmark import TaskError
from condu_ray.benchmark.images import decode
from condu_ray.benchmark.ingest.bring import bring
from condu_ray.benchmark.ingest.names import in_words, natural
from tests.benchmark.ingest.forms import add, class_folders, encoded, hugging_face, listed, picture, shards

PLACE = "data/birds/train/wren/odd"


def exif(turn):
    found = Image.Exif()
    found[0x0112] = turn
    return found.tobytes()


TAKEN = {
    "turned by EXIF": (lambda: encoded(picture(2, 9).crop((0, 0, 12, 24)), "JPEG", exif=exif(6)), ".jpg", (24, 12)),
    "CMYK": (lambda: encoded(picture(2, 9).convert("CMYK"), "JPEG"), ".jpg", (24, 24)),
    "grey with alpha": (lambda: encoded(picture(2, 9).convert("LA")), ".png", (24, 24)),
    "palette": (lambda: encoded(picture(2, 9).quantize(8)), ".png", (24, 24)),
    "animation": (
        lambda: encoded(picture(2, 9), "GIF", save_all=True, append_images=[picture(1, 9)]), ".gif", (24, 24)
    ),
    "capitals": (lambda: encoded(picture(2, 9), "JPEG"), ".JPG", (24, 24)),
}  # fmt: skip


@pytest.mark.parametrize("kind", TAKEN)
def test_odd_pictures_are_seen_as_a_person_sees_them(kind, tmp_path):
    make, end, size = TAKEN[kind]
    class_folders(tmp_path / "data" / "birds")
    (tmp_path / f"{PLACE}{end}").write_bytes(make())
    [task] = bring(tmp_path / "data", tmp_path / "storage")
    stored = pq.read_table(task.train)["image"].to_pylist()
    assert make() in stored  # byte by byte: nothing is encoded anew
    assert decode(make()).size == size


def broken_row(folder, change):
    path = folder / "data" / "train-00000-of-00001.parquet"
    table = pq.read_table(path)
    rows = table.to_pylist()
    change(rows[5])
    pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), path)


def rewrite(folder, change):
    """Changes the members of a shard."""
    path = folder / "train-000000.tar"
    with tarfile.open(path) as shard:
        members = {one.name: shard.extractfile(one).read() for one in shard}
    with tarfile.open(path, "w") as shard:
        for name, data in change(members).items():
            add(shard, name, data)


def sixteen_bits():
    buffer = io.BytesIO()
    Image.fromarray(np.arange(576, dtype=np.uint16).reshape(24, 24)).save(buffer, "PNG")
    return buffer.getvalue()


def in_tree(path, data):
    def make(folder):
        class_folders(folder)
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data() if callable(data) else data)

    return make


def table(change):
    def make(folder):
        hugging_face(folder)
        broken_row(folder, change)

    return make


def shard(change, end="cls"):
    def make(folder):
        shards(folder, end)
        rewrite(folder, change)

    return make


def line(text):
    def make(folder):
        listed(folder)
        with (folder / "all.csv").open("a") as file:
            file.write(text + "\n")

    return make


def flat(folder):
    class_folders(folder)
    for path in sorted((folder / "test").glob("*/*.png")):
        path.rename(folder / "test" / f"{path.parent.name}-{path.name}")
    for path in (folder / "test").iterdir():
        if path.is_dir():
            path.rmdir()


def without_class(folder):
    class_folders(folder)
    for path in (folder / "test" / "wren").iterdir():
        path.unlink()
    (folder / "test" / "wren").rmdir()


def unnamed(folder):
    hugging_face(folder)
    for path in (folder / "data").iterdir():
        pq.write_table(pq.read_table(path).replace_schema_metadata(None), path)


def renamed(pattern, old, new):
    def change(folder):
        for path in sorted(folder.rglob(pattern)):
            path.rename(path.with_name(path.name.replace(old, new)))

    return change


def both(*makers):
    def make(folder):
        for maker in makers:
            maker(folder)

    return make


WREN = encoded(picture(2, 0))
REFUSED = {
    "broken": (in_tree("train/wren/b.jpg", b"none"), ["1 of 19", "train/wren/b.jpg", "not an image"]),
    "cut short": (in_tree("train/wren/b.png", WREN[:-40]), ["train/wren/b.png", "does not decode"]),
    "empty": (in_tree("train/wren/b.png", b""), ["train/wren/b.png", "has no bytes"]),
    "16 bits": (in_tree("train/wren/b.png", sixteen_bits), ["train/wren/b.png", "more than 8 bits", "scale"]),
    "of a telephone": (in_tree("train/wren/b.heic", b"x"), ["train/wren/b.heic", "convert it to JPEG"]),
    "in both splits": (
        in_tree("test/wren/b.png", WREN), ["train/wren/0.png is test/wren/b.png", "remove them from one"]
    ),
    "beside the classes": (in_tree("train/b.png", WREN), ["train/b.png", "beside the class folders"]),
    "a class beside the splits": (in_tree("owl/b.png", WREN), ["test/ holds class folders", "owl/", "<class>"]),
    "a split without classes": (flat, ["train/ holds class folders", "test/", "<class>"]),
    "a class that test has not": (without_class, ["1 of 3 classes have no image for test", "'wren'"]),
    "an empty class": (both(class_folders, lambda folder: (folder / "train" / "owl").mkdir()), ["owl", "without a"]),
    "two names, the same words": (
        in_tree("train/Golden Retriever/b.png", WREN), ["'Golden Retriever' and 'golden_retriever'", "join them"]
    ),
    "two forms": (both(class_folders, hugging_face), ["Parquet of Hugging Face", "and a tree", "Move the other one"]),
    "Parquet: broken": (
        table(lambda row: row["image"].update(bytes=b"no")), ["train-00000-of-00001.parquet row 5", "not an image"]
    ),
    "Parquet: a path alone": (table(lambda row: row["image"].update(bytes=None)), ["row 5", "only the path", "embed"]),
    "Parquet: no class": (table(lambda row: row.update(label=-1)), ["row 5", "has no class"]),
    "Parquet: a number without name": (table(lambda row: row.update(label=7)), ["row 5", "class 7", "0 to 2"]),
    "Parquet: no names": (unnamed, ["'label' holds numbers", "nothing says their names", "classnames.txt"]),
    "Parquet: half with splits": (
        both(hugging_face, renamed("test-*", "test-", "more")), ["train-00000", "says its split", "more00000"]
    ),
    "Parquet: no training": (
        both(hugging_face, renamed("train-*", "train-", "validation-")), ["has no training images", "test, validation"]
    ),
    "shard: no class": (
        shard(lambda members: {k: v for k, v in members.items() if k != "000001.cls"}),
        ["train-000000.tar key 000001", "has no class", "no .cls"],
    ),
    "shard: no picture": (
        shard(lambda members: {k: v for k, v in members.items() if k != "000001.png"}), ["key 000001", "has 0 pictures"]
    ),
    "shard: apart": (
        shard(lambda members: dict(sorted(members.items(), key=lambda one: one[0][::-1]))),
        ["key 000000", "one after the other"],
    ),
    "shard: no names": (
        both(shards, lambda folder: (folder / "classnames.txt").unlink()),
        ["classes are numbers (0 to 2)", "classnames"],
    ),
    "shard: cut short": (
        both(shards, lambda folder: (folder / "train-000000.tar").write_bytes(
            (folder / "train-000000.tar").read_bytes()[:5000])), ["train-000000.tar", "cut short"]
    ),
    "list: no file": (line("images/none.png,wren,train"), ["all.csv line 20 (images/none.png)", "No such file"]),
    "list: no class": (line("images/train-2-0.png,,train"), ["line 20", "has no class name"]),
    "list: an address": (line("https://a.b/c.png,wren,train"), ["line 20", "is an address"]),
    "list: no split": (line("images/train-2-0.png,wren,tran"), ["all.csv: line 20: split 'tran'"]),
    "list: a comma": (line("images/train-2-0.png,wren, grey,train"), ["line 20 has 4 columns", "in quotes"]),
}  # fmt: skip


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_wrong_is_one_sentence_that_names_file_and_row(kind, tmp_path):
    make, words = REFUSED[kind]
    make(tmp_path / "data" / "birds")
    with pytest.raises(TaskError) as caught:
        bring(tmp_path / "data", tmp_path / "storage")
    assert [word for word in words if word not in str(caught.value)] == []
    assert "\n" not in str(caught.value)
    datasets = tmp_path / "storage" / "datasets"
    assert not datasets.exists() or not list(datasets.iterdir())


def test_layouts_at_unequal_depths_are_refused(tmp_path):
    class_folders(tmp_path / "data" / "birds", split=False)
    (tmp_path / "data" / "owl").mkdir()
    (tmp_path / "data" / "owl" / "1.png").write_bytes(WREN)
    with pytest.raises(TaskError, match=r"pictures lie in owl/ itself and deeper in birds/.*<task>/<class>/\*"):
        bring(tmp_path / "data", tmp_path / "storage")


def test_what_no_person_put_there_is_left_alone(tmp_path, caplog):
    class_folders(tmp_path / "data" / "birds")
    for name in (".DS_Store", "Thumbs.db", "._0.png", "notes.txt"):
        (tmp_path / "data" / "birds" / "train" / "wren" / name).write_bytes(b"x")
    [task] = bring(tmp_path / "data", tmp_path / "storage")
    assert task.train_rows == 12
    assert "1 files in class folders are no pictures by their names" in caplog.text
    assert "notes.txt" in caplog.text


def test_repeats_are_named_by_their_files(tmp_path, caplog):
    in_tree("train/SeaLake/b.png", WREN)(tmp_path / "birds")
    bring(tmp_path / "birds", tmp_path / "storage")
    assert "1 train images repeat (1 of them in another class): train/wren/0.png is train/SeaLake/b.png" in caplog.text


def test_splits_that_somebody_published_may_share_pictures(tmp_path, caplog):
    hugging_face(tmp_path / "birds")
    folder = tmp_path / "birds" / "data"
    shared = pq.read_table(folder / "train-00000-of-00001.parquet").slice(0, 1)
    test = folder / "test-00000-of-00001.parquet"
    pq.write_table(pa.concat_tables([pq.read_table(test), shared]), test)
    [task] = bring(tmp_path / "birds", tmp_path / "storage")
    assert "row 0 is data/test-00000-of-00001.parquet row 6; they are kept" in caplog.text
    assert json.loads((tmp_path / "storage" / task.folder / "meta.json").read_text())["images_in_both_splits"] == 1


def test_validation_stands_in_for_a_test_split_and_is_left_out_beside_one(tmp_path, caplog):
    class_folders(tmp_path / "a")
    (tmp_path / "a" / "test").rename(tmp_path / "a" / "val")
    [task] = bring(tmp_path / "a", tmp_path / "storage")
    assert task.test_rows == 6
    assert "its validation split is what is tested on" in caplog.text
    class_folders(tmp_path / "b")
    in_tree("val/wren/b.png", encoded(picture(2, 77)))(tmp_path / "b")
    [task] = bring(tmp_path / "b", tmp_path / "storage")
    assert (task.train_rows, task.test_rows) == (12, 6)
    assert "its validation split is left out" in caplog.text


NAMES = {
    ("apple_pie", "baby_back_ribs"): ["apple pie", "baby back ribs"],
    ("AnnualCrop", "SeaLake", "River"): ["Annual Crop", "Sea Lake", "River"],
    ("BMWCar", "iPhone", "McLaren", "T-shirt"): ["BMW Car", "iPhone", "McLaren", "T-shirt"],
    ("001.Black_footed_Albatross", "002.Laysan_Albatross"): ["Black footed Albatross", "Laysan Albatross"],
    ("n02085620-Chihuahua", "n02085782-Japanese_spaniel"): ["Chihuahua", "Japanese spaniel"],
    ("3_legged", "stool"): ["3 legged", "stool"],
    ("0-2", "4-6", "8-13"): ["0-2", "4-6", "8-13"],
    ("1.5 litre", "2.0 litre"): ["1.5 litre", "2.0 litre"],
    ("1 euro coin", "5 cent coin", "10_dollar_note"): ["1 euro coin", "5 cent coin", "10 dollar note"],
    ("2-door", "4-door"): ["2-door", "4-door"],
    ("1_cat", "2_dog"): ["cat", "dog"],
    ("03 cat", "15 dog"): ["cat", "dog"],
    ("Cafe\u0301", "b"): ["Caf\u00e9", "b"],
    ("737-800", "A320"): ["737-800", "A320"],
}


@pytest.mark.parametrize("names", NAMES)
def test_class_names_become_words(names):
    notes = []
    assert in_words(names, notes) == NAMES[names]
    assert notes == []


def test_an_order_of_names_is_a_function_of_the_names():
    for names in (["a01", "a1", "a001"], ["x", "\u00b2", "10 m\u00b2", "5\u00b2"]):
        assert len({tuple(sorted(some, key=natural)) for some in itertools.permutations(names)}) == 1
    assert sorted(["class 10", "class 2"], key=natural) == ["class 2", "class 10"]


def test_names_that_are_no_words_are_left_alone_with_a_warning():
    notes = []
    assert in_words(["n01440764", "n01443537"], notes) == ["n01440764", "n01443537"]
    assert "2 of 2 class names are WordNet ids (n01440764, n01443537)" in notes[0]
    assert in_words(["0", "1"], notes) == ["0", "1"]
    assert "are numbers (0, 1)" in notes[1]
    assert in_words(["0.0", "-1"], notes) == ["0.0", "-1"]
    assert "are numbers (0.0, -1)" in notes[2]
