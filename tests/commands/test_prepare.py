"""`condu-ray prepare --from DIR --to DIR`: a person's own data as tasks in the package's form."""

import json
import subprocess
import sys

import pytest

from condu_ray.benchmark import check_task, load_tasks
from condu_ray.commands.prepare import main
from condu_ray.store.sole_writer import sole_writer
from tests.benchmark.ingest.forms import class_folders, shards


def prepare(*flags):
    """Runs the command in this process; returns its exit code."""
    try:
        main([str(flag) for flag in flags])
    except SystemExit as end:
        return end.code
    return 0


@pytest.fixture
def data(tmp_path):
    class_folders(tmp_path / "data" / "birds")
    shards(tmp_path / "data" / "tools")
    return tmp_path / "data"


def test_all_of_a_folder_is_prepared_once(data, tmp_path, capsys):
    target = tmp_path / "tasks"
    assert prepare("--from", data, "--to", target, "--template", "a {} outdoors.") == 0
    tasks = load_tasks(target)
    assert [task.name for task in tasks] == ["birds", "tools"]
    assert {task.templates for task in tasks} == {("a {} outdoors.",)}
    assert [check_task(task) for task in tasks] == [[], []]
    assert f"give it to a run: --data {target}" in capsys.readouterr().out
    assert prepare("--from", data, "--to", target, "--template", "a {} outdoors.", "--only", "birds") == 0
    assert f"birds: is in {target / 'birds'} already" in capsys.readouterr().out
    assert sorted(path.name for path in target.iterdir()) == ["birds", "tools"]


def test_the_order_of_learning_comes_along(data, tmp_path, capsys):
    names = sorted(path.name for path in data.iterdir())[::-1]
    (data / "order.json").write_text(json.dumps(names))
    assert prepare("--from", data, "--to", tmp_path / "tasks") == 0
    assert [task.name for task in load_tasks(tmp_path / "tasks")] == names
    assert prepare("--from", data, "--to", tmp_path / "more", "--only", names[0]) == 0
    assert not (tmp_path / "more" / "order.json").exists()
    (tmp_path / "more" / names[0]).rename(tmp_path / "more" / "cars")
    assert prepare("--from", data, "--to", tmp_path / "more") == 0
    assert len(load_tasks(tmp_path / "more")) == len(names) + 1
    assert "order.json: is not taken along" in capsys.readouterr().out.replace("\n", " ")


def test_other_options_do_not_overwrite(data, tmp_path, capsys):
    assert prepare("--from", data, "--to", tmp_path / "tasks") == 0
    before = json.loads((tmp_path / "tasks" / "birds" / "meta.json").read_text())
    assert prepare("--from", data, "--to", tmp_path / "tasks", "--template", "one {}") == 2
    assert "is there already, of other data or options" in capsys.readouterr().err
    assert json.loads((tmp_path / "tasks" / "birds" / "meta.json").read_text()) == before


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--from", "data"), ["--from and --to go together"]),
        (("--from", "data", "--to", "t", "--root", "r"), ["go together", "alone"]),
        (("--from", "none", "--to", "t"), ["none: no such folder or file"]),
        (("--from", "empty", "--to", "t"), ["no data set there", "<task>/train/<class>/*.jpg"]),
        (("--from", "data", "--to", "t", "--template", "a dog"), ["--template", "exactly one {}"]),
        (("--from", "data", "--to", "t", "--test_share", "1"), ["--test_share", "less than 1"]),
        (("--from", "data", "--to", "t", "--only", "bird"), ["no task 'bird'", "did you mean birds"]),
        ((), ["--root and --out", "--from and --to"]),
    ],
)
def test_wrong_arguments_are_refused(flags, words, data, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    assert prepare(*flags) == 2
    told = capsys.readouterr().err
    assert [word for word in words if word not in told] == []


def test_what_a_killed_one_left_is_removed_by_the_next(data, tmp_path):
    target = tmp_path / "tasks"
    script = (
        "import os\nfrom condu_ray.benchmark.ingest import convert\nfrom condu_ray.commands.prepare import main\n"
        "write = convert.write_split\n"
        "convert.write_split = lambda *given: (write(*given), os._exit(9))\n"
        f"main(['--from', {str(data)!r}, '--to', {str(target)!r}])\n"
    )
    assert subprocess.run([sys.executable, "-c", script]).returncode == 9
    assert sorted(path.name.split(".")[1] for path in target.iterdir()) == ["birds", "birds"]  # half of it, and a claim
    (target / ".birds.of.mine").mkdir()
    assert prepare("--from", data, "--to", target) == 0
    assert sorted(path.name for path in target.iterdir()) == [".birds.of.mine", "birds", "tools"]


def test_what_is_being_prepared_is_refused(data, tmp_path, capsys):
    with sole_writer(tmp_path / "tasks" / "birds"):
        assert prepare("--from", data, "--to", tmp_path / "tasks") == 2
    assert "birds: another process is writing it; wait for it" in capsys.readouterr().err
    assert prepare("--from", data, "--to", tmp_path / "tasks") == 0
