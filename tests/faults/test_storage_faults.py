"""Every kind of artifact x every fault: told by name or made again, and never used in silence."""

from __future__ import annotations

import errno
import json
import logging
import os
import resource
import shutil
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import pytest

from condu_ray.merging import UnifiedDelta, UnifiedFileError
from condu_ray.plan.repair import damaged, set_aside
from condu_ray.store import artifacts
from condu_ray.store.artifacts import ArtifactError, WriteError, check_writable, publish, read_meta
from condu_ray.store.claims import Claims
from condu_ray.store.ledger import Ledger, LedgerError
from condu_ray.store.posix import Posix
from tests.faults.specimens import FOUND, files

KINDS = ("expert", "exemplars", "session", "prototypes", "measurement", "ledger", "results", "verdict")
FOLDERS = ("expert", "exemplars", "session", "prototypes")
KEPT = ("measurement", "results", "verdict")
"""Single files that are replaced whole."""


def truncated(kind, other):
    content = kind.file.read_bytes()
    kind.file.write_bytes(content[: len(content) // 2])


def one_byte_short(kind, other):
    kind.file.write_bytes(kind.file.read_bytes()[:-1])


def flipped(at):
    def change(kind, other):
        content = bytearray(kind.file.read_bytes())
        content[int(at * (len(content) - 1))] ^= 1
        kind.file.write_bytes(content)

    change.__name__ = f"bit flipped at {at:.0%}"
    return change


def deleted(kind, other):
    kind.file.unlink()


def replaced(kind, other):
    shutil.copyfile(other.file, kind.file)


def emptied(kind, other):
    kind.file.write_bytes(b"")


def garbage(kind, other):
    kind.file.write_bytes(b'{"a": [1, 2')


def binary(kind, other):
    kind.file.write_bytes(bytes(range(256)) * 4)


def a_folder(kind, other):
    kind.file.unlink()
    kind.file.mkdir()


def manifest_cut(kind, other):
    kind.manifest.write_bytes(kind.manifest.read_bytes()[:-3])


def manifest_empty(kind, other):
    kind.manifest.write_bytes(b"")


def manifest_list(kind, other):
    kind.manifest.write_text("[]")


def manifest_deep(kind, other):
    kind.manifest.write_text("[" * 100_000)


def manifest_digit(kind, other):
    """A digit of something that the manifest says beside checksums."""
    text = kind.manifest.read_text()
    place = text.index('"python": "3.') + len('"python": "3.')
    kind.manifest.write_text(text[:place] + str((int(text[place]) + 1) % 10) + text[place + 1 :])


def manifest_escapes(kind, other):
    """A manifest that names a file outside its folder."""
    meta = json.loads(kind.manifest.read_text())
    meta["files"]["../../../etc/passwd"] = "0" * 64
    kind.manifest.write_text(json.dumps(meta))


def manifest_newer(kind, other):
    meta = json.loads(kind.manifest.read_text())
    kind.manifest.write_text(json.dumps(meta | {"format": 99}))


def all_replaced(kind, other):
    """The whole artifact of another key in the place of this one."""
    shutil.rmtree(kind.path)
    shutil.copytree(other.path, kind.path)


FILE_FAULTS = [
    truncated, one_byte_short, *(flipped(at) for at in (0, 0.1, 0.33, 0.5, 0.77, 0.9, 1)), deleted, replaced, emptied,
    garbage, binary, a_folder,
]  # fmt: skip
MANIFEST_FAULTS = [
    manifest_cut, manifest_empty, manifest_list, manifest_deep, manifest_digit, manifest_escapes, manifest_newer,
    all_replaced,
]  # fmt: skip
CASES = [
    *((kind, fault) for kind in KINDS for fault in FILE_FAULTS),
    *((kind, fault) for kind in FOLDERS for fault in MANIFEST_FAULTS),
]
#: What is as if it had never been written: no file, no measurement, no row.
ABSENT = {(kind, "deleted") for kind in ("measurement", "results", "verdict", "ledger")}


def outcome(kind, good):
    """What reading an artifact comes to: a named error, nothing there, less of it, or the same content."""
    try:
        found = kind.read()
    except (ArtifactError, LedgerError) as error:
        message = str(error)
        assert str(kind.path) in message or str(kind.file) in message
        assert any(word in message for word in ("remove", "look at the disk", "update", "made again"))
        return "refused"
    except FileNotFoundError:
        assert not kind.file.exists()
        return "absent"
    if found is None:
        return "absent"
    if isinstance(found, list) and len(found) < len(good):
        assert found == good[: len(found)]
        return "shorter"
    assert found == good, "used in silence"
    return "same"


@pytest.mark.parametrize(("name", "fault"), CASES, ids=lambda part: getattr(part, "__name__", part))
def test_a_fault_is_named_and_the_same_command_makes_it_again(storage, name, fault, caplog):
    kind, other = storage.kinds()[name], storage.kinds(other=True)[name]
    good, whole = kind.read(), files(storage.root)
    fault(kind, other)
    found = outcome(kind, good)
    listed = damaged(storage.root)
    if (name, fault) == ("ledger", replaced):  # of another run: its states are none of this run's
        assert found == "shorter"
        assert len(listed) == len(storage.entries)
        for path, _ in listed:
            set_aside(storage.root, path)
    elif name == "ledger" and found == "shorter":  # a torn end: cut off with a warning when it is opened
        with caplog.at_level(logging.WARNING):
            Ledger(kind.file)
        assert "torn last line was cut off" in caplog.text or kind.file.stat().st_size == 0
    elif (name, fault.__name__) in ABSENT:
        assert found in ("absent", "refused")
    elif name == "results" and found == "same":  # Parquet has bytes that say nothing, such as those of statistics
        assert fault.__name__.startswith("bit flipped")
    else:
        assert found == "refused"
        assert [path for path, _ in listed] == [kind.path]
        assert str(kind.path) in listed[0][1]
        where = set_aside(storage.root, kind.path)
        assert where.is_relative_to(storage.root / "damaged")
        assert where.exists()
        assert not kind.path.exists()
    kind.make()
    if name == "session":
        storage.commit()  # what was taken out of the ledger is committed again
    assert kind.read() == good
    assert damaged(storage.root) == []
    after = {path: content for path, content in files(storage.root).items() if not path.startswith("damaged/")}
    assert after.keys() == whole.keys()


@pytest.mark.parametrize("name", KINDS)
def test_what_another_user_keeps_from_being_read_is_not_damaged(storage, name, monkeypatch):
    kind, read = storage.kinds()[name], Posix.read
    path = kind.manifest if name in FOLDERS else kind.file

    def refused(backend, place):
        if Path(place) == path:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(place))
        return read(backend, place)

    monkeypatch.setattr(Posix, "read", refused)
    for look in (kind.read, lambda: damaged(storage.root)):
        with pytest.raises((ArtifactError, LedgerError)) as caught:
            look()
        assert str(path) in str(caught.value)
        assert "permissions" in str(caught.value)
        assert "remove" not in str(caught.value)


@pytest.mark.parametrize("name", FOLDERS)
def test_without_its_manifest_it_does_not_exist_and_can_be_made_again(storage, name, caplog):
    kind = storage.kinds()[name]
    good = kind.read()
    kind.manifest.unlink()
    assert not artifacts.exists(kind.path)
    with pytest.raises(ArtifactError, match="no artifact here"):
        kind.read()
    assert [path for path, _ in damaged(storage.root)] == [kind.path]
    with caplog.at_level(logging.WARNING):
        kind.make()  # an expert that was trained for hours is published, though what is left of one is in the way
    assert kind.read() == good
    assert "was made again" in caplog.text
    assert damaged(storage.root) == []


@pytest.mark.parametrize("name", FOLDERS)
def test_a_file_in_the_place_of_a_folder_is_named(storage, name):
    kind = storage.kinds()[name]
    shutil.rmtree(kind.path)
    kind.path.write_text("in the way")
    with pytest.raises(WriteError, match="cannot be written") as caught:
        kind.make()
    assert str(kind.path) in str(caught.value)
    assert kind.path.read_text() == "in the way"
    assert [path for path, _ in damaged(storage.root)] == [kind.path]


@contextmanager
def no_space(monkeypatch):
    """As on a full disk: no file grows. The limit holds for writers in C++ and Rust too."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@contextmanager
def full_at_sync(monkeypatch):
    """A disk that takes the bytes and has no room for them when they are to be written out."""

    def refuse(handle):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", refuse)
        yield


@contextmanager
def no_rename(monkeypatch):
    def refuse(*args, **kwargs):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        for owner, name in ((Path, "rename"), (Path, "replace"), (os, "rename"), (os, "replace")):
            patch.setattr(owner, name, refuse)
        yield


WRITE_FAULTS = (no_space, full_at_sync, no_rename)


@pytest.mark.parametrize(
    ("name", "fault"),
    # A ledger is appended to, never renamed.
    [(name, fault) for name in KINDS for fault in WRITE_FAULTS if (name, fault) != ("ledger", no_rename)],
    ids=lambda part: getattr(part, "__name__", part),
)
def test_what_cannot_be_written_is_named_and_leaves_nothing_half(storage, name, fault, monkeypatch):
    kind = storage.kinds()[name]
    good = kind.read()
    shutil.rmtree(kind.path) if kind.path.is_dir() else kind.path.unlink()
    before = files(storage.root)
    with fault(monkeypatch), pytest.raises(WriteError, match="cannot be written") as caught:
        kind.make()
    assert str(kind.path.name) in str(caught.value)
    if fault is full_at_sync:
        assert "free some space" in str(caught.value)
    left = {path: content for path, content in files(storage.root).items() if content or path != "ledger.jsonl"}
    assert {path: content for path, content in left.items() if path in before or content} == before
    kind.make()  # with room again, the same command goes on
    assert kind.read() == good


@pytest.mark.parametrize("fault", WRITE_FAULTS, ids=lambda fault: fault.__name__)
@pytest.mark.parametrize("name", KEPT)
def test_what_was_there_stays_when_its_successor_cannot_be_written(storage, name, fault, monkeypatch):
    kind = storage.kinds()[name]
    before = files(storage.root)
    with fault(monkeypatch), pytest.raises(WriteError):
        kind.make()
    assert files(storage.root) == before


@pytest.mark.parametrize("fault", [no_space, full_at_sync], ids=lambda fault: fault.__name__)
def test_a_ledger_whose_line_did_not_fit_takes_the_next_one(storage, fault, monkeypatch):
    path = storage.kinds()["ledger"].file
    path.unlink()
    ledger = Ledger(path)
    ledger.append(storage.entries[0])
    whole = path.read_bytes()
    with fault(monkeypatch), pytest.raises(WriteError, match=r"ledger\.jsonl"):
        ledger.append(storage.entries[1])
    assert path.read_bytes() == whole
    assert ledger.get(storage.entries[1].state) is None
    ledger.append(storage.entries[1])
    assert len(Ledger(path)) == 2


@pytest.mark.parametrize("fault", [no_space, full_at_sync, no_rename], ids=lambda fault: fault.__name__)
def test_a_unified_delta_that_cannot_be_saved_leaves_the_old_one(tmp_path, storage, fault, monkeypatch):
    path, (first, second) = tmp_path / "u" / "u.safetensors", (state.model for state in storage.states)
    path.parent.mkdir()
    first.save(path)
    with fault(monkeypatch):
        if fault is full_at_sync:
            second.save(path)  # a library's file: its caller decides whether to sync
            return
        with pytest.raises(OSError, match=r"u\.safetensors|Input/output"):
            second.save(path)
    assert UnifiedDelta.load(path).equal(first)
    assert [entry.name for entry in path.parent.iterdir()] == ["u.safetensors"]


@pytest.mark.parametrize("fault", [truncated, one_byte_short, *FILE_FAULTS[2:9], emptied, garbage, binary])
def test_a_unified_delta_on_its_own_finds_its_damage(storage, fault, tmp_path):
    kind = storage.kinds()["session"]
    fault(kind, kind)
    with pytest.raises(UnifiedFileError) as caught:
        UnifiedDelta.load(kind.file)
    assert str(kind.file) in str(caught.value)


@pytest.mark.parametrize("fault", WRITE_FAULTS[:2], ids=lambda fault: fault.__name__)
def test_storage_without_room_is_refused_before_anything_is_spent(tmp_path, fault, monkeypatch):
    with fault(monkeypatch), pytest.raises(ArtifactError, match="--storage") as refused:
        check_writable(tmp_path / "storage")
    assert ("free some space, or give another folder" in str(refused.value)) == (fault is full_at_sync)
    assert files(tmp_path) == {}


@pytest.mark.parametrize("content", [b"", b"{", b"\0", b"[]", b'{"pid": -1}', b'{"pid": 1e9}', b"[" * 100_000])
def test_a_damaged_claim_names_nobody(tmp_path, content):
    (tmp_path / "key.json").write_bytes(content)
    with Claims(tmp_path) as claims:
        assert claims.owner("key") is None
        assert not claims.acquire("key")  # somebody may be writing: taken over when its time is up


def test_a_claim_of_a_process_that_cannot_be_is_no_trouble(tmp_path):
    host = Claims(tmp_path)._owner["host"]
    for pid in (10**30, 2**31, 0, True):
        (tmp_path / "key.json").write_text(json.dumps({"host": host, "pid": pid, "start": "1"}))
        assert Claims(tmp_path).owner("key") is None


def test_claims_that_cannot_be_written_are_named(tmp_path, monkeypatch):
    with Claims(tmp_path / "claims") as claims, no_space(monkeypatch), pytest.raises(WriteError, match="key"):
        claims.acquire("key")
    assert files(tmp_path) == {}
    (tmp_path / "file").write_text("")
    with Claims(tmp_path / "file") as claims, pytest.raises(WriteError, match="key"):
        claims.acquire("key")


def test_a_session_that_is_gone_is_found_by_its_ledger_and_committed_again(storage):
    kind = storage.kinds()["session"]
    shutil.rmtree(kind.path)
    ((path, why),) = damaged(storage.root)
    assert path == kind.path
    assert "committed again" in why
    set_aside(storage.root, path)
    ledger = Ledger(storage.kinds()["ledger"].file)
    assert [ledger.get(entry.state) is None for entry in storage.entries] == [True, False]
    assert damaged(storage.root) == []


def test_putting_aside_twice_keeps_both(storage):
    kind = storage.kinds()["measurement"]
    places = []
    for _ in range(3):
        garbage(kind, kind)
        places.append(set_aside(storage.root, kind.path))
        kind.make()
    assert len({str(place) for place in places}) == 3
    assert all(place.read_bytes() == b'{"a": [1, 2' for place in places)
    assert damaged(storage.root) == []


@pytest.mark.parametrize("path", ["../outside", "/etc/passwd", ".", "experts", "experts/../../outside", "damaged/a/b"])
def test_only_what_is_in_storage_is_put_aside(storage, path):
    outside = storage.root.parent / "outside"
    outside.write_text("mine")
    with pytest.raises(ValueError, match=r"is no artifact below|was put aside before"):
        set_aside(storage.root, storage.root / path)
    assert outside.read_text() == "mine"


def test_what_cannot_be_put_aside_stays(storage, monkeypatch):
    kind = storage.kinds()["expert"]
    truncated(kind, kind)
    with no_rename(monkeypatch), pytest.raises(WriteError, match="key0"):
        set_aside(storage.root, kind.path)
    assert kind.path.is_dir()


def test_storage_from_before_there_were_seals_is_read(storage):
    kind = storage.kinds()["expert"]
    good = kind.read()
    meta = json.loads(kind.manifest.read_text())
    kind.manifest.write_text(json.dumps({key: meta[key] for key in meta.keys() - {"format", "of", "seal"}}))
    path = storage.kinds()["measurement"].file
    path.write_text(json.dumps(asdict(FOUND)))
    assert kind.read() == good
    assert storage.kinds()["measurement"].read() == FOUND
    assert damaged(storage.root) == []


@pytest.mark.parametrize(
    "content",
    [
        {},
        {"correct": 3},
        {"correct": 5, "images": 4},
        {"correct": True, "images": 4},
        {"correct": 1.5, "images": 4},
        {"correct": -1, "images": 4},
        asdict(FOUND) | {"secnods": 1},
        asdict(FOUND) | {"seconds": "1"},
        asdict(FOUND) | {"rescaler": True},
    ],
)
def test_a_measurement_that_cannot_have_been_made_is_refused(storage, content):
    kind = storage.kinds()["measurement"]
    kind.file.write_text(json.dumps(content))
    with pytest.raises(ArtifactError, match="measured again"):
        kind.read()


def test_repair_changes_nothing_by_looking(storage):
    truncated(storage.kinds()["expert"], None)
    one_byte_short(storage.kinds()["ledger"], None)
    before = files(storage.root)
    damaged(storage.root)
    assert files(storage.root) == before


def test_nothing_that_writers_left_behind_is_taken_for_an_artifact(storage):
    (storage.root / "experts" / ".key9.0123").mkdir()
    (storage.root / "evaluations" / ".key9.json.0123").write_text("{")
    assert damaged(storage.root) == []


def test_an_artifact_is_never_half_there_while_it_is_written(tmp_path):
    seen = []

    def write(folder):
        (folder / "a").write_text("x")
        seen.append((artifacts.exists(tmp_path / "key"), (tmp_path / "key").exists()))

    publish(tmp_path / "key", {}, write, seal=True)
    assert seen == [(False, False)]
    assert read_meta(tmp_path / "key")["files"].keys() == {"a"}
