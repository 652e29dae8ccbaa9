"""What a command says is what was meant, whatever signs names have."""

import pytest
from rich.table import Table

from condu_ray.console import WIDE, output, whole
from condu_ray.orchestration.watch.lines import Lines


@pytest.mark.parametrize("path", ["/data/[exp]/storage", "/data/[/exp]/x", "[bold]", "photo [final].jpg"])
def test_names_in_brackets_stay_whole(path, capsys):
    output().print(f"report: {path}")
    table = Table("Picture")
    table.add_row(path)
    output().print(table)
    said = capsys.readouterr().out
    assert f"report: {path}" in said
    assert said.count(path) == 2


@pytest.mark.parametrize(("columns", "widest"), [("", WIDE), ("40", 40)])
def test_a_table_is_wide_in_a_file_and_never_cut(capsys, monkeypatch, columns, widest):
    monkeypatch.delenv("COLUMNS", raising=False)
    if columns:
        monkeypatch.setenv("COLUMNS", columns)
    table = Table("Method", *["Forgetting"] * 6)
    table.add_row("sequential", *["49.20"] * 6)
    output().print(whole(table))
    said = capsys.readouterr().out
    assert max(map(len, said.splitlines())) <= widest
    assert ("sequential" in said) == (not columns)
    assert "…" not in said


def test_lines_of_a_run_have_styles(capsys):
    Lines().say("[bold]50.0[/] of a session")
    assert capsys.readouterr().out == "00:00 50.0 of a session\n"
