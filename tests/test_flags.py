"""What flags take, in the words of their help."""

import re

import pytest

from condu_ray.command_line import parse
from condu_ray.config import Experiment, Sweep
from condu_ray.flags import default, fields, takes

TAKEN = {
    "recipe": "NAME", "repair": "{true,false}", "measure_on": "{test,validation}", "paper": "mtil", "storage": "PATH",
    "shots": "INTEGER", "validation_share": "NUMBER", "method": "NAME,...", "probe": "PATH,...",
    "protocol": "{task,own,union,xtail},...", "task_data": "TASK=PATH,...", "imported": "TASK=NAME,...",
    "training.lr_by_task": "TASK=NUMBER,...", "merging.bits": "NUMBER",
}  # fmt: skip


def test_what_each_kind_of_field_takes():
    known = dict(fields(Experiment))
    assert {name: takes(known[name].annotation) for name in TAKEN} == TAKEN


@pytest.mark.parametrize("kind", [Experiment, Sweep])
def test_every_field_says_what_it_takes(kind):
    assert all(takes(field.annotation) for _, field in fields(kind))


@pytest.mark.parametrize(
    ("value", "shown"),
    [(None, ""), ((), ""), ({}, ""), (("condu", "emr"), "condu,emr"), (False, "false"), (0, "0"), (0.3, "0.3")],
)
def test_a_default_is_shown_as_a_flag_has_it(value, shown):
    assert default(value) == shown


@pytest.mark.parametrize("kind", [Experiment, Sweep])
def test_help_has_nothing_of_python(kind, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "1000")
    with pytest.raises(SystemExit):
        parse(["--help"], kind)
    printed = capsys.readouterr().out
    assert printed.splitlines()[0].endswith("[--recipe NAME] [--config FILE] [--FLAG VALUE ...]")
    shown = {part.split()[0]: part for part in re.split(r"\n  (?=--)", printed)[1:]}
    assert set(shown) == {"--config", *(f"--{name}" for name, _ in fields(kind))}
    assert "(default: condu)" in shown["--method"]
    for name, field in fields(kind):
        value = default(field.get_default(call_default_factory=True))
        assert shown[f"--{name}"].split()[1] == takes(field.annotation), name
        assert shown[f"--{name}"].count("(default:") == bool(value), name
        assert f"(default: {value})" in shown[f"--{name}"] or not value, name
