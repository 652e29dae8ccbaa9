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


@pytest.mark.parametrize("columns", [60, 66, 70, 80])
def test_numbers_of_a_table_are_never_torn(capsys, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    table = Table("Method", "Transfer", "Average", "Last", "BWT", "Forgetting", "Seconds", "Bits")
    rows = [
        ["condu-svd-lora", "56.5", "61.8", "56.9", "-7.15", "31.50", "12.3", "1.20"],
        ["zero-shot", "–", "61.8", "56.9", "0.00", "0.00", "12.3", "–"],
    ]
    for row in rows:
        table.add_row(*row)
    output().print(whole(table))
    said = capsys.readouterr().out
    assert max(map(len, said.splitlines())) <= columns
    words = said.split()
    assert all(words.count(number) >= 1 for row in rows for number in row[1:])
    assert words.count("61.8") == 2


def test_digits_stand_below_one_another(capsys, monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    table = Table("Class", "Images", "%")
    for row in (["rose", "7", "100.0"], ["tulip", "12", "8.3"], ["none", "0", "–"]):
        table.add_row(*row)
    output().print(whole(table))
    rows = [line.split("│")[1:4] for line in capsys.readouterr().out.splitlines() if line.startswith("│")]
    assert rows == [
        [" rose  ", "      7 ", " 100.0 "],
        [" tulip ", "     12 ", "   8.3 "],
        [" none  ", "      0 ", "     – "],
    ]


def test_lines_of_a_run_have_styles(capsys):
    Lines().say("[bold]50.0[/] of a session")
    assert capsys.readouterr().out == "00:00 50.0 of a session\n"
