"""A finished run that is changed: a task more, one taught again, rolled back, forgotten; training is stood in for."""

import json
import shutil
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from condu_ray import Experiment, Predictor, open_run
from condu_ray.benchmark.tasks import TaskError
from condu_ray.command_line import ConfigError
from condu_ray.commands import add, forget, import_expert, rollback
from condu_ray.methods.session import GONE
from condu_ray.orchestration import changing
from condu_ray.orchestration import run as main_job
from condu_ray.orchestration.cluster import forks
from condu_ray.orchestration.cluster.failure import RunError
from condu_ray.plan.changes import moved, open_to_change, rolled_back, taught_again, with_new_tasks, without
from condu_ray.plan.preflight import check
from condu_ray.plan.results import Results
from condu_ray.plan.run_plan import plan_run
from condu_ray.store import artifacts, lease
from condu_ray.store.artifacts import ArtifactError
from condu_ray.store.layout import (
    expert_folder,
    ledger_path,
    marker_path,
    run_folder,
    sessions_folder,
    staged_path,
    tally_folder,
)
from condu_ray.store.ledger import Mark, read_history
from condu_ray.store.location import Location
from condu_ray.store.posix import Posix
from condu_ray.store.results import read_rows
from condu_ray.vlm.model import backbone_spec, load_backbone
from tests.conftest import write_task
from tests.learnt import learn_here, work_here

METHODS = ("condu", "average")
CODED = ("condu", "condu-svd", "average")
"""With one that keeps a code of each expert."""


@pytest.fixture(scope="module")
def made(tmp_path_factory, task_data, small_backbone):
    """A folder with storage of a run of two tasks and with data of others."""
    home = tmp_path_factory.mktemp("changing")
    write_task(home / "more" / "gates", ("red", "blue"), 5)
    write_task(home / "grown" / "doors", ("green", "white"), 6, per_class=12)
    write_task(home / "grown" / "walls", ("red", "green", "blue"), 7)
    learn_here(config(home / "storage", task_data, small_backbone, tasks=("walls", "doors")))
    return home


def config(storage, task_data, small_backbone, **change):
    return Experiment.model_validate({
        "method": METHODS, "data": task_data, "pretrained": str(small_backbone), "storage": storage, "run": "r",
        "protocol": ("task", "union"), "training": {"precision": "fp32"}, "tracking": {"enabled": False}, **change,
    })  # fmt: skip


@contextmanager
def nothing_starts():
    """Nothing starts Ray, nor what its workers would be forked of; work is done here, and reports have no pictures."""

    @contextmanager
    def no_cluster(*_):
        yield

    def work(engine, results, display, told, held, *, staged=False):
        held()
        work_here(engine.checked, results, staged=staged)
        return SimpleNamespace(reused=0)

    def engine(checked, folder):
        return SimpleNamespace(checked=checked, plans=[plan_run(checked, "fp32")], crew=SimpleNamespace(missing=[]))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(changing.env, "ray_cluster", no_cluster)
        patch.setattr(forks, "forks", lambda *_: nullcontext())
        for module in (changing, main_job):
            patch.setattr(module, "Engine", engine)
            patch.setattr(module, "work", work)
        patch.setattr(main_job, "remember", lambda *_, **__: None)  # which the same command again looks for alone
        draw = main_job.write_report
        patch.setattr(main_job, "write_report", lambda found, folder, **_: draw(found, folder, pictures=False))
        yield


@pytest.fixture
def home(made, tmp_path):
    """A copy of it, in which nothing starts Ray."""
    with nothing_starts():
        yield Path(shutil.copytree(made, tmp_path / "home"))


@pytest.fixture(scope="module")
def grown(made, tmp_path_factory):
    """As `made`, after its run was taught gates."""
    folder = Path(shutil.copytree(made, tmp_path_factory.mktemp("grown") / "home"))
    with nothing_starts():
        call(add, folder, "--data", made / "more", "--tasks", "gates", "--max_drop", 100)
    return folder


@pytest.fixture
def grown_home(home, grown):
    """As `home`, of `grown`."""
    grow(home, grown)
    return home


def grow(home, grown):
    shutil.rmtree(home / "storage")
    shutil.copytree(grown / "storage", home / "storage")


def opened(home, run="r"):
    return open_run(home / "storage", run)


def call(command, home, *flags, run="r"):
    command.main.__wrapped__([run, "--storage", str(home / "storage"), *map(str, flags)])


def history(home, method="condu", run="r"):
    return read_history(ledger_path(run_folder(Location(home / "storage"), run), method))[0]


def state_of(home):
    """All that says what the run is: settings, ledgers, sessions and rows."""
    run = home / "storage" / "runs" / "r"
    files = [run / "config.json", *sorted(run.glob("*/ledger.jsonl")), *sorted(run.glob("*/staged.jsonl"))]
    sessions = sorted(str(path.relative_to(run)) for path in run.glob("*/sessions/*"))
    return [path.read_text() for path in files], sessions


def tasks_of(found):
    return [[entry.task for entry in one.entries] for one in found.methods.values()]


def test_a_task_more_is_measured_first_and_then_committed(home, capsys):
    before = opened(home).matrix("condu")
    call(add, home, "--data", home / "more", "--tasks", "gates", "--max_drop", 100)
    found = opened(home)
    assert tasks_of(found) == [["walls", "doors", "gates"]] * len(METHODS)
    assert found.complete
    after = found.matrix("condu")
    said = capsys.readouterr().out
    for task in ("walls", "doors"):
        old, new = before[task].iloc[-1], after[task].iloc[-1]
        row = next(line for line in said.splitlines() if task in line and "│" in line)
        assert [f"{old:.2f}", f"{new:.2f}", f"{new - old:+.2f}"] == row.replace("│", " ").split()[1:]
    run = home / "storage" / "runs" / "r"
    assert not list(run.glob("*/staged.jsonl"))
    assert {row["task"] for row in read_rows(Location(run / "results"))} == {"walls", "doors", "gates"}
    assert json.loads((run / "report" / "results.json").read_text())["tasks"] == ["walls", "doors", "gates"]
    assert [type(line).__name__ for line in history(home)] == ["Entry"] * 3
    assert json.loads(artifacts.read_text(marker_path(Location(home / "storage")))) == {"format": 1}
    kept = state_of(home)
    call(add, home, "--data", home / "more", "--tasks", "gates", "--max_drop", 0)  # as after a kill: all is there
    assert state_of(home) == kept


def test_workers_are_forked_of_what_add_loads_itself(home, monkeypatch):
    """And not of a program that loads all of it once more."""
    begun = []
    monkeypatch.setattr(forks, "forks", lambda *arguments: nullcontext(begun.append(arguments)))
    with pytest.raises(TaskError, match="nowhere"):
        call(add, home, "--tasks", "nowhere", "--data", home / "more")
    [(address, loading)] = begun
    assert (address, loading is None) == (None, False)


def test_a_folder_more_in_the_data_of_a_run_that_named_no_tasks_is_a_task_to_add(home, task_data, small_backbone):
    for task in ("walls", "doors"):
        shutil.copytree(task_data / task, home / "own" / task)
    begun = config(home / "storage", home / "own", small_backbone, run="all", method=("condu",), protocol=("union",))
    main_job.run(begun)
    learned = opened(home, "all").methods["condu"].entries
    assert [entry.task for entry in learned] == ["doors", "walls"]
    shutil.copytree(task_data / "cars", home / "own" / "cars")  # before the others by its name
    found = opened(home, "all")
    assert (found.complete, found.methods["condu"].entries) == (True, learned)
    add.main.__wrapped__(["all", "--storage", str(home / "storage"), "--tasks", "cars", "--max_drop", "100"])
    assert [entry.task for entry in opened(home, "all").methods["condu"].entries] == ["doors", "walls", "cars"]


def test_a_task_that_a_run_has_not_come_to_yet_is_not_called_learned(home, task_data, small_backbone):
    kept = config(home / "storage", task_data, small_backbone, tasks=("walls", "cars", "doors"))
    main_job.write_config(kept)
    with pytest.raises(ConfigError, match="r: has sessions or measurements left to do; give its own command again"):
        call(add, home, "--tasks", "cars")


def test_a_loss_that_is_too_large_keeps_the_old_state(home, monkeypatch):
    monkeypatch.setattr(changing, "moved", lambda *what: worse(moved(*what)))
    path = home / "storage/runs/r/config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"keep_sessions": "last"}))
    before = state_of(home)
    with pytest.raises(RunError, match=r"doors would lose 7\.50 points by average under the protocol union, more than "
                                       r"--max_drop 7\.4: r is as it was"):  # fmt: skip
        call(add, home, "--data", home / "more", "--tasks", "gates", "--max_drop", 7.4)
    assert state_of(home) == before
    assert opened(home).complete
    assert whole_sessions(home) == [True, True]
    call(add, home, "--data", home / "more", "--tasks", "gates", "--max_drop", 7.5)
    assert tasks_of(opened(home))[0] == ["walls", "doors", "gates"]
    assert whole_sessions(home) == [False, False, True]


def whole_sessions(home):
    """Of each session of `condu` whether its files are there."""
    folder = sessions_folder(run_folder(Location(home / "storage"), "r"), "condu")
    return [GONE not in artifacts.read_meta(folder / name) for name in artifacts.names(folder)]


@pytest.fixture
def gates(home, small_backbone):
    """What imports an expert of gates."""
    model = load_backbone(backbone_spec(pretrained=str(small_backbone))).model
    with torch.no_grad():
        model.visual.proj.add_(0.01)
    torch.save(model.state_dict(), home / "gates.pt")
    return "--task", "gates", "--data", home / "more", "--checkpoint", home / "gates.pt"


def test_an_expert_from_elsewhere_is_measured_first_and_then_committed(home, gates, monkeypatch, capsys):
    path = home / "storage/runs/r/config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"keep_sessions": "last"}))
    before = state_of(home)
    with monkeypatch.context() as patched:
        patched.setattr(changing, "moved", lambda *what: worse(moved(*what)))
        with pytest.raises(RunError, match=r"doors would lose 7\.50 points by average .*: r is as it was"):
            call(import_expert, home, *gates, "--max_drop", 7)
    assert state_of(home) == before
    with monkeypatch.context() as patched:
        patched.setattr(changing, "let_old_go", lambda found: None)  # as if it were killed before
        call(import_expert, home, *gates, "--max_drop", 100)
    assert whole_sessions(home) == [True, True, True]
    assert tasks_of(opened(home)) == [["walls", "doors", "gates"]] * len(METHODS)
    said = " ".join(capsys.readouterr().out.split())
    assert "average, protocol union: accuracy in percent" in said
    assert "mean change of 2 tasks" in said
    kept = state_of(home)
    call(import_expert, home, *gates, "--max_drop", 0)  # as after a kill: all is there
    assert state_of(home) == kept
    assert whole_sessions(home) == [False, False, True]
    assert "r: had this expert of gates already" in " ".join(capsys.readouterr().out.split())


def test_an_expert_that_was_refused_can_be_forgotten(home, gates, monkeypatch, capsys):
    before = history(home)
    with monkeypatch.context() as patched:
        patched.setattr(changing, "moved", lambda *what: worse(moved(*what)))
        with pytest.raises(RunError, match=r"more than --max_drop 7: r is as it was"):
            call(import_expert, home, *gates, "--max_drop", 7)
    call(forget, home, "--task", "gates")
    assert "removed: experts/" in capsys.readouterr().out
    assert history(home) == before
    with pytest.raises(ConfigError, match="--task gates: is no task of r"):
        call(forget, home, "--task", "gates")


def test_why_nothing_can_be_compared_before_an_expert_is_taken_is_said(home, gates, capsys):
    path = home / "storage/runs/r/config.json"
    changed = {"task_data": {"doors": str(home / "grown")}, "method": ["condu"]}
    path.write_text(json.dumps(json.loads(path.read_text()) | changed))
    call(import_expert, home, *gates)
    said = " ".join(capsys.readouterr().out.split())
    assert "r is not finished (condu: its session of doors, number 2, is in storage and counts no more" in said
    assert "so that nobody can say what its tasks lose by gates" in said


def worse(rows):
    """As if `average` had lost 7.5 points on doors under union, and nothing else."""
    return [
        replace(row, after=row.before - 7.5 * ((row.method, row.protocol, row.task) == ("average", "union", "doors")))
        if row.before is not None
        else row
        for row in rows
    ]


def test_a_task_taught_again_takes_its_place_and_the_ledger_says_so(home):
    old = {method: history(home, method) for method in METHODS}
    call(add, home, "--again", "doors", "--data", home / "grown", "--max_drop", 100)
    found = opened(home)
    assert tasks_of(found) == [["walls", "doors"]] * len(METHODS)
    assert found.complete
    assert [task.train_rows for task in found.tasks] == [24, 24]
    for method in METHODS:
        lines = history(home, method)
        assert lines[:2] == old[method]  # nothing is written over
        assert (lines[2].task, lines[2].parent, type(lines[3])) == ("doors", old[method][0].state, Mark)
        assert (lines[3].mark, lines[3].task, lines[3].undone) == ("again", "doors", (old[method][1].state,))
    assert json.loads(artifacts.read_text(marker_path(Location(home / "storage")))) == {"format": 2}
    predictor = Predictor.load(str(home / "storage" / "runs" / "r"), method="condu")
    assert predictor.served.state.id == history(home)[2].state


def test_rolled_back_and_taught_something_else(grown_home):
    home = grown_home
    three = opened(home).methods["condu"].entries
    call(rollback, home, "--session", 1)
    found = opened(home)
    assert tasks_of(found) == [["walls"]] * len(METHODS)
    assert history(home)[-1].undone == tuple(entry.state for entry in three[1:])
    assert {row["task"] for row in read_rows(Location(home / "storage/runs/r/results"))} == {"walls"}
    assert len(Predictor.load(found, method="condu").tasks) == 1
    lines = len(history(home))
    call(rollback, home, "--session", 1)  # again: nothing is left to do
    assert len(history(home)) == lines
    call(add, home, "--data", home / "more", "--tasks", "gates", "--max_drop", 100)
    assert tasks_of(opened(home))[0] == ["walls", "gates"]
    call(rollback, home, "--session", 1)
    call(add, home, "--tasks", "doors", "--max_drop", 100)  # of the run's own data: the state that it had
    assert opened(home).methods["condu"].entries[1].state == three[1].state
    assert [line.state for line in history(home) if not isinstance(line, Mark)].count(three[1].state) == 2


@pytest.mark.parametrize("change", [(rollback, "--session", 1), (forget, "--task", "doors")])
def test_a_copy_of_a_runs_folder_is_a_run_of_its_own(home, change):
    """Its settings name the one that it was copied from, which may be another one of that name in this storage."""
    shutil.copytree(home / "storage/runs/r", home / "storage/runs/copy")
    before, report = state_of(home), home / "storage/runs/r/report"
    call(*change[:1], home, *change[1:], run="copy")
    assert state_of(home) == before
    assert opened(home).complete
    assert not report.exists()
    assert tasks_of(opened(home, "copy")) == [["walls"]] * len(METHODS)
    assert json.loads((home / "storage/runs/copy/report/results.json").read_text())["run"] == "copy"


def test_what_is_forgotten_is_gone_and_the_rest_is_as_if_it_had_never_been(
    grown_home, task_data, small_backbone, capsys
):
    home = grown_home
    storage = Location(home / "storage")
    keys = {one.task: one.key for one in opened(home).methods["condu"].plan.experts}
    more = {"method": CODED, "more_data": (home / "more",)}
    learn_here(config(home / "storage", task_data, small_backbone, tasks=("walls", "doors", "gates"), **more))
    learn_here(config(home / "storage", task_data, small_backbone, tasks=("walls", "gates"), run="never", **more))
    call(forget, home, "--task", "doors")
    found, other = opened(home), opened(home, "never")
    assert found.complete
    assert tasks_of(found) == [["walls", "gates"]] * len(CODED)
    for method in CODED:
        assert found.methods[method].entries[-1].state == other.methods[method].entries[-1].state
        assert history(home, method)[-1].mark == "forget"
    assert found.state("condu").model.fingerprint == other.state("condu").model.fingerprint
    assert not artifacts.exists(expert_folder(storage, keys["doors"]))
    assert artifacts.exists(expert_folder(storage, keys["walls"]))
    assert artifacts.names(storage / "codes")
    for shelf in ("prototypes", "features", "codes", *(f"runs/r/{method}/sessions" for method in CODED)):
        metas = [artifacts.read_meta(storage / shelf / name) for name in artifacts.names(storage / shelf)]
        assert not [meta for meta in metas if "doors" in meta.get("tasks", (meta.get("task"),))]
    assert f"removed: experts/{keys['doors']}" in capsys.readouterr().out
    assert found.matrix("condu").columns.tolist() == ["walls", "gates"]


def test_what_other_runs_hold_stays_and_they_are_named(home, task_data, small_backbone, capsys):
    other = config(
        home / "storage",
        task_data,
        small_backbone,
        tasks=("doors",),
        run="other",
        method=("individual",),
        protocol=("task",),
    )
    learn_here(other)
    [key] = [one.key for one in opened(home).methods["condu"].plan.experts if one.task == "doors"]
    call(forget, home, "--task", "doors")
    said = " ".join(capsys.readouterr().out.split())
    assert f"kept, for other runs hold it: experts/{key} (other)" in said
    assert artifacts.exists(expert_folder(Location(home / "storage"), key))
    assert opened(home, "other").complete
    assert not list((home / "storage/runs/r").glob("*/sessions/*doors*"))


@pytest.mark.parametrize(
    "command",
    ["rollback", *(pytest.param(name, marks=pytest.mark.long) for name in ("add", "again", "forget", "import"))],
)
def test_a_kill_anywhere_leaves_the_old_run_or_the_new_one(home, gates, command, monkeypatch):
    """Every step of a change is once where it ends; the same command then does what is left."""
    flags = {
        "add": (add, "--data", home / "more", "--tasks", "gates", "--max_drop", 100),
        "again": (add, "--again", "doors", "--data", home / "grown", "--max_drop", 100),
        "rollback": (rollback, "--session", 1),
        "forget": (forget, "--task", "walls"),
        "import": (import_expert, *gates, "--max_drop", 100),
    }[command]
    path = home / "storage/runs/r/config.json"
    kept = json.loads(path.read_text()) | {"method": ["condu", "average"], "protocol": ["task"]}
    path.write_text(json.dumps(kept))
    old = tasks_of(opened(home)), [one.entries[-1].state for one in opened(home).methods.values()]
    shutil.copytree(home / "storage", home / "before")
    call(flags[0], home, *flags[1:])
    new, wanted = [one.entries[-1].state for one in opened(home).methods.values()], tasks_of(opened(home))
    steps, seen = count_steps(monkeypatch), set()
    monkeypatch.setattr(changing, "run", lambda config, **_: None)  # it has tests of its own
    for number in range(200):
        shutil.rmtree(home / "storage")
        shutil.copytree(home / "before", home / "storage")
        steps.update(left=number, passed=0)
        try:
            call(flags[0], home, *flags[1:])
        except Killed:
            steps["left"] = None
        else:
            break
        found = opened(home)
        states = [one.entries[-1].state for one in found.methods.values() if one.entries]
        assert (tasks_of(found), states) in (old, (wanted, new)), number
        seen.add((tasks_of(found), states) == old)
        call(flags[0], home, *flags[1:])
        found = opened(home)
        assert (tasks_of(found), [one.entries[-1].state for one in found.methods.values()]) == (wanted, new)
        assert found.complete
        assert not list((home / "storage/runs/r").glob("*/staged.jsonl"))
        if command == "forget":
            assert not list((home / "storage/runs/r").glob("*/sessions/*walls*"))
    assert seen == {True, False}


def test_a_task_that_is_learned_again_is_routed_in_the_report_again(grown_home):
    """How many are routed rightly is measured already, and nothing of theta0 was left to say where they go."""
    home = grown_home
    report = home / "storage/runs/r/report/results.json"
    before = json.loads(report.read_text())["routing"]
    call(forget, home, "--task", "gates")
    call(add, home, "--data", home / "more", "--tasks", "gates", "--max_drop", 100)
    assert json.loads(report.read_text()).get("routing") == before


STEPS = ("storage.json", "/runs/r/config.json", "ledger.jsonl", "staged.jsonl", "/sessions/")
"""What a change changes, one after the other."""


class Killed(BaseException):
    """In place of SIGKILL: nothing catches it."""


def count_steps(monkeypatch):
    """Has the process end before the step that `left` counts down to."""
    steps = {"left": None}
    for name in ("append", "replace", "remove", "rewrite"):
        done = getattr(Posix, name)

        def counted(self, place, *rest, done=done, **more):
            if any(part in str(place) for part in STEPS):
                if steps["left"] == 0:
                    raise Killed
                steps["left"] = None if steps["left"] is None else steps["left"] - 1
            return done(self, place, *rest, **more)

        monkeypatch.setattr(Posix, name, counted)
    return steps


def test_what_another_run_is_about_to_learn_stays(home, task_data, small_backbone, monkeypatch, capsys):
    """By `add`, whose settings are the other run's only once all is measured."""
    other = config(home / "storage", task_data, small_backbone, tasks=("walls",), run="other", method=("individual",),
                   protocol=("task",))  # fmt: skip
    learn_here(other)
    work, [key] = changing.work, [one.key for one in opened(home).methods["condu"].plan.experts if one.task == "doors"]

    def meanwhile(*rest, **more):
        monkeypatch.setattr(changing, "work", work)
        call(forget, home, "--task", "doors")
        return work(*rest, **more)

    monkeypatch.setattr(changing, "work", meanwhile)
    add.main.__wrapped__(["other", "--storage", str(home / "storage"), "--tasks", "doors", "--max_drop", "100"])
    said = " ".join(capsys.readouterr().out.split())
    assert f"kept, for other runs hold it: experts/{key} (other)" in said
    assert "what other may be about to read, being at work: give this command again when that has ended" in said
    assert opened(home, "other").complete
    assert artifacts.exists(expert_folder(Location(home / "storage"), key))
    assert not (home / "storage/runs/other/trial.json").exists()


@pytest.mark.parametrize("late", ["add", "again", "rollback", "forget", "import"])
def test_who_opened_a_run_before_another_changed_it_changes_nothing(home, grown, late, monkeypatch, small_backbone):
    """Two people at once: the second looked at the run before the first was done, and would undo what that did."""
    model = load_backbone(backbone_spec(pretrained=str(small_backbone))).model
    with torch.no_grad():
        model.visual.proj.add_(0.01)
    torch.save(model.state_dict(), home / "pillars.pt")
    write_task(home / "more" / "pillars", ("red", "blue"), 8)
    flags = {
        "add": (add, "--data", home / "more", "--tasks", "pillars", "--max_drop", 100),
        "again": (add, "--again", "doors", "--data", home / "grown", "--max_drop", 100),
        "rollback": (rollback, "--session", 1),
        "forget": (forget, "--task", "walls"),
        "import": (import_expert, "--task", "pillars", "--data", home / "more", "--checkpoint", home / "pillars.pt"),
    }[late]
    take, kept = lease.lease, []

    def later(folder):
        if not kept:
            grow(home, grown)
            kept.append(state_of(home))
        return take(folder)

    for module in (changing, main_job, import_expert):
        monkeypatch.setattr(module, "lease", later, raising=False)
    with pytest.raises(ConfigError, match=r"r: was changed since this command looked at it; .*give the command again"):
        call(flags[0], home, *flags[1:])
    assert state_of(home) == kept[0]
    assert tasks_of(opened(home)) == [["walls", "doors", "gates"]] * len(METHODS)


def test_an_expert_from_elsewhere_goes_on_from_an_earlier_session(home, gates, capsys):
    second = history(home)[1].state
    call(import_expert, home, *gates, "--session", 1, "--max_drop", 100)
    assert "mean change of 1 tasks" in " ".join(capsys.readouterr().out.split())
    found = opened(home)
    assert tasks_of(found) == [["walls", "gates"]] * len(METHODS)
    assert list(found.config.imported) == ["gates"]
    assert (history(home)[-1].mark, history(home)[-1].undone) == ("import", (second,))
    with pytest.raises(ConfigError, match="has sessions 1 to 2"):
        call(import_expert, home, *gates, "--session", 5)


def test_an_older_version_refuses_storage_with_marks(home, monkeypatch):
    call(rollback, home, "--session", 1)
    monkeypatch.setattr(artifacts, "MARKED", 1)  # what it read
    with pytest.raises(ArtifactError, match=r"written by a newer condu_ray \(format 2, this one reads 1\); update"):
        opened(home)


@pytest.mark.parametrize("command", [rollback, add])
def test_what_is_said_of_data_is_no_markup(home, command, monkeypatch, capsys):
    """A folder may be called [/x], which Rich would take for the end of a style, and refuse."""

    def said(config, say):
        say("from [/x] and [bold]y[/bold]")
        raise TaskError("that is all")

    monkeypatch.setattr(changing, "check", said)
    more = ("--session", 1) if command is rollback else ("--data", home / "more", "--tasks", "gates", "--max_drop", 100)
    with pytest.raises(TaskError, match="that is all"):
        call(command, home, *more)
    assert "from [/x] and [bold]y[/bold]" in capsys.readouterr().out


REFUSED = {
    "learned already": (lambda found, home: with_new_tasks(found, ["walls"], None), "has learned it; --again walls"),
    "named twice": (lambda found, home: with_new_tasks(found, ["a", "a"], None), "is named twice"),
    "no such task there": (
        lambda found, home: with_new_tasks(found, ["gate"], home / "more"), "none of that name .*gates"
    ),
    "none of the run's": (lambda found, home: taught_again(found, "door", home / "grown"), "no task of r .*doors"),
    "too far": (lambda found, home: rolled_back(found, 3), "has sessions 1 to 2"),
    "not at all": (lambda found, home: rolled_back(found, 0), "has sessions 1 to 2"),
    "unknown": (lambda found, home: without(found, "cars"), "cars: is no task of r"),
}  # fmt: skip


@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_be_is_refused(home, kind):
    change, words = REFUSED[kind]
    with pytest.raises(ValueError, match=words):
        change(opened(home), home)


@pytest.mark.parametrize("inside", ["", "train.parquet"])
def test_what_a_method_distilled_from_is_no_task(home, task_data, small_backbone, inside):
    (home / "captions.txt").write_text("a gate\na door\n")
    reference = str(home / "more" / "gates" / inside)
    distillation = {"reference": [reference], "captions": str(home / "captions.txt")}
    one = config(
        home / "storage", task_data, small_backbone, run="z", method=("zscl",), tasks=("walls", "doors"),
        protocol=("task",), distillation=distillation,
    )  # fmt: skip
    learn_here(one)
    with pytest.raises(ConfigError, match=r"--tasks gates: zscl of z distilled from its images.*other references or"):
        with_new_tasks(opened(home, "z"), ["gates"], home / "more")
    assert with_new_tasks(opened(home), ["gates"], home / "more")
    assert with_new_tasks(opened(home, "z"), ["cars"], None).tasks == ("walls", "doors", "cars")
    with pytest.raises(TaskError, match="no task 'nowhere'"):
        check(with_new_tasks(opened(home, "z"), ["nowhere"], None))


def test_what_forgetting_cannot_do_is_refused_in_a_sentence(home, task_data, small_backbone):
    storage = home / "storage"
    learn_here(config(storage, task_data, small_backbone, tasks=("walls", "doors"), run="c", method=("sequential",)))
    words = "sequential trained doors from weights that had learned walls, so that all of them hold it; make a run with"
    with pytest.raises(ConfigError, match=words):  # there is no session 0 to roll back to
        without(opened(home, "c"), "walls")
    assert without(opened(home, "c"), "doors").tasks == ("walls",)  # nothing came after it
    [key] = [one.key for one in opened(home).methods["condu"].plan.experts if one.task == "doors"]
    shutil.rmtree(storage / "experts" / key)
    with pytest.raises(ConfigError, match=r"cannot be rebuilt without it, for the experts of doors are gone"):
        without(opened(home), "walls")
    call(rollback, home, "--session", 1)
    with pytest.raises(ConfigError, match="is the only task of r"):
        without(opened(home), "walls")


def test_a_trial_of_a_sweep_is_left_alone(home):
    storage = home / "storage"
    (storage / "runs/r").rename(storage / "runs/s.one")
    (storage / "sweeps/s").mkdir(parents=True)
    (storage / "sweeps/s/sweep-config.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"s\.one: is a trial of a sweep"):
        open_to_change(Location(storage), "s.one")


def test_sessions_of_a_killed_trial_are_no_sessions(home):
    """Before the settings are replaced, what is staged counts for nothing, and a plain run does not mind it."""
    found = opened(home)
    checked = check(with_new_tasks(found, ["gates"], home / "more"))
    work_here(checked, Results(plan_run(checked, "fp32"), trial=True), staged=True)
    run = found.config.run_folder
    assert artifacts.is_file(staged_path(run, "condu"))
    assert len(artifacts.names(sessions_folder(run, "condu"))) == 3
    staged = Path(staged_path(run, "average"))  # of which the kill came before the line
    staged.unlink()
    assert len(artifacts.names(sessions_folder(run, "average"))) == 3
    tally = Path(tally_folder(run, "condu", "0" * 16))
    tally.mkdir(parents=True)
    assert tasks_of(opened(home)) == [["walls", "doors"]] * len(METHODS)
    assert len(history(home)) == 2
    call(rollback, home, "--session", 2)
    for method in METHODS:
        assert len(artifacts.names(sessions_folder(run, method))) == 2
    assert not tally.exists()
    assert not artifacts.is_file(staged_path(run, "condu"))
