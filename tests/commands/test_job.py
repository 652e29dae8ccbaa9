"""How a command ends: the exit code and the message for what was raised in it, whatever becomes of what it says."""

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from condu_ray.command_line import EXIT_CODES
from condu_ray.commands.__main__ import COMMANDS, command
from condu_ray.commands.job import job
from condu_ray.orchestration.cluster import stop
from condu_ray.orchestration.cluster.failure import RunError, at_work
from condu_ray.orchestration.cluster.room import ResourceError
from condu_ray.store.artifacts import ArtifactError, writing


class ActorError(ValueError):
    """As Ray raises an actor's error: its text is a traceback, its cause the error itself."""

    cause = ValueError("one task has no images")


@pytest.fixture
def environment(monkeypatch):
    monkeypatch.setattr("condu_ray.orchestration.cluster.env.apply", lambda: None)


@pytest.mark.usefixtures("environment")
class TestTheEnd:
    @pytest.mark.parametrize("error", [ValueError("bad"), ArtifactError("bad"), ResourceError("bad")])
    def test_bad_input_is_refused_with_2(self, error, capsys):
        with pytest.raises(SystemExit) as end, job():
            raise error
        assert end.value.code == 2
        assert capsys.readouterr().err == "error: bad\n"

    @pytest.mark.parametrize(
        ("error", "words"),
        [
            (RunError("no lane is left"), "no lane is left"),
            (ActorError(), "one task has no images"),
            (ValueError("bad"), "bad"),
            (UnicodeEncodeError("ascii", "∪", 0, 1, "no sign"), "no sign"),
            (ArtifactError("torn"), "torn"),
            (ResourceError("a node has gone"), "a node has gone"),
        ],
    )
    def test_what_fails_once_work_has_begun_ends_with_its_message_and_1(self, error, words):
        with pytest.raises(SystemExit) as end, job(), at_work():
            raise error
        assert str(end.value.code).startswith("error: ")  # which Python prints, and ends with 1
        assert words in end.value.code

    @pytest.mark.parametrize(
        ("number", "code"), [(errno.ENOSPC, 1), (errno.EDQUOT, 1), (errno.EFBIG, 1), (errno.EACCES, 2)]
    )
    def test_a_disk_that_is_full_has_cost_work_and_one_that_may_not_be_written_has_not(self, number, code, capsys):
        with pytest.raises(SystemExit) as end, job(), writing(Path("bundle")):
            raise OSError(number, os.strerror(number))
        told = capsys.readouterr().err if code == 2 else end.value.code  # which Python prints, and ends with 1
        assert told.startswith(f"error: bundle: cannot be written ({os.strerror(number)})")
        assert (end.value.code == 2) == (code == 2)
        assert ("ulimit -f" in told) == (number == errno.EFBIG)

    def test_what_another_user_keeps_from_being_read_is_told_in_a_sentence(self, capsys):
        error = PermissionError(errno.EACCES, os.strerror(errno.EACCES), "storage/runs")
        with pytest.raises(SystemExit) as end, job():
            raise error
        told = "error: storage/runs: this user may not read it, or write there; change its permissions\n"
        assert (end.value.code, capsys.readouterr().err) == (2, told)
        with pytest.raises(SystemExit) as end, job(), at_work():
            raise error
        assert end.value.code == "error: [Errno 13] Permission denied: 'storage/runs'"

    def test_a_working_folder_that_was_removed_is_refused(self, tmp_path, monkeypatch, capsys):
        (tmp_path / "gone").mkdir()
        monkeypatch.chdir(tmp_path / "gone")
        (tmp_path / "gone").rmdir()
        with pytest.raises(SystemExit) as end, job():
            pass
        assert end.value.code == 2
        assert capsys.readouterr().err == (
            "error: the folder that this was called in is not there any more; cd to one that is\n"
        )

    def test_what_nobody_foresaw_keeps_its_traceback(self):
        with pytest.raises(KeyError, match="a bug"), job(), at_work():
            raise KeyError("a bug")


WORKS = """
import sys, threading, time
from condu_ray.commands.job import job
from condu_ray.console import output
with job():
    threading.Thread(target=time.sleep, args=({hold},)).start()  # which Python waits for at its end
    for line in range({lines}):
        output(styled=True).print("[bold]condu ∪[/] – ± ", line)
        print("naïve", file=sys.stderr, flush=True)
    print("done", flush=True)
    {end}
"""


def started(lines, end, shell='exec {python} -c "$SCRIPT"', hold=60, **variables):
    """A command that works, in a shell that decides where its output goes."""
    script = WORKS.format(lines=lines, end=end, hold=hold).encode("ascii", "backslashreplace").decode()
    return subprocess.Popen(
        ["bash", "-o", "pipefail", "-c", shell.format(python=sys.executable)],
        env=os.environ | {"SCRIPT": script} | variables, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        encoding="utf-8", errors="replace",
        # What runs in the background of a script inherits a Ctrl-C that is ignored, and by nohup a SIGHUP.
        preexec_fn=lambda: [signal.signal(number, signal.SIG_DFL) for number in (signal.SIGINT, signal.SIGHUP)],
    )  # fmt: skip


OUTPUTS = {
    "ASCII": ("", {"PYTHONIOENCODING": "ascii"}),
    "LANG=C": ("", {"LANG": "C", "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}),
    "Latin-1": ("", {"PYTHONIOENCODING": "latin-1"}),
    "strict": ("", {"PYTHONIOENCODING": "ascii:strict"}),
    "a full disk": (" > /dev/full", {}),
    "both on a full disk": (" > /dev/full 2> /dev/full", {}),
    "closed": (" >&- 2>&-", {}),
    "a reader that goes": (" | head -1", {}),
    "a reader of errors that goes": (" 2> >(head -1)", {}),
}


ENDS = [
    # Every output with one end in turn; the others, a process each, are left to the long tests.
    pytest.param(case, code, marks=() if (place + code) % 3 == 0 or case == "closed" else pytest.mark.long)
    for place, case in enumerate(OUTPUTS)
    for code in (0, 1, 2)
]


@pytest.mark.parametrize(("case", "code"), ENDS)
def test_what_a_command_says_never_changes_its_end(case, code):
    where, variables = OUTPUTS[case]
    end = ("pass", "sys.exit(1)", "raise ValueError('∪')")[code]
    shell = ("" if "|" in where else "exec ") + '{python} -c "$SCRIPT"' + where
    many = "head" in where or "full" in where  # a reader goes before all is said; what a full disk leaves is too much
    process = started(400 if many else 20, end, shell, hold=0, **variables)
    out, err = process.communicate(timeout=100)
    assert process.returncode == code, err
    assert "Traceback" not in err
    if not where:
        assert out.startswith(("condu U - +-  0\n", "condu U - \ufffd  0\n"))  # Latin-1 has one of the signs
        assert out.endswith("done\n")


@pytest.mark.parametrize(
    ("number", "name"), [(signal.SIGTERM, "SIGTERM"), (signal.SIGINT, "Ctrl-C"), (signal.SIGHUP, "SIGHUP")]
)
def test_a_signal_ends_a_command_at_once_with_a_sentence(number, name):
    process = started(0, "while True: time.sleep(0.1)")  # a signal in the moment before a sleep is heard after it
    assert process.stdout.readline() == "done\n"
    begin = time.monotonic()
    process.send_signal(number)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 128 + number
    assert err == f"stopped by {name}: what was committed stays, and the same command goes on from there\n"
    assert time.monotonic() - begin < 10
    assert str(128 + number) in EXIT_CODES


@pytest.mark.usefixtures("environment")
@pytest.mark.parametrize("name", COMMANDS)
def test_a_signal_says_that_a_command_goes_on_from_there_where_it_does(name, monkeypatch, capfd):
    def ended(code):
        raise SystemExit(code)

    with pytest.raises(SystemExit):
        command(name)[0](["--help"])
    capfd.readouterr()
    monkeypatch.setattr(os, "_exit", ended)
    with pytest.raises(SystemExit, match="143"):
        stop.end(signal.SIGTERM)
    goes_on = name in ("run", "sweep", "import", "add", "rollback", "forget")
    assert (stop.COMMITTED in capfd.readouterr().err) == goes_on


@pytest.mark.usefixtures("environment")
@pytest.mark.parametrize("name", ["run", "sweep"])
def test_missing_images_are_begun_to_be_drawn_before_libraries_are_loaded(name, tmp_path, monkeypatch, capsys):
    def begun(config):
        raise ValueError(f"{config.storage} is drawn into")

    def loaded(*_):
        raise AssertionError("libraries are loaded")

    monkeypatch.setattr("condu_ray.plan.data.drawing", begun)
    monkeypatch.setattr("condu_ray.orchestration.cluster.forks.forks", loaded)
    with pytest.raises(SystemExit):
        command(name)[0](["--storage", str(tmp_path)])
    assert f"{tmp_path} is drawn into" in capsys.readouterr().err


def test_a_second_signal_does_not_wait_for_what_the_first_one_started():
    slow = (
        "\n    try: print('works', flush=True); time.sleep(60)"
        "\n    finally: print('tidies up', flush=True); time.sleep(60)"
    )
    process = started(0, slow)
    assert process.stdout.readline() == "done\n"
    assert process.stdout.readline() == "works\n"
    process.send_signal(signal.SIGTERM)
    assert process.stdout.readline() == "tidies up\n"
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=5) == 143


def test_an_ignored_signal_stays_so():
    process = started(0, "time.sleep(60)", shell="trap '' INT HUP; exec {python} -c \"$SCRIPT\"")
    assert process.stdout.readline() == "done\n"
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGHUP)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=10) == 143


IMPORTS = """
import os, signal, sys
class Interrupts:
    def find_spec(name, path, target=None):
        if name == "{module}":
            os.kill(os.getpid(), {number})
sys.meta_path.insert(0, Interrupts)
from condu_ray.commands.methods import main
main(["--help"])
"""


@pytest.mark.parametrize("module", ["condu_ray.command_line", "condu_ray.orchestration.cluster.stop"])
@pytest.mark.parametrize(
    ("number", "code", "words"),
    [
        (signal.SIGINT, 130, "stopped by Ctrl-C: it had not begun, or was done already\n"),
        (signal.SIGTERM, -signal.SIGTERM, ""),
    ],
)
def test_a_signal_while_modules_are_imported_prints_no_traceback(module, number, code, words):
    process = subprocess.run(
        [sys.executable, "-c", IMPORTS.format(module=module, number=int(number))], capture_output=True, text=True,
        # What runs in the background of a script inherits a Ctrl-C that is ignored, and by nohup a SIGHUP.
        preexec_fn=lambda: [signal.signal(number, signal.SIG_DFL) for number in (signal.SIGINT, signal.SIGHUP)],
    )  # fmt: skip
    assert (process.returncode, process.stderr) == (code, words)
