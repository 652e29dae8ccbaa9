import hashlib
import io
import json
import subprocess
import sys

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from condu_ray.benchmark.mini_mtil import draw
from condu_ray.benchmark.mini_mtil.draw import MINI_MTIL_TASKS, MINI_MTIL_VERSION, mini_mtil
from condu_ray.benchmark.mini_mtil.icons import icons

SMALL = {"train_per_class": 3, "test_per_class": 2}


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    return mini_mtil(tmp_path_factory.mktemp("mini"), **SMALL)


def contents(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def pictures(task, part):
    return pq.read_table(task / f"{part}.parquet")["image"].to_pylist()


def test_default_tasks_in_their_order(drawn):
    assert [task.name for task in drawn] == list(MINI_MTIL_TASKS)
    assert len(MINI_MTIL_TASKS) == 8


def test_the_same_seed_gives_the_same_bytes(drawn, tmp_path):
    again = mini_mtil(tmp_path, **SMALL)
    for one, other in zip(drawn, again, strict=True):
        assert contents(one) == contents(other)


@pytest.fixture(params=[True, False], ids=["works", "fails"])
def begun(request, monkeypatch):
    """The other processes that were begun: what each is told to draw, and itself; some fail at once."""
    found = []

    class Begun(subprocess.Popen):
        def __init__(self, command, **options):
            super().__init__(command if request.param else [sys.executable, "-c", "raise SystemExit(1)"], **options)
            found.append((json.loads(command[-1])[3], self))

    monkeypatch.setattr(subprocess, "Popen", Begun)
    monkeypatch.setattr(draw, "_WORTH", 1)
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    return found


def test_what_another_process_draws_has_the_same_bytes_or_is_drawn_here(drawn, tmp_path, begun):
    (tmp_path / "flowers").mkdir()  # none yet, whatever lies there
    for _ in range(2):  # the second time all are there
        again = mini_mtil(tmp_path, tasks=["flowers", "land", "shapes"], **SMALL)
    assert [names for names, _ in begun] == [["flowers", "land", "shapes"]]
    for folder in again:
        assert contents(folder) == contents(drawn[MINI_MTIL_TASKS.index(folder.name)])


def test_a_process_that_began_ahead_is_joined_once_and_ends_with_the_block(drawn, tmp_path, begun, monkeypatch):
    monkeypatch.setattr(draw, "_PER_CLASS", tuple(SMALL.values()))
    wanted = ["land", "shapes"]
    with draw.drawn_ahead(tmp_path, wanted):
        again = mini_mtil(tmp_path, tasks=wanted, **SMALL)
        assert len(begun) == 1
        mini_mtil(tmp_path, tasks=["flowers"], **SMALL)
        assert [names for names, _ in begun] == [wanted, ["flowers"]]
    for folder in again:
        assert contents(folder) == contents(drawn[MINI_MTIL_TASKS.index(folder.name)])
    with draw.drawn_ahead(tmp_path / "other", MINI_MTIL_TASKS):
        _, process = begun[-1]
    assert process.returncode is not None
    assert not draw._ahead
    with draw.drawn_ahead(tmp_path, wanted):  # all are there
        assert len(begun) == 3


def test_one_that_nobody_joins_writes_nothing(tmp_path, begun):
    """Whoever began it has refused its settings, which leaves storage as it was, or was killed."""
    helper = draw._Helper(tmp_path / "tasks", ["shapes"], 0, SMALL)
    process = begun[0][1]
    process.stdin.close()
    process.wait(timeout=120)
    assert helper._process is process
    assert draw._next(helper._queue, ["shapes"]) is None or process.returncode == 1  # it had drawn what it took
    helper.end()
    assert list(tmp_path.iterdir()) == []


def test_each_of_two_that_draw_takes_what_the_other_has_not(tmp_path, begun):
    helper = draw._Helper(tmp_path, ["land", "shapes", "flowers"], 0, SMALL)
    try:
        left = list(helper)
    finally:
        helper.end()
    here = [folder.name for folder in tmp_path.iterdir()]
    assert sorted([*here, *left]) == ["flowers", "land", "shapes"]


def test_another_seed_gives_other_pictures(drawn, tmp_path):
    (other,) = mini_mtil(tmp_path, seed=1, tasks=["shapes"], **SMALL)
    first = drawn[MINI_MTIL_TASKS.index("shapes")]
    assert not set(pictures(first, "train")) & set(pictures(other, "train"))


def test_a_task_does_not_depend_on_the_others(drawn, tmp_path):
    (alone,) = mini_mtil(tmp_path, tasks=["flowers"], **SMALL)
    assert contents(alone) == contents(drawn[MINI_MTIL_TASKS.index("flowers")])


def test_meta_and_labels(drawn):
    for task in drawn:
        meta = json.loads((task / "meta.json").read_text())
        assert meta["name"] == task.name
        assert meta["version"] == MINI_MTIL_VERSION
        assert meta["template"].count("{}") == 1
        assert {"classes", "domain", "source"} <= set(meta)
        assert 6 <= len(meta["classes"]) <= 12
        for part, per_class in (("train", 3), ("test", 2)):
            table = pq.read_table(task / f"{part}.parquet")
            assert [(field.name, str(field.type)) for field in table.schema] == [
                ("image", "binary"),
                ("label", "int32"),
            ]
            labels = table["label"].to_pylist()
            assert np.bincount(labels).tolist() == [per_class] * len(meta["classes"])
            assert labels != sorted(labels)


def test_class_names_are_unique_over_all_tasks(drawn):
    names = [name for task in drawn for name in json.loads((task / "meta.json").read_text())["classes"]]
    assert len(names) == len(set(names))


def test_pictures_decode_and_never_repeat(drawn):
    seen = set()
    for task in drawn:
        for part in ("train", "test"):
            for png in pictures(task, part):
                image = Image.open(io.BytesIO(png))
                assert (image.format, image.size, image.mode) == ("PNG", (48, 48), "RGB")
                pixels = image.tobytes()
                digest = hashlib.sha256(pixels).hexdigest()
                assert digest not in seen
                seen.add(digest)
                assert np.frombuffer(pixels, np.uint8).std() > 2


def test_handwritten_originals_are_split():
    from condu_ray.benchmark.mini_mtil.digits import pool

    for value in range(10):
        parts = [{image.tobytes() for image in pool(value, part)} for part in ("train", "test")]
        assert min(map(len, parts)) >= 20
        assert not parts[0] & parts[1]


def test_a_second_call_does_nothing(tmp_path):
    (task,) = mini_mtil(tmp_path, tasks=["land"], **SMALL)
    before = {path: path.stat().st_mtime_ns for path in task.iterdir()}
    mini_mtil(tmp_path, tasks=["land"], **SMALL)
    assert {path: path.stat().st_mtime_ns for path in task.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["land"]


@pytest.mark.parametrize("damage", ["version", "missing"])
def test_an_old_or_broken_task_is_drawn_anew(tmp_path, damage):
    (task,) = mini_mtil(tmp_path, tasks=["charts"], **SMALL)
    whole = contents(task)
    if damage == "version":
        meta = json.loads((task / "meta.json").read_text())
        (task / "meta.json").write_text(json.dumps(meta | {"version": "0"}))
    else:
        (task / "test.parquet").unlink()
    mini_mtil(tmp_path, tasks=["charts"], **SMALL)
    assert contents(task) == whole
    assert [path.name for path in tmp_path.iterdir()] == ["charts"]


def test_bad_arguments_are_named(tmp_path):
    with pytest.raises(ValueError, match="no_such_task"):
        mini_mtil(tmp_path, tasks=["no_such_task"])
    with pytest.raises(ValueError, match="at least 1"):
        mini_mtil(tmp_path, train_per_class=0)
    assert not list(tmp_path.iterdir())


def test_pretraining_icons_are_no_task_pictures(drawn):
    pairs = list(icons(200, seed=0))
    assert [caption for _, caption in pairs] == [caption for _, caption in icons(200, seed=0)]
    assert len({caption for _, caption in pairs}) > 150
    taken = {Image.open(io.BytesIO(png)).tobytes() for task in drawn for png in pictures(task, "test")}
    for image, caption in pairs:
        assert image.size == (48, 48)
        assert "{" not in caption
        assert image.tobytes() not in taken


def test_drawing_needs_no_heavy_library():
    heavy = "('torch', 'ray', 'open_clip')"
    code = f"import sys, condu_ray.benchmark.mini_mtil.draw; sys.exit(any(name in sys.modules for name in {heavy}))"
    subprocess.run([sys.executable, "-c", code], check=True)
