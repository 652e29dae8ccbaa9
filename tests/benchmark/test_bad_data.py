"""One table of bad data sets: how each is made, where it is found, and in which words it is told what to do."""

from __future__ import annotations

import base64
import io
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from condu_ray.benchmark import TaskError, check_task, load_tasks, require_valid
from condu_ray.learn.chunks import Chunk, ChunkReader, task_images

Make = Callable[[Any], object]
TRAIN, TEST, META, ORDER = "digits/train.parquet", "digits/test.parquet", "digits/meta.json", "order.json"


class Bad(NamedTuple):
    """One bad data set."""

    make: Make  #: takes the writer of tasks
    severity: str  #: "refused" at load, or the severity of what the check of the content finds
    where: str  #: the files that the message names
    words: list[str]  #: what the message says is wrong
    advice: str  #: what it says is to be done
    row: int | None = None
    names: Any = None  #: the tasks that are asked for
    data: str = "."  #: what is loaded, below the folder of the tasks


def meta(**changes: Any) -> Make:
    return lambda make_task: make_task(**changes)


def named(*names: str) -> Make:
    return lambda make_task: [make_task(name) for name in names]


def broken(file: str, change: Callable[[Path], object]) -> Make:
    """A good task of which one file is changed."""
    return lambda make_task: change(make_task().parent / file)


def rows(file: str, images: dict[int, Any] | None = None, labels: dict[int, int | None] | None = None) -> Make:
    return lambda make_task: make_task.change_split(make_task().parent / file, images, labels)


def table(file: str, change: Callable[[pa.Table], pa.Table]) -> Make:
    return broken(file, lambda path: pq.write_table(change(pq.read_table(path)), path))


def column(file: str, name: str, values: Callable[[pa.ChunkedArray], Any]) -> Make:
    def change(old: pa.Table) -> pa.Table:
        return old.set_column(old.column_names.index(name), name, values(old[name]))

    return table(file, change)


def text(file: str, content: bytes) -> Make:
    return broken(file, lambda path: path.write_bytes(content))


def cut(file: str) -> Make:
    return broken(file, lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]))


def a_folder(file: str) -> Make:
    return broken(file, lambda path: (path.unlink(), path.mkdir()))


def closed(file: str) -> Make:
    return broken(file, lambda path: path.chmod(0))


def one_class(make_task: Any) -> None:
    folder = make_task(classes=["one"])
    make_task.write_split(folder / "train.parquet", range(3), [0, 0, 0])
    make_task.write_split(folder / "test.parquet", range(3, 6), [0, 0, 0])


def wide_label(make_task: Any) -> None:
    make_task.write_split(make_task() / "test.parquet", range(60, 64), [0, 1, 2, 2**64 - 1], pa.uint64())


def as_int128(path: Path) -> None:
    """Writes labels as polars writes its Int128: 16 bytes each, of a type in the schema that Arrow has not."""
    old = pq.read_table(path)
    schema = pa.schema([("image", pa.binary()), ("label", pa.int64())])
    told = bytes(schema.serialize()).replace(struct.pack("<i", 64), struct.pack("<i", 128), 1)
    wide = pa.array([value.to_bytes(16, "little") for value in old["label"].to_pylist()], pa.binary(16))
    with pq.ParquetWriter(
        path, pa.schema([("image", pa.binary()), ("label", wide.type)]), store_schema=False
    ) as writer:
        writer.write_table(pa.table({"image": old["image"], "label": wide}))
        writer.add_key_value_metadata({"ARROW:schema": base64.b64encode(told).decode()})


def png(side: int, depth: int = 8, colour: int = 0, data: bytes = b"\0" * 9) -> bytes:
    """A PNG that claims side x side pixels, whatever it holds of them."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, depth, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


def picture(kind: str, plain: Image.Image, frames: int = 1) -> bytes:
    """A picture in a file format; its frames after the first one are black."""
    more = {"save_all": True, "append_images": [Image.new("RGB", plain.size)] * (frames - 1)} if frames > 1 else {}
    buffer = io.BytesIO()
    plain.save(buffer, kind, **more)
    return buffer.getvalue()


RGB = Image.new("RGB", (16, 16), (200, 100, 50))
JPEG = picture("JPEG", Image.radial_gradient("L"))

ANEW, COPY = "write these anew, or leave them out", "write or copy it anew"
CLASSES, RENAME = "list the class names, the label is the index", "rename or join them"
TEMPLATE, ONE_PLACE = "write either key 'template' or key 'templates'", "write a text with exactly one '{}'"
UNSEEN = "which nobody sees; write it without"
SAFE, OPEN = "rename the folder with letters, digits", "may not be read by this user; change its permissions"

CONTENT = {
    "label too large": Bad(
        rows(TRAIN, labels={7: 3, 8: 40}), "error", TRAIN,
        ["2 of 9 labels are out of range 0 to 2", "row 7 has 3; row 8 has 40"], "correct them", 7,
    ),
    "label negative": Bad(rows(TRAIN, labels={5: -1}), "error", TRAIN, ["row 5 has -1"], "correct them", 5),
    "label beyond int64": Bad(wide_label, "error", TEST, ["1 of 4 labels are out of range"], "correct them", 3),
    "more labels than classes": Bad(
        meta(classes=["one", "two"]), "error", f"{TRAIN} {TEST}",
        ["3 of 9 labels are out of range 0 to 1: row 2 has 2"], "add their classes to meta.json", 2,
    ),
    "labels from 1": Bad(
        column(TRAIN, "label", lambda old: pa.array([value + 1 for value in old.to_pylist()], pa.int32())),
        "error", TRAIN, ["3 of 9 labels are out of range 0 to 2: all labels of the file are 1 to 3"],
        "shifted by one; subtract 1", 2,
    ),
    "null label": Bad(rows(TRAIN, labels={6: None}), "error", TRAIN, ["1 of 9 labels are null: row 6"], "give each", 6),
    "class without training images": Bad(
        rows(TRAIN, labels={1: 0, 4: 0, 7: 0}), "error", TRAIN, ["1 of 3 classes have no image: 1 'two'"], "add images",
    ),
    "class without test images": Bad(
        rows(TEST, labels={0: 2, 3: 2}), "error", TEST, ["1 of 3 classes have no image: 0 'one'"], "or drop the class",
    ),
    "a single class": Bad(one_class, "warning", META, ["'one' is the only class", "100 %"], "add classes, or leave"),
    "not an image": Bad(
        rows(TRAIN, {2: b"no image"}), "error", TRAIN,
        ["1 of 9 images cannot be used: row 2: not an image in a known format"], ANEW, 2,
    ),
    "null images": Bad(
        rows(TRAIN, {1: None, 3: None}), "error", TRAIN, ["2 of 9", "row 1: is null; row 3: is null"], ANEW, 1
    ),
    "empty image": Bad(rows(TEST, {5: b""}), "error", TEST, ["row 5: has no bytes"], ANEW, 5),
    "PNG without its pixels": Bad(rows(TRAIN, {8: png(64)}), "error", TRAIN, ["row 8: does not decode"], ANEW, 8),
    "JPEG cut short": Bad(
        rows(TRAIN, {8: JPEG[: len(JPEG) // 2]}), "error", TRAIN, ["row 8: does not decode", "truncated"], ANEW, 8
    ),
    "large image": Bad(
        rows(TRAIN, {4: png(8001)}), "error", TRAIN,
        ["row 4: has 8001 x 8001 pixels, more than 64 megapixels"], "scale it down", 4,
    ),
    "bomb": Bad(rows(TRAIN, {4: png(40_000)}), "error", TRAIN, ["row 4: has more than 64 mega"], "scale it down", 4),
    "long image": Bad(
        rows(TRAIN, {4: picture("PNG", Image.new("L", (1, 60_000)))}), "error", TRAIN,
        ["row 4: has 1 x 60000 pixels, one side more than 200 times the other"], "crop it", 4,
    ),
    "transparent": Bad(
        rows(TRAIN, {4: picture("PNG", Image.new("RGBA", (8, 8))), 6: picture("PNG", Image.new("LA", (8, 8)))}),
        "warning", TRAIN, ["2 of 9 images are transparent in places: row 4; row 6"], "or --transparent refuse", 4,
    ),
    "16-bit grey": Bad(
        rows(TRAIN, {4: picture("PNG", Image.new("I;16", (8, 8), 40_000))}), "error", TRAIN,
        ["row 4: has more than 8 bits a channel (mode 'I;16')"], "scale its values to 0 to 255", 4,
    ),
    "32-bit grey": Bad(
        rows(TRAIN, {4: picture("TIFF", Image.new("I", (8, 8), 70_000))}), "error", TRAIN,
        ["row 4: has more than 8 bits a channel (mode 'I')"], "scale its values to 0 to 255", 4,
    ),
    "real numbers": Bad(
        rows(TRAIN, {4: picture("TIFF", Image.new("F", (8, 8), 0.5))}), "error", TRAIN,
        ["row 4: has more than 8 bits a channel (mode 'F')"], "scale its values to 0 to 255", 4,
    ),
    **{
        f"animated {kind}": Bad(
            rows(TRAIN, {4: picture(kind, RGB, frames=3)}), "warning", TRAIN,
            ["1 of 9 images have several frames: row 4"], "only the first one is used", 4,
        )
        for kind in ("GIF", "PNG", "WEBP", "TIFF")
    },
    "image in both splits": Bad(
        rows(TEST, {5: 3}), "error", TRAIN,
        ["1 images are in test.parquet too: row 3 is row 5 of test.parquet"], "remove them from one of the two", 3,
    ),
    "image twice in a split": Bad(
        rows(TRAIN, {6: 0, 3: 0}), "warning", TRAIN,
        ["2 images repeat: row 0 is row 3; row 3 is row 6"], "keep one of each", 0,
    ),
}  # fmt: skip

FILES = {
    "wrong column": Bad(
        table(TEST, lambda old: old.rename_columns(["picture", "label"])), "refused", TEST,
        ["column 'image' is missing", "picture"], "write it once, with bytes",
    ),
    "column twice": Bad(
        table(TEST, lambda old: old.append_column("label", old["label"])), "refused", TEST,
        ["column 'label' is there 2 times"], "keep one of them",
    ),
    "float labels": Bad(
        column(TRAIN, "label", lambda old: old.cast(pa.float32())), "refused", TRAIN, ["'label' holds float"],
        "write integers",
    ),
    "names for labels": Bad(
        column(TRAIN, "label", lambda old: old.cast(pa.string())), "refused", TRAIN, ["'label' holds string"],
        "write integers",
    ),
    "paths for images": Bad(
        column(TRAIN, "image", lambda old: pa.array(["a.png"] * len(old))), "refused", TRAIN,
        ["'image' holds string"], "write bytes of encoded images",
    ),
    "images as structures": Bad(
        column(TRAIN, "image", lambda old: pa.array([{"bytes": b"", "path": ""}] * len(old))), "refused", TRAIN,
        ["'image' holds struct<bytes"], "write bytes of encoded images: its field 'bytes' alone",
    ),
    "no rows": Bad(table(TRAIN, lambda old: old.slice(0, 0)), "refused", TRAIN, ["no rows"], "at least one image of"),
    "split cut short": Bad(cut(TRAIN), "refused", TRAIN, ["cut short"], COPY),
    "empty split": Bad(text(TRAIN, b""), "refused", TRAIN, ["is empty (0 bytes)"], COPY),
    "split is a link to nowhere": Bad(
        broken(TRAIN, lambda path: (path.unlink(), path.symlink_to("/nowhere/a.parquet"))), "refused", TRAIN,
        ["is a link to /nowhere/a.parquet, where nothing is"], "mend the link, or copy the file",
    ),
    "labels of 128 bits": Bad(
        broken(TRAIN, as_int128), "refused", TRAIN, ["is Parquet that pyarrow", "cannot read"], "'label' with integers",
    ),
    "column in capitals": Bad(
        table(TEST, lambda old: old.rename_columns(["Image", "label"])), "refused", TEST,
        ["column 'image' is missing (columns: ['Image', 'label'])"], "rename 'Image'",
    ),
    "column with a space": Bad(
        table(TEST, lambda old: old.rename_columns(["image", "label "])), "refused", TEST,
        ["column 'label' is missing"], "rename 'label '",
    ),
    **{
        f"labels as {kind}": Bad(
            column(TRAIN, "label", lambda old, kind=kind: pa.array([bool(v) for v in old.to_pylist()]).cast(kind)
                   if pa.types.is_boolean(kind) else old.cast(kind)),
            "refused", TRAIN, [f"'label' holds {kind}"], "write integers, such as int32",
        )
        for kind in (pa.bool_(), pa.float64(), pa.decimal128(38, 0), pa.decimal256(60, 0))
    },
    **{
        f"text of {kind} for images": Bad(
            column(TRAIN, "image", lambda old, kind=kind: pa.array(["a.png"] * len(old), kind)), "refused", TRAIN,
            ["'image' holds"], "write bytes of encoded images, not their paths or text",
        )
        for kind in (pa.string_view(), pa.large_string(), pa.dictionary(pa.int32(), pa.string()))
    },
    "images as lists of numbers": Bad(
        column(TRAIN, "image", lambda old: pa.array([[1, 2]] * len(old), pa.list_(pa.uint8()))), "refused", TRAIN,
        ["'image' holds list<"], "write bytes of encoded images",
    ),
    "split is text": Bad(text(TEST, b"a.png,1\n" * 99), "refused", TEST, ["not Parquet"], COPY),
    "no test split": Bad(broken(TEST, Path.unlink), "refused", TEST, ["missing"], COPY),
    "no training split": Bad(broken(TRAIN, Path.unlink), "refused", TRAIN, ["missing"], COPY),
    "split is a folder": Bad(a_folder(TRAIN), "refused", TRAIN, ["directory"], COPY),
    "split is closed": Bad(closed(TRAIN), "refused", TRAIN, [], OPEN),
    "meta is closed": Bad(closed(META), "refused", META, [], OPEN),
    "task is closed": Bad(closed("digits"), "refused", "digits", [], OPEN, names=["digits"]),
    "data are closed": Bad(closed("."), "refused", "tasks", [], OPEN),
    "no meta": Bad(broken(META, Path.unlink), "refused", META, ["missing"], "write it with", names=["digits"]),
    "meta is a folder": Bad(a_folder(META), "refused", META, ["directory"], "write it with an object of 'classes'"),
    "meta is empty": Bad(text(META, b""), "refused", META, ["not JSON"], "write it with an object of 'classes'"),
    "meta is cut short": Bad(cut(META), "refused", META, ["not JSON"], "write it with an object of 'classes'"),
    "meta is Latin-1": Bad(text(META, b'{"\xe9": 1}'), "refused", META, ["not JSON", "utf-8"], "write it with"),
    "meta is too deep": Bad(text(META, b"[" * 100_000), "refused", META, ["not JSON", "recursion"], "write it with"),
    "meta has a key twice": Bad(
        text(META, b'{"classes": ["a"], "template": "a {}", "classes": ["b"]}'), "refused", META,
        ["key 'classes' is there 2 times"], "keep one of them",
    ),
    "meta has a mark in front": Bad(
        text(META, b"\xef\xbb\xbf{}"), "refused", META, ["not JSON", "UTF-8 BOM"], "write it with an object",
    ),
    "meta is a list": Bad(text(META, b"[]"), "refused", META, ["holds a list"], "write it with an object"),
}  # fmt: skip

METADATA = {
    "no classes": (meta(classes=...), ["key 'classes' is missing"], CLASSES),
    "empty classes": (meta(classes=[]), ["'classes' is not a list of names, or is empty"], CLASSES),
    "classes is a text": (meta(classes="cat"), ["'classes' is not a list of names"], CLASSES),
    "repeated class": (
        meta(classes=["cat", "dog", "cat"]), ["'classes'[2] 'cat' repeats 'classes'[0] 'cat'"], RENAME,
    ),
    "repeated but for case": (
        meta(classes=["Cat", "dog", "cAT"]), ["'classes'[2] 'cAT' repeats 'classes'[0] 'Cat'"], RENAME,
    ),
    "repeated but for spaces": (
        meta(classes=["dog", "big cat", " big\t cat"]), ["[2] ' big\\t cat' repeats 'classes'[1] 'big cat'"], RENAME,
    ),
    "repeated but for _": (
        meta(classes=["big_cat", "dog", "Big cat"]), ["[2] 'Big cat' repeats 'classes'[0] 'big_cat'"], RENAME,
    ),
    "empty class": (meta(classes=["cat", "", "dog"]), ["'classes'[1] is ''"], "give it a name that is not empty"),
    "blank class": (meta(classes=["cat", " ", "dog"]), ["'classes'[1] is ' '"], "give it a name that is not empty"),
    **{
        f"class with {name}": (
            meta(classes=["cat", f"a{sign}b", "dog"]), ["'classes'[1]", f"holds U+{ord(sign):04X} {name}"], UNSEEN,
        )
        for sign, name in {
            "\u200b": "ZERO WIDTH SPACE", "\u200d": "ZERO WIDTH JOINER", "\u2060": "WORD JOINER",
            "\ufeff": "ZERO WIDTH NO-BREAK SPACE", "\u00a0": "NO-BREAK SPACE", "\u202f": "NARROW NO-BREAK SPACE",
            "\u3000": "IDEOGRAPHIC SPACE", "\u00ad": "SOFT HYPHEN", "\u200e": "LEFT-TO-RIGHT MARK",
            "\u202e": "RIGHT-TO-LEFT OVERRIDE", "\u2067": "RIGHT-TO-LEFT ISOLATE", "\u2028": "LINE SEPARATOR",
            "\x07": "a control character",
        }.items()
    },
    "template with a no-break space": (meta(template="a photo\u00a0of {}"), ["holds U+00A0 NO-BREAK SPACE"], UNSEEN),
    "class is a number": (meta(classes=["cat", 1, "dog"]), ["'classes'[1] is 1"], "give it a name"),
    "no template": (meta(template=...), [], TEMPLATE),
    "both templates": (meta(templates=["a {}"]), [], TEMPLATE),
    "no templates": (meta(template=..., templates=[]), [], TEMPLATE),
    "template without a place": (meta(template="a photo"), ["template 'a photo'"], ONE_PLACE),
    "template with two places": (meta(template="a {} of {}"), ["template 'a {} of {}'"], ONE_PLACE),
    "template with a name": (meta(template="a {} of {x}"), ["template 'a {} of {x}'"], ONE_PLACE),
    "template is empty": (meta(template=""), ["template ''"], ONE_PLACE),
    "template is a number": (meta(template=3), ["template 3"], ONE_PLACE),
    "one bad template": (meta(template=..., templates=["a {}", "b"]), ["template 'b'"], ONE_PLACE),
}  # fmt: skip

TWO = named("stanford_cars", "mnist")
NAMES = {
    **{
        f"folder {name!r}": Bad(named(name), "refused", name, [f"name {name!r} is not safe in paths"], SAFE)
        for name in ("two words", "-first", "_first", "ä")
    },
    "near": Bad(TWO, "refused", "tasks", ["no task 'stanford_car'"], "mean stanford_cars?", names=["stanford_car"]),
    "other case": Bad(TWO, "refused", "tasks", ["no task 'MNIST'"], "did you mean mnist?", names=["MNIST"]),
    "far": Bad(TWO, "refused", "tasks", ["no task 'zzz'"], "there are: mnist, stanford_cars", names=["zzz"]),
    "a number": Bad(TWO, "refused", "tasks", ["no task 7"], "there are: mnist, stanford_cars", names=[7]),
    "a text": Bad(TWO, "refused", "", ["names is the text 'mnist'"], "give a list of names", names="mnist"),
    "none": Bad(TWO, "refused", "tasks", ["no task to load"], "condu-ray prepare --from", names=[]),
    "twice": Bad(TWO, "refused", "", ["'mnist' is named twice"], "keep one of them", names=["mnist", "mnist"]),
    **{
        f"path {name}": Bad(TWO, "refused", "tasks", [f"no task {name!r}"], "there are:", names=[name])
        for name in ("../outside", "..", ".", "mnist/../../outside", "/tmp")
    },
    "no folder": Bad(TWO, "refused", "nowhere", ["no such folder"], "give the folder that holds", data="nowhere"),
    "a task for its folder": Bad(named("digits"), "refused", "digits", ["itself a task"], "parent", data="digits"),
    "a file for the folder": Bad(named("digits"), "refused", TRAIN, ["no such folder"], "give the", data=TRAIN),
    "no tasks": Bad(lambda make_task: None, "refused", "tasks", ["no task to load"], "condu-ray prepare --from"),
    "order of unknown tasks": Bad(text(ORDER, b'["digit"]'), "refused", ORDER, ["no task 'digit'"], "mean digits?"),
    "order with a task twice": Bad(
        text(ORDER, b'["digits", "digits"]'), "refused", ORDER, ["'digits' is named twice"], "keep one of them",
    ),
    "order with a path": Bad(text(ORDER, b'["../outside"]'), "refused", ORDER, ["no task '../outside'"], "there are:"),
    "order is empty": Bad(text(ORDER, b"[]"), "refused", ORDER, ["no task to load"], "condu-ray prepare --from"),
    "order is an object": Bad(text(ORDER, b'{"a": 1}'), "refused", ORDER, ["holds a dict"], "the tasks' names, in"),
    "order is not JSON": Bad(text(ORDER, b"digits"), "refused", ORDER, ["not JSON"], "write it with the tasks' names"),
}  # fmt: skip

BAD_DATA: dict[str, Bad] = {
    **CONTENT,
    **FILES,
    **{case: Bad(make, "refused", META, words, advice) for case, (make, words, advice) in METADATA.items()},
    **NAMES,
}


@pytest.mark.parametrize("case", BAD_DATA)
def test_bad_data(case: str, make_task: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    bad, root = BAD_DATA[case], tmp_path / "tasks"
    if case.endswith("closed") and os.geteuid() == 0:
        pytest.skip("root may read everything")
    make_task("outside")
    root.mkdir()
    bad.make(type(make_task)(root))
    if bad.severity == "refused":
        with pytest.raises(TaskError) as caught:
            load_tasks(root / bad.data, bad.names)
        message = str(caught.value)
        assert len(message.splitlines()) == 1
    else:
        (task,) = load_tasks(root / bad.data, bad.names)
        problems = check_task(task)
        assert [f"{task.name}/{problem.file}" for problem in problems] == bad.where.split()
        assert {problem.severity for problem in problems} == {bad.severity}
        assert problems[0].row == bad.row
        assert problems == check_task(task, workers=3)
        message = caplog.text
        if bad.severity == "error":
            with pytest.raises(TaskError) as caught:
                require_valid([task])
            message = str(caught.value)
        else:
            require_valid([task])
            message = caplog.text
    for word in (*bad.where.split(), *bad.words, bad.advice):
        assert word in message


def kept_as(kind: pa.DataType) -> Make:
    """A good task whose images are kept in another of Arrow's forms."""

    def change(old: pa.ChunkedArray) -> Any:
        values = old.to_pylist()
        if pa.types.is_fixed_size_binary(kind):
            values = [value.ljust(kind.byte_width, b"\0") for value in values]
        if pa.types.is_dictionary(kind):
            return pa.array(values, kind.value_type).dictionary_encode()
        return pa.array(values, kind)

    return column(TRAIN, "image", change)


#: Good data in odd forms.
GOOD: dict[str, Make] = {
    "views": kept_as(pa.binary_view()),
    "large": kept_as(pa.large_binary()),
    "one size": kept_as(pa.binary(400)),
    "dictionary": kept_as(pa.dictionary(pa.int32(), pa.binary())),
    **{
        str(kind): column(TRAIN, "label", lambda old, kind=kind: old.cast(kind))
        for kind in (pa.int8(), pa.uint8(), pa.int64(), pa.uint64())
    },
    **{
        f"compressed by {codec}": broken(
            TRAIN, lambda path, codec=codec: pq.write_table(pq.read_table(path), path, compression=codec)
        )
        for codec in ("none", "snappy", "zstd", "gzip", "brotli", "lz4")
    },
    "groups of one row": broken(TRAIN, lambda path: pq.write_table(pq.read_table(path), path, row_group_size=1)),
    "more columns": table(TRAIN, lambda old: old.append_column("path", pa.array(["a"] * len(old)))),
    "stray files": broken(
        "digits",
        lambda folder: [
            place.joinpath(name).write_bytes(b"\0\0")
            for place in (folder, folder.parent)
            for name in (".DS_Store", "Thumbs.db", "desktop.ini", "._meta.json")
        ],
    ),
    "a stray folder": broken("digits", lambda folder: (folder.parent / "__MACOSX").mkdir()),
    "letters with a joiner": meta(classes=["\u0645\u06cc\u200c\u062e", "two", "three"]),
    "accents": meta(classes=["caf\u00e9", "cafe\u0301", "two"], template="une photo d\u2019un {}."),
}


@pytest.mark.parametrize("case", GOOD)
def test_good_data_in_odd_forms(case: str, make_task: Any, tmp_path: Path, preprocessed: Any) -> None:
    folder = tmp_path / "tasks"
    folder.mkdir()
    plain = make_task("digits")
    GOOD[case](type(make_task)(folder))
    (task,) = load_tasks(folder)
    assert check_task(task) == []
    for found, expected in zip(preprocessed(task.train), preprocessed(plain / "train.parquet"), strict=True):
        assert np.array_equal(found, expected)


@pytest.fixture
def preprocessed() -> Callable[[Path], list[np.ndarray]]:
    """Reads a split as training and as prototypes do: pixels and labels in the stream's order, and in the file's."""

    def read(path: Path) -> list[np.ndarray]:
        stream = ChunkReader({"size": 8}, augment=False).read(Chunk(str(path), 0, 0, 9, 0, 1))
        ((pixels, labels),) = task_images(path, {"size": 8}, 64)
        return [stream["image"], stream["label"], pixels, labels]

    return read
