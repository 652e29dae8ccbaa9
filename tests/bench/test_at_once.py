"""The benchmark of one pass for many experts by its small size; what differs is told before a time."""

import json

import pytest

from jobs.bench import at_once

SMALL = ["--sizes", "small", "--batches", "1", "5", "--experts", "3", "--rank", "2", "--repeats", "1"]


def test_a_row_a_batch(tmp_path, capsys):
    at_once.main([*SMALL, "--json", str(tmp_path / "f.json")])
    rows = json.loads((tmp_path / "f.json").read_text())
    assert [(row["images"], row["experts"]) for row in rows] == [(1, 1), (5, 3)]
    assert all(row["apart"] < 1e-5 and row["narrow_mib"] < 0.2 * row["whole_mib"] for row in rows)
    assert capsys.readouterr().out.count("small: ") == 2


def test_what_differs_ends_it(monkeypatch, capsys):
    original = at_once.encode
    monkeypatch.setattr(
        at_once, "encode", lambda model, images, experts, which: original(model, images, experts, which * 0)
    )
    with pytest.raises(SystemExit, match=r"small, 5 images: one pass is .* from swapped weights"):
        at_once.main(SMALL)
    assert "small: 5" not in capsys.readouterr().out
