"""What every backend of storage keeps; a new one is added to `BACKENDS` and has to pass all of it."""

import errno
import os
import re
import threading
from pathlib import Path

import pytest

import condu_ray
from condu_ray.store.artifacts import ArtifactError, check_writable
from condu_ray.store.backend import OBJECTS, POSIX, backend
from condu_ray.store.location import Location


@pytest.fixture(params=["posix", "memory", "moto", pytest.param("seaweedfs", marks=pytest.mark.long), "azurite"])
def both(request, tmp_path):
    """A backend and a place in which nothing is."""
    if request.param == "posix":
        return POSIX, Location(tmp_path / "storage")
    return OBJECTS, request.getfixturevalue(request.param) / "storage"


@pytest.fixture
def store(both):
    return both[0]


@pytest.fixture
def place(both):
    return both[1]


def together(count, job):
    """Runs a job in threads that begin together; returns what they returned."""
    barrier, found = threading.Barrier(count), []

    def run(number):
        barrier.wait()
        found.append((number, job(number)))

    threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [result for _, result in sorted(found, key=lambda one: one[0])]


def fill(**files):
    def write(folder):
        for name, text in files.items():
            (folder / name).write_text(text)

    return write


def inside(store, place):
    """The names in a folder; a bucket knows none that nothing is in, or for a while one that is gone."""
    try:
        return [name for name in store.names(place) if store.exists(place / name)]
    except FileNotFoundError:
        return []


def test_a_location_finds_its_backend(store, place):
    assert backend(place / "deep" / "down") is store


def test_nothing_is_there_at_first(store, place):
    assert not store.exists(place)
    assert store.stamp(place / "a") is None
    for call in (store.read, store.names, store.lines):
        with pytest.raises(FileNotFoundError):
            call(place / "a")
    store.remove(place / "a")


def test_a_small_object_is_replaced_whole(store, place):
    for content in (b"one", b"", b"three"):
        assert store.replace(place / "deep" / "a", content)
        assert store.read(place / "deep" / "a") == content
        assert store.local(place / "deep" / "a").read_bytes() == content
    assert inside(store, place) == ["deep"]
    assert inside(store, place / "deep") == ["a"]
    with pytest.raises(NotADirectoryError):
        store.names(place / "deep" / "a")


def test_readers_see_one_content_or_the_other(store, place):
    contents = (b"a" * 100_000, b"b" * 200_000)
    store.replace(place / "x", contents[0])

    def job(number):
        if number:
            return {store.read(place / "x") for _ in range(50)}
        for turn in range(50):
            store.replace(place / "x", contents[turn % 2])
        return set()

    assert set.union(*together(3, job)) <= set(contents)


def test_of_several_that_create_one_does(store, place):
    done = together(6, lambda number: store.create(place / "a", b"%d" % number))
    assert sum(done) == 1
    assert store.read(place / "a") == b"%d" % done.index(True)
    assert inside(store, place) == ["a"]


def test_a_stamp_differs_after_every_touch_and_every_write_of_something_else(store, place):
    seen = []
    for change in (
        lambda: store.create(place / "a", b"x"),
        lambda: store.touch(place / "a", b"x"),
        lambda: store.touch(place / "a", b"x"),
        lambda: store.touch(place / "a", b"x"),
        lambda: store.replace(place / "a", b"z"),
        lambda: store.replace(place / "a", b"y", unchanged=seen[-1]),
    ):
        before = store.stamp(place / "a")
        while store.stamp(place / "a") == before:  # a clock may be coarser than two writes are apart
            change()
        seen.append(store.stamp(place / "a"))
    assert len(set(seen)) == len(seen)


def test_what_another_has_written_is_not_touched(store, place):
    store.create(place / "a", b"mine")
    assert all(store.touch(place / "a", b"mine") for _ in range(3))
    assert store.read(place / "a") == b"mine"
    store.replace(place / "a", b"theirs")
    stamp = store.stamp(place / "a")
    assert not store.touch(place / "a", b"mine")
    assert not store.touch(place / "a", b"mine")
    assert store.stamp(place / "a") == stamp
    store.remove(place / "a")
    with pytest.raises(FileNotFoundError):
        store.touch(place / "a", b"mine")


def test_what_changed_meanwhile_is_not_replaced(store, place):
    store.create(place / "a", b"one")
    old = store.stamp(place / "a")
    store.replace(place / "a", b"two!")
    assert not store.replace(place / "a", b"three", unchanged=old)
    assert store.read(place / "a") == b"two!"
    assert not store.replace(place / "never", b"x", unchanged=old)
    assert inside(store, place) == ["a"]
    assert store.replace(place / "a", b"three", unchanged=store.stamp(place / "a"))
    assert store.read(place / "a") == b"three"


def test_of_several_that_take_over_one_does(store, place):
    for turn in range(20):
        store.create(place / "a", b"dead %d" % turn)
        stamp = store.stamp(place / "a")
        done = together(4, lambda number, stamp=stamp: store.replace(place / "a", b"%d" % number, unchanged=stamp))
        assert sum(done) == 1
        assert store.read(place / "a") == b"%d" % done.index(True)
        store.remove(place / "a")


def test_a_folder_is_published_whole_and_the_first_wins(store, place):
    store.publish(place / "key", fill(data="1", meta="first"), "meta")
    store.publish(place / "key", fill(data="2", meta="second"), "meta")
    assert inside(store, place / "key") == ["data", "meta"]
    assert store.read(place / "key" / "meta") == b"first"
    assert (store.local(place / "key") / "data").read_text() == "1"
    assert inside(store, place) == ["key"]


def test_of_several_publishers_one_wins(store, place):
    together(4, lambda number: store.publish(place / "key", fill(data=str(number), meta=str(number)), "meta"))
    assert store.read(place / "key" / "data") == store.read(place / "key" / "meta")
    assert inside(store, place) == ["key"]


def test_a_publisher_that_fails_leaves_nothing(store, place):
    def write(folder):
        (folder / "data").write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        store.publish(place / "key", write, "meta")
    assert not store.exists(place / "key")
    assert inside(store, place) == []


def test_a_folder_without_its_last_file_keeps_none_from_being_made(store, place):
    store.replace(place / "key" / "data", b"half")
    store.publish(place / "key", fill(data="whole", meta="x"), "meta")
    assert store.read(place / "key" / "data") == b"whole"
    assert inside(store, place) == ["key"]


def test_a_log_keeps_its_lines_in_order(store, place):
    lines = [b"%d\n" % number for number in range(5)]
    for count, line in enumerate(lines, start=1):
        store.append(place / "run" / "log", line)
        assert store.lines(place / "run" / "log") == lines[:count]
    store.rewrite(place / "run" / "log", lines[1:3])
    assert store.lines(place / "run" / "log") == lines[1:3]
    store.append(place / "run" / "log", b"more\n")
    assert store.lines(place / "run" / "log") == [*lines[1:3], b"more\n"]


def test_moving_and_removing(store, place):
    store.publish(place / "key", fill(data="1", meta="x"), "meta")
    store.replace(place / "a", b"a")
    store.move(place / "key", place / "aside" / "runs" / "key")
    store.move(place / "a", place / "aside" / "a")
    assert inside(store, place) == ["aside"]
    assert store.read(place / "aside" / "runs" / "key" / "data") == b"1"
    store.remove(place / "aside")
    assert not store.exists(place / "aside" / "a")
    assert inside(store, place) == []


def test_a_probe_makes_the_folder_and_leaves_nothing(store, place):
    store.probe(place / "deep")
    store.probe(place / "deep")
    assert inside(store, place / "deep") == []
    store.replace(place / "file", b"")
    with pytest.raises(OSError, match=r"file|director"):
        store.probe(place / "file")


@pytest.mark.parametrize("call", ["link", "rename"])
def test_a_file_system_without_links_is_refused(tmp_path, monkeypatch, call):
    def refused(*_):
        raise OSError(errno.ENOTSUP, "Operation not supported")

    monkeypatch.setattr(f"os.{call}", refused)
    words = {"link": "hard links", "rename": "renaming"}[call]
    with pytest.raises(ArtifactError, match=rf"--storage .*no {words} .*give a folder of a local disk or NFS"):
        check_writable(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_bucket_that_is_not_there_is_named(moto):
    with pytest.raises(ArtifactError, match="no such bucket; make it first: s3://nowhere"):
        check_writable(Location("s3://nowhere/storage"))


def test_dead_writers_are_cleared_away_and_nothing_else(store, place):
    store.publish(place / "experts" / "key", fill(data="1", meta="x"), "meta")
    store.replace(place / "a", b"a")
    assert store.remove_drafts(place, 0.0) == 0
    assert inside(store, place) == ["a", "experts"]
    assert inside(store, place / "experts" / "key") == ["data", "meta"]


def test_what_one_name_was_left_of_is_cleared_away_alone(store, place):
    draft = "0123456789abcdef" * 2
    others = [place / f".more.data.{draft}", place / "below" / f".data.{draft}"]
    for folder in (place / f".data.{draft}", *others):
        store.replace(folder / "half", b"1")
    assert store.remove_drafts(place, 0.0, "data") == 1
    assert not store.exists(place / f".data.{draft}")
    assert [store.names(folder) for folder in others] == [["half"], ["half"]]


ONLY_STORE = re.compile(r"os\.(rename|replace|link|utime|truncate|fsync)|fcntl|\.(rename|touch|hardlink_to)\(|st_mtime")
PACKAGE = Path(condu_ray.__file__).parent
ON_ITS_OWN = {
    PACKAGE / "merging" / "unified_file.py": "a library's file, which is written without any storage",
    PACKAGE / "merging" / "streamed.py": "from file to file on a disk, without any storage",
    PACKAGE / "benchmark" / "ingest" / "source.py": "asks a user's own pictures whether they have changed",
    PACKAGE / "use" / "rows.py": "writes where a user says, in no storage",
}


def test_above_storage_nothing_is_renamed_linked_locked_or_stamped():
    files = [
        path for path in PACKAGE.rglob("*.py") if (PACKAGE / "store") not in path.parents and path not in ON_ITS_OWN
    ]
    assert [path for path in files if ONLY_STORE.search(path.read_text())] == []
    assert ONLY_STORE.search((PACKAGE / "store" / "posix.py").read_text())


def test_what_is_on_another_disk_is_moved_by_copying(tmp_path, monkeypatch):
    def elsewhere(*paths, **options):
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))

    (tmp_path / "experts" / "key").mkdir(parents=True)
    (tmp_path / "experts" / "key" / "meta.json").write_text("{")
    (tmp_path / "file").write_text("f")
    monkeypatch.setattr(os, "rename", elsewhere)
    for name in ("experts/key", "file"):
        POSIX.move(Location(tmp_path) / name, Location(tmp_path) / "damaged" / name)
    assert (tmp_path / "damaged" / "experts" / "key" / "meta.json").read_text() == "{"
    assert (tmp_path / "damaged" / "file").read_text() == "f"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["damaged", "experts"]
    assert list((tmp_path / "experts").iterdir()) == []
