"""What is under its name on a file system is on the disk: nothing appears before it is synced, and its name is too."""

import errno
import os
import re
import threading
from functools import partial
from pathlib import Path

import pytest
import torch

from condu_ray.store import posix_free_name
from condu_ray.store.artifacts import save_tensors
from condu_ray.store.backend import POSIX
from condu_ray.store.claims import Claims

DRAFT = re.compile(r"\.(.+)\.[0-9a-f]{32}")


@pytest.fixture
def said(tmp_path, monkeypatch):
    """What is synced, and what appears, in turn; drafts by the name that they are for, with a dot."""
    found = []

    def name(path):
        path = Path(path).relative_to(tmp_path)
        return "/".join(f".{match[1]}" if (match := DRAFT.fullmatch(part)) else part for part in path.parts)

    def synced(handle, fsync=os.fsync):
        found.append(f"sync {name(os.readlink(f'/proc/self/fd/{handle}'))}")
        fsync(handle)

    monkeypatch.setattr(os, "fsync", synced)

    def moved(original, source, target, **options):
        found.append(f"appear {name(target)}")
        original(source, target, **options)

    for call in ("rename", "replace", "link"):
        monkeypatch.setattr(os, call, partial(moved, getattr(os, call)))
    return found


def fill(folder):
    (folder / "one").write_text("1")
    (folder / "two").write_text("2")


ALL = {
    "replace": (lambda a: POSIX.replace(a / "file", b"x"), ["sync a/.file", "appear a/file", "sync a"]),
    "rewrite": (lambda a: POSIX.rewrite(a / "file", [b"x\n"]), ["sync a/.file", "appear a/file", "sync a"]),
    "create": (lambda a: POSIX.create(a / "file", b"x"), ["sync a/.file", "appear a/file"]),
    "append": (
        lambda a: [POSIX.append(a / "file", b"x\n") for _ in range(2)],
        ["sync a/file", "sync a", "sync a/file"],
    ),
    "publish": (
        lambda a: POSIX.publish(a / "folder", fill, "one"),
        ["sync a/.folder/one", "sync a/.folder/two", "sync a/.folder", "appear a/folder", "sync a"],
    ),
}


@pytest.mark.parametrize("kind", ALL)
def test_nothing_appears_before_it_is_on_the_disk(tmp_path, said, kind):
    write, expected = ALL[kind]
    write(tmp_path / "a")
    if kind == "publish":  # of the files in a folder any is the first
        said[:2] = sorted(said[:2])
    assert said == expected


@pytest.mark.parametrize("there", ["nothing", "remains", "whole", "file"])
def test_a_folder_appears_unless_a_whole_one_is_there(tmp_path, there):
    """What has not the last file is put aside, hidden: it must not keep an artifact from ever being made."""
    folder = tmp_path / "folder"
    if there == "file":
        folder.write_text("mine")
    elif there != "nothing":
        folder.mkdir()
        (folder / ("two" if there == "remains" else "one")).write_text("before")
    if there == "file":
        with pytest.raises(NotADirectoryError):
            POSIX.publish(folder, fill, "one")
        assert folder.read_text() == "mine"
    else:
        POSIX.publish(folder, fill, "one")
        assert (folder / "one").read_text() == ("before" if there == "whole" else "1")
        assert (folder / "two").exists() == (there != "whole")
    aside = [path for path in tmp_path.iterdir() if path != folder]
    assert [(path.name[:8], (path / "two").read_text()) for path in aside] == (
        [(".folder.", "before")] if there == "remains" else []
    )


@pytest.mark.parametrize("mask", [0o022, 0o002, 0o077, 0o027])
def test_files_of_a_folder_are_for_whom_the_umask_says(tmp_path, mask):
    """Of several users who share storage, each reads what the others made: safetensors writes for its user alone."""

    def tensors(folder):
        save_tensors(folder / "one", {"a": torch.ones(2)})
        (folder / "two").write_text("2")

    before = os.umask(mask)
    try:
        POSIX.publish(tmp_path / "folder", tensors, "one")
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "folder").iterdir()} == {0o666 & ~mask}


def test_a_folder_that_others_remove_at_the_same_time_is_removed(tmp_path):
    """As two runs do that begin at once and find the checkpoints of an expert that is finished."""
    wrong = []

    def remove(folder, ready):
        try:
            ready.wait(20)
            POSIX.remove(folder)
        except OSError as error:
            wrong.append(error)

    for number in range(10):
        folder = tmp_path / str(number)
        for step in range(50):
            (folder / str(step)).mkdir(parents=True)
            (folder / str(step) / "file").touch()
        ready = threading.Barrier(3)
        threads = [threading.Thread(target=remove, args=(folder, ready)) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert not folder.exists()
    assert wrong == []


def test_a_line_is_not_in_a_copy_of_links_too(tmp_path):
    """As of `cp -al`, or of a backup: two storages would have one ledger."""
    POSIX.append(tmp_path / "one", b"1\n")
    os.link(tmp_path / "one", tmp_path / "two")
    POSIX.append(tmp_path / "one", b"2\n")
    for line in (b"3\n", b"4\n"):
        POSIX.append(tmp_path / "two", line)
    assert [POSIX.lines(tmp_path / name) for name in ("one", "two")] == [[b"1\n", b"2\n"], [b"1\n", b"3\n", b"4\n"]]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "two"]


def refuse(number, calls=None):
    def call(source, target):
        if calls is not None:
            calls.append(Path(target).name)
        raise OSError(number, os.strerror(number), str(target))

    return call


@pytest.fixture(params=["EPERM", "ENOTSUP", "ENOSYS", "EXDEV", "EMLINK", "no renaming", "no such call"])
def without_links(request, monkeypatch):
    """As on exFAT or an SMB share; and where neither links nor a renaming that replaces nothing are."""
    monkeypatch.setattr(os, "link", refuse(getattr(errno, request.param, errno.EPERM)))
    if request.param == "no renaming":
        monkeypatch.setattr(posix_free_name, "_rename_to_free", refuse(errno.EINVAL))
    if request.param == "no such call":
        monkeypatch.setattr(posix_free_name.ctypes, "CDLL", lambda *_, **options: object())


def test_without_links_a_name_is_taken_once(tmp_path, without_links):
    """By whoever is the first, whole, and by nobody who finds it taken."""
    ready, done = threading.Barrier(8), []

    def take(number):
        ready.wait(20)
        done.append((POSIX.create(tmp_path / "file", b"%d" % number), b"%d" % number))

    threads = [threading.Thread(target=take, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    [won] = [content for first, content in done if first]
    assert (len(done), (tmp_path / "file").read_bytes()) == (8, won)
    stamp = POSIX.stamp(tmp_path / "file")
    assert POSIX.replace(tmp_path / "file", b"mine", unchanged=stamp)
    assert not POSIX.replace(tmp_path / "file", b"late", unchanged=stamp)  # what is there is given back
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("file", b"mine")]


def test_without_links_two_processes_are_still_told_of_one_another(tmp_path, without_links):
    """So that `export` and `prepare` write there."""
    with Claims(tmp_path) as one, Claims(tmp_path) as other:
        assert (one.acquire("a"), other.acquire("a")) == (True, False)
        one.release("a")
        assert other.acquire("a")
    assert list(tmp_path.iterdir()) == []


def test_what_is_refused_for_another_reason_is_not_tried_otherwise(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "link", refuse(errno.EACCES))
    with pytest.raises(PermissionError):
        POSIX.create(tmp_path / "file", b"x")
    assert list(tmp_path.iterdir()) == []
