import json
from dataclasses import asdict, replace

import pytest

from condu_ray.config import content_hash
from condu_ray.store.ledger import ROOT, Entry, Ledger, LedgerError, Mark, from_line, state_id, to_line


def entries(count):
    found, parent = [], ROOT
    for position in range(count):
        state = state_id(parent, "condu", f"task{position}", f"key{position}", {"rescaler": "l1"})
        found.append(Entry(position, f"task{position}", f"key{position}", parent, state, 0.5))
        parent = state
    return found


def test_what_was_appended_is_there_after_a_reload(tmp_path):
    ledger = Ledger(tmp_path / "deep" / "ledger.jsonl")
    for entry in entries(3):
        ledger.append(entry)
    again = Ledger(tmp_path / "deep" / "ledger.jsonl")
    assert len(again) == 3
    assert [again.get(entry.state) for entry in entries(3)] == entries(3)
    assert again.get("nothing") is None


@pytest.mark.parametrize("cut", range(1, 30))
def test_a_torn_last_line_is_cut_off_and_can_be_written_again(tmp_path, cut):
    path = tmp_path / "ledger.jsonl"
    ledger = Ledger(path)
    for entry in entries(2):
        ledger.append(entry)
    whole = path.read_bytes()
    path.write_bytes(whole[:-cut])
    again = Ledger(path)
    assert len(again) == 1
    again.append(entries(2)[1])
    assert path.read_bytes() == whole


def test_damage_before_the_end_is_refused(tmp_path):
    path = tmp_path / "ledger.jsonl"
    ledger = Ledger(path)
    for entry in entries(3):
        ledger.append(entry)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0] + b"{broken\n" + lines[2])
    with pytest.raises(ValueError, match="line 2 is damaged"):
        Ledger(path)


def test_identity_depends_on_all_of_its_history():
    base = state_id(ROOT, "condu", "a", "k", {"rescaler": "l1"})
    others = [
        state_id(base, "condu", "a", "k", {"rescaler": "l1"}),
        state_id(ROOT, "ties", "a", "k", {"rescaler": "l1"}),
        state_id(ROOT, "condu", "b", "k", {"rescaler": "l1"}),
        state_id(ROOT, "condu", "a", "l", {"rescaler": "l1"}),
        state_id(ROOT, "condu", "a", "k", {"rescaler": "tensor_mean"}),
    ]
    assert len({base, *others}) == 6


@pytest.mark.parametrize("number", [1, 2])
@pytest.mark.parametrize("more", [{"layers": 3}, {"mark": "split"}, {"expert": ["a", "b"]}])
def test_a_whole_line_of_a_newer_release_is_refused_and_never_cut_off_as_torn(tmp_path, number, more):
    path = tmp_path / "ledger.jsonl"
    lines = [to_line(entry) for entry in entries(2)]
    values = asdict(entries(2)[number - 1]) | more
    lines[number - 1] = json.dumps(values | {"seal": content_hash(values)[:16]}).encode() + b"\n"
    path.write_bytes(b"".join(lines))
    with pytest.raises(LedgerError, match=f"line {number} is of a newer condu_ray .*update condu_ray"):
        Ledger(path)
    assert path.read_bytes() == b"".join(lines)


ENTRY = Entry(1, "walls", "key", ROOT, "state", 0.5)
MARK = Mark("forget", "walls", ("one", "two"), "2026-01-01T00:00:00+00:00")


@pytest.mark.parametrize(
    "line",
    [ENTRY, replace(ENTRY, expert=None), replace(ENTRY, seconds=0), MARK, replace(MARK, task=None, undone=())],
    ids=["trained", "nothing trained", "whole seconds", "mark", "of no task"],
)
def test_a_line_says_what_was_written(line):
    assert from_line(to_line(line)) == line


@pytest.mark.parametrize(
    ("line", "change"),
    [
        (ENTRY, {"position": "1"}), (ENTRY, {"seconds": None}), (ENTRY, {"task": None}), (ENTRY, {"expert": 7}),
        (ENTRY, {"parent": 7}), (ENTRY, {"state": ["state"]}), (ENTRY, {"more": 1}), (MARK, {"mark": None}),
        (MARK, {"task": 7}), (MARK, {"undone": "one"}), (MARK, {"undone": [7]}), (MARK, {"at": 7}),
    ],
)  # fmt: skip
def test_a_line_with_a_value_of_another_type_is_damaged(line, change):
    """Of those without a checksum, for with one any change is."""
    assert from_line(json.dumps(asdict(line)).encode() + b"\n") == line
    with pytest.raises(ValueError, match=r"another type|unexpected"):
        from_line(json.dumps(asdict(line) | change).encode() + b"\n")
    with pytest.raises(ValueError, match=r"checksum|unexpected"):
        from_line(json.dumps(json.loads(to_line(line)) | change).encode() + b"\n")
