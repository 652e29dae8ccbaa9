"""Reference images and texts: found, counted and fingerprinted by their content."""

import io
import shutil
from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from condu_ray.benchmark import TaskError
from condu_ray.benchmark import references as module
from condu_ray.benchmark.check import carry_verdict
from condu_ray.benchmark.references import load_references, require_decodable
from condu_ray.options import Distillation


@pytest.fixture
def write(tmp_path):
    """Writes a Parquet file of images, with captions where they are given; returns its path."""

    def new(name, captions=None, images=(b"1", b"2"), kind=None):
        columns = {"image": pa.array(images, kind or pa.binary())}
        if captions is not None:
            columns["caption"] = pa.array(captions, pa.string())
        pq.write_table(pa.table(columns), tmp_path / name)
        return tmp_path / name

    return new


def load(*paths, captions=None):
    return load_references(Distillation(reference=paths, captions=captions))


def test_a_task_gives_its_training_images_and_prompts(make_task):
    folder = make_task("digits")
    found = load(folder)
    assert found.files == (folder / "train.parquet",)
    assert found.captions == ("a photo of a one.", "a photo of a two.", "a photo of a three.")


def test_a_file_gives_its_captions_and_several_join_in_order(make_task, write):
    one, large = write("one.parquet", ["x", None, "", "y"], [b"1"] * 4), write("large.parquet", kind=pa.large_binary())
    found = load(one, make_task("digits"), large)
    assert [path.name for path in found.files] == ["one.parquet", "train.parquet", "large.parquet"]
    assert found.captions[:2] == ("x", "y")  # what is null or empty says nothing
    assert len(found.captions) == 5


def test_a_text_file_takes_the_place_of_all_captions(write, tmp_path):
    text = tmp_path / "captions.txt"
    text.write_text("a sky\n\n  a wall \r\nä sea\n", encoding="utf-8")
    assert load(write("one.parquet", ["x", "y"]), captions=text).captions == ("a sky", "a wall", "ä sea")


@pytest.mark.parametrize("mark", ["\u2028", "\x85", "\x0c"])
def test_a_caption_goes_to_the_end_of_its_line(write, tmp_path, mark):
    text = tmp_path / "captions.txt"
    text.write_bytes(f"a sky{mark}at night\r\na wall\n".encode())
    assert load(write("one.parquet"), captions=text).captions == (f"a sky{mark}at night", "a wall")


def test_paths_are_absolute(write, tmp_path, monkeypatch):
    write("one.parquet", ["x", "y"])
    monkeypatch.chdir(tmp_path)
    assert load("one.parquet").files == (tmp_path / "one.parquet",)


def test_the_fingerprint_is_that_of_the_content(write, tmp_path):
    base = load(write("one.parquet", ["x", "y"]))
    shutil.copy(tmp_path / "one.parquet", tmp_path / "copy.parquet")
    assert load(tmp_path / "copy.parquet").fingerprint == base.fingerprint
    others = [
        load(write("images.parquet", ["x", "y"], [b"1", b"3"])),
        load(write("captions.parquet", ["x", "z"])),
        load(tmp_path / "one.parquet", tmp_path / "copy.parquet"),
    ]
    text = tmp_path / "captions.txt"
    text.write_text("x\nz")
    others.append(load(tmp_path / "one.parquet", captions=text))
    assert len({found.fingerprint for found in (base, *others)}) == 5


def test_a_sample_is_drawn_by_its_seed_without_repeats(write):
    captions = [f"picture {number % 40}" for number in range(80)]
    found = load(write("one.parquet", captions, [b"1"] * 80))
    sample = found.sample(10, seed=0)
    assert len(set(sample)) == 10
    assert set(sample) <= set(captions)
    assert found.sample(10, seed=0) == sample
    assert found.sample(10, seed=1) != sample
    assert set(found.sample(1000, seed=0)) == set(captions)
    assert found.sample(0, seed=0) == found.captions  # all as they are
    again = load(write("turned.parquet", captions[::-1], [b"1"] * 80))
    assert again.sample(10, seed=0) == sample  # in whatever order they come
    letters = replace(found, captions=tuple("abcdefghij"))
    assert letters.sample(4, seed=0) == ("h", "i", "b", "f")  # as experts of this key were trained


def test_no_reference_at_all():
    with pytest.raises(TaskError, match="no reference images: give --distillation"):
        load()


def test_a_damaged_task_is_named(make_task):
    folder = make_task("digits", classes=...)
    with pytest.raises(TaskError, match="'classes' is missing"):
        load(folder)


def test_a_file_without_rows_is_named(write):
    with pytest.raises(TaskError, match=r"one\.parquet: no rows"):
        load(write("one.parquet", [], []))


def test_captions_that_are_no_texts_are_named_unless_others_are_given(write, tmp_path):
    path, text = tmp_path / "lists.parquet", tmp_path / "captions.txt"
    pq.write_table(pa.table({"image": [b"1", b"2"], "caption": [["x", "y"], ["z"]]}), path)
    with pytest.raises(TaskError, match="column 'caption' holds list"):
        load(path)
    text.write_text("x\ny")
    assert load(path, captions=text).captions == ("x", "y")


def picture(shade, mode="RGB"):
    """A PNG of one colour; its first pixel is transparent in mode RGBA."""
    image, buffer = Image.new(mode, (4, 4), (shade,) * len(mode)), io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize("workers", [1, 3])
def test_images_that_cannot_be_used_are_named_in_the_order_of_the_file(write, workers):
    images = [picture(row % 200) for row in range(150)]
    for row in (3, 64, 70, 71, 140, 149):
        images[row] = b"no image"
    path = write("some.parquet", ["a", "b"] * 75, images)
    with pytest.raises(
        TaskError, match=r"6 of 150 images cannot be used: row 3: .* row 64: .* row 140: .* 1 more"
    ) as error:
        require_decodable(load(path), workers=workers)
    assert f"--distillation.reference {path}" in str(error.value)
    assert "row 149" not in str(error.value)


def test_people_are_told_that_images_are_decoded_and_how_far(write, tmp_path, monkeypatch):
    path, said = write("some.parquet", ["a", "b"] * 50, [picture(row) for row in range(100)]), []
    monkeypatch.setattr(module, "_TELL_SECONDS", -1.0)
    for _ in range(2):  # the second time a verdict is there
        require_decodable(load(path), tmp_path / "verdicts", say=said.append)
    where = f"--distillation.reference {path}: "
    assert said == [
        where + end for end in ("100 images are checked, once", *(f"{n} of 100 images checked" for n in (64, 100)))
    ]


def test_images_of_a_task_with_a_verdict_are_not_decoded_again(make_task, write, tmp_path, monkeypatch):
    folder = make_task("doors")
    found, decoded = load(folder), []

    def count(data):
        decoded.append(data)
        return inspect(data)

    inspect = module.inspect_image
    monkeypatch.setattr(module, "inspect_image", count)
    require_decodable(found)
    assert len(decoded) == pq.read_metadata(found.files[0]).num_rows
    carry_verdict(found.tasks[0])
    decoded.clear()
    require_decodable(load(folder, write("some.parquet", ["a", "b"], [picture(1), picture(2)])), tmp_path / "verdicts")
    assert decoded == [picture(1), picture(2)]


def test_a_verdict_that_tells_of_transparent_images_is_none_where_these_are_refused(make_task):
    folder = make_task("doors")
    table = pq.read_table(folder / "train.parquet")
    images = table["image"].to_pylist()
    images[2] = picture(9, "RGBA")
    pq.write_table(
        table.set_column(table.schema.get_field_index("image"), "image", pa.array(images)), folder / "train.parquet"
    )
    found = load(folder)
    carry_verdict(found.tasks[0])
    require_decodable(found)
    with pytest.raises(TaskError, match=r"1 of \d+ images cannot be used: row 2: is transparent in places"):
        require_decodable(found, refuse_transparent=True)
