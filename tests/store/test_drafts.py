"""What dead writers left goes, what living ones are at and what is whole stays."""

import os
import time

import pytest

from condu_ray.store.artifacts import check_writable, publish, write_text
from condu_ray.store.drafts import DEAD_SECONDS, remove_drafts
from condu_ray.store.posix_drafts import drafts

HEX = "0123456789abcdef" * 2
PLACES = (
    "",
    "experts",
    "evaluations",
    "runs/r",
    "runs/r/condu/sessions",
    "runs/r/results",
    "runs/r/report",
    "datasets",
)


@pytest.fixture
def storage(tmp_path):
    check_writable(tmp_path)
    return tmp_path


def left(storage, place, kind="file", age=DEAD_SECONDS + 5):
    path = storage / place / f".thing.{HEX}"
    path.parent.mkdir(parents=True, exist_ok=True)
    inside = path / "delta.safetensors" if kind == "folder" else path
    inside.parent.mkdir(exist_ok=True)
    inside.write_bytes(b"half")
    for one in {inside, path}:
        os.utime(one, (time.time() - age,) * 2)
    return path


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("kind", ["file", "folder"])
def test_an_old_draft_goes_wherever_it_is(storage, place, kind):
    path = left(storage, place, kind)
    assert list(drafts(storage)) == [path]
    assert remove_drafts(storage) == 1
    assert not path.exists()
    assert remove_drafts(storage) == 0


def test_a_draft_that_may_be_alive_stays(storage):
    young, old = left(storage, "experts", age=60), left(storage, "evaluations")
    growing = left(storage, "runs/r", "folder")
    (growing / "meta.json").write_text("{")  # something was written just now, into a folder that was made long ago
    os.utime(growing, (time.time() - 2 * DEAD_SECONDS,) * 2)
    assert remove_drafts(storage) == 1
    assert young.exists()
    assert growing.exists()
    assert not old.exists()


def test_what_is_whole_stays_however_old(storage):
    publish(storage / "experts" / "key", {}, lambda folder: write_text(folder / "a.txt", "a"))
    write_text(storage / "evaluations" / "key.json", "{}")
    (storage / "runs" / ".leases").mkdir(parents=True)
    (storage / "runs" / ".leases" / "r.json").write_text("{}")
    for path in storage.rglob("*"):
        os.utime(path, (time.time() - 10 * DEAD_SECONDS,) * 2)
    before = sorted(storage.rglob("*"))
    assert remove_drafts(storage) == 0
    assert sorted(storage.rglob("*")) == before


def test_the_claim_of_a_dead_owner_goes(storage):
    folder = storage / "experts" / ".claims"
    folder.mkdir(parents=True)
    for name, age in (("dead", DEAD_SECONDS + 5), ("alive", 5)):
        (folder / f"{name}.json").write_text("{}")
        os.utime(folder / f"{name}.json", (time.time() - age,) * 2)
    assert remove_drafts(storage) == 1
    assert [path.name for path in folder.iterdir()] == ["alive.json"]


def test_a_clock_that_is_wrong_here_does_no_harm(storage, monkeypatch):
    young = left(storage, "experts", age=60)
    monkeypatch.setattr(time, "time", lambda: 9e9)
    assert remove_drafts(storage) == 0
    assert young.exists()
