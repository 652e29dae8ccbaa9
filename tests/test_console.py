"""What a command says is what was meant, whatever signs names have."""

import pytest
from rich.table import Table

from condu_ray.console import output
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


def test_lines_of_a_run_have_styles(capsys):
    Lines().say("[bold]50.0[/] of a session")
    assert capsys.readouterr().out == "00:00 50.0 of a session\n"
