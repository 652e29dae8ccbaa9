"""One writer of a folder: what a dead one left goes, what a living one has is refused, whatever machine it was on."""

import json

import pytest

from condu_ray.store import claims
from condu_ray.store.claims import Claims
from condu_ray.store.sole_writer import BusyError, sole_writer

HEX = "0123456789abcdef" * 2


def left(folder, name):
    draft = folder / f".{name}.{HEX}"
    draft.mkdir(parents=True)
    (draft / "train.parquet").write_bytes(b"half")
    return draft


def test_drafts_of_that_name_alone_are_removed(tmp_path):
    other, dotted, own = left(tmp_path, "birds"), left(tmp_path, "mine.flowers"), left(tmp_path, "flowers")
    with sole_writer(tmp_path / "flowers"):
        assert not own.exists()
        assert other.exists()
        assert dotted.exists()
        with sole_writer(tmp_path / "birds"):  # another folder beside it
            assert not other.exists()
        with (
            pytest.raises(BusyError, match="flowers: another process is writing it"),
            sole_writer(tmp_path / "flowers"),
        ):
            pytest.fail("two at one folder")
    assert [path.name for path in tmp_path.iterdir()] == [dotted.name]


def test_what_died_on_another_machine_or_before_a_power_cut_is_outlasted(tmp_path, monkeypatch):
    monkeypatch.setattr(claims, "STALE_SECONDS", 0.3)
    monkeypatch.setattr(claims, "LOOK_SECONDS", 0.05)
    owner = {"host": "elsewhere", "pid": 7, "start": "1", "token": "t", "since": 1.0e9}
    (tmp_path / ".flowers.json").write_text(json.dumps(owner))
    draft = left(tmp_path, "flowers")
    with sole_writer(tmp_path / "flowers"):
        assert not draft.exists()


def test_who_lives_is_not_waited_for(tmp_path):
    with Claims(tmp_path) as others:
        assert others.acquire(".flowers")
        draft = left(tmp_path, "flowers")
        with pytest.raises(BusyError), sole_writer(tmp_path / "flowers"):
            pytest.fail("two at one folder")
        assert draft.exists()
