"""The console command and the files in jobs/: one help, one refusal, nothing heavy loaded for either."""

import json
import runpy
import subprocess
import sys
import tomllib
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from condu_ray import __version__
from condu_ray.command_line import run_command
from condu_ray.commands.__main__ import COMMANDS, MODULES, main
from condu_ray.store.provenance import command

ROOT = Path(__file__).parents[2]
JOBS = {
    "run": "run_mtil.py", "sweep": "sweep_orders.py", "report": "report.py", "prepare": "prepare_datasets.py",
    "ablate-merging": "ablate_merging.py", "ablate-inference": "ablate_inference.py", "ablate-bits": "ablate_bits.py",
}  # fmt: skip


@pytest.fixture
def call(monkeypatch, capsys):
    """Runs a program; returns its exit code and what it printed."""

    def run(entry, *argv):
        monkeypatch.setattr(sys, "argv", list(argv))
        code = 0
        try:
            entry()
        except SystemExit as end:
            code = end.code
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return run


@pytest.fixture
def console(call):
    return lambda *arguments: call(main, "/some/bin/condu-ray", *arguments)


def test_help_lists_every_command(console):
    code, shown, _ = console("--help")
    assert code == 0
    for name in COMMANDS:
        assert f"\n    {name} " in shown or f"\n    {name}\n" in shown
    assert "Compare methods over many orders" in shown
    assert console() == (code, shown, "")


def test_the_version(console):
    assert console("--version") == (0, f"condu_ray {__version__}\n", "")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["swep"], "unknown command 'swep' (did you mean sweep?)"),
        (["ablate_merging"], "did you mean ablate-merging?"),
        (["zzz"], "known: run, sweep"),
        (["--nothing"], "unknown flag --nothing (known: help, version)"),
    ],
)
def test_what_is_no_command(console, arguments, words):
    code, _, error = console(*arguments)
    assert code == 2
    assert words in error


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["predict", "r", "a.jpg", "--protcol", "union"], "unknown flag --protcol (did you mean protocol?)"),
        (["export", "--metod=condu", "r"], "unknown flag --metod (did you mean method?)"),  # also lacks --output
        (["predict", "r", "-x.jpg"], "a file's name ./-x.jpg"),
        (["report", "--storage", "-x"], "--storage: expected one argument; unknown flag -x: a value that begins"),
        (["import", "r", "--task", "t", "--chekpoint", "x"], "unknown flag --chekpoint (did you mean checkpoint?)"),
        (["import", "r", "--seed", "1", "--sed=1"], "--checkpoint; unknown flag --sed (did you mean seed?)"),  # a run's
        (["import", "r", "--config", "a", "--training={}", "--seed", "1"], "required: --task, --checkpoint\n"),
        (["ablate-inference", "--method", "condu", "--routing"], "--routing: expected one argument\n"),
        (["methods", "all"], "unexpected argument 'all'"),
    ],
)
def test_a_word_that_a_command_does_not_take(console, arguments, words):
    code, shown, error = console(*arguments)
    assert (code, shown) == (2, "")
    assert error.startswith("error: ")
    assert words in error
    assert error.count("\n") == 1


def test_every_command_is_a_module_and_every_module_a_command():
    found = {path.stem for path in ROOT.glob("condu_ray/commands/*.py") if "\ndef main(" in path.read_text()}
    assert found - {"__main__"} == {MODULES.get(name, name.replace("-", "_")) for name in COMMANDS}


@pytest.mark.parametrize("name", JOBS)
def test_a_job_has_its_commands_help(call, console, name):
    job = str(ROOT / "jobs" / JOBS[name])
    code, shown, _ = console(name, "--help")
    assert code == 0
    assert shown.startswith(f"usage: condu-ray {name} ")
    code, of_job, _ = call(lambda: runpy.run_path(job, run_name="__main__"), job, "--help")
    assert code == 0
    assert of_job.replace(JOBS[name], f"condu-ray {name}").split() == shown.split()  # lines are broken elsewhere


LOOK = """
import contextlib, io, json, runpy, sys
found = {}
for name, run, path, argv in json.loads(sys.stdin.read()):
    sys.argv[:] = argv
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()) as error:
        try:
            getattr(runpy, run)(path, run_name="__main__")
        except SystemExit as end:
            code = end.code
    loaded = [heavy for heavy in ("ray", "torch", "mlflow", "pyarrow") if heavy in sys.modules]
    found.setdefault(name, []).append((code, error.getvalue().count("error: "), loaded))
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def refused():
    """Of `--help` and each command with a wrong flag, one after the other in one process: exit codes, what is loaded.

    Each is called as a part of the console command, and as a file where there is one.
    """
    calls = [("--help", "run_module", "condu_ray.commands", ["condu-ray", "--help"])]
    for name in COMMANDS:
        calls.append((name, "run_module", "condu_ray.commands", ["condu-ray", name, "--nothing", "1"]))
        if job := JOBS.get(name):
            calls.append((name, "run_path", str(ROOT / "jobs" / job), [job, "--nothing", "1"]))
    ended = subprocess.run([sys.executable, "-c", LOOK], input=json.dumps(calls), capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout)


@pytest.mark.parametrize("name", ["--help", *COMMANDS])
def test_help_and_wrong_flags_load_nothing_heavy(refused, name):
    wanted = [0, 0, []] if name == "--help" else [2, 1, []]
    assert refused[name] == [wanted] * (2 if name in JOBS else 1)


def test_methods_are_listed_by_either_name(console):
    code, shown, _ = console("methods")
    assert code == 0
    assert [line.split()[0] for line in shown.splitlines()].count("condu") == 1
    assert "arxiv.org/abs/2203.05482" in shown
    assert console("run", "--method", "list") == (0, shown, "")


def test_reports_and_messages_name_the_command_as_it_was_typed(call, console):
    console("run", "--nothing", "1")
    assert command() == "condu-ray run --nothing 1"
    assert run_command() == ["condu-ray", "run"]
    call(lambda: None, "jobs/ablate_merging.py", "--nothing", "1")
    assert command() == "python jobs/ablate_merging.py --nothing 1"
    assert run_command() == ["python", "jobs/run_mtil.py"]


def test_the_installed_command_is_this_one():
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert EntryPoint("condu-ray", scripts["condu-ray"], "console_scripts").load() is main
