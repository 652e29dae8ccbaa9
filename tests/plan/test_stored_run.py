"""A run and a sweep that an earlier version wrote (tests/data/stored_run), read by today's code."""

import json
import math
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import ray
from pandas import DataFrame

from condu_ray.benchmark import load_task
from condu_ray.config import Experiment
from condu_ray.learn.prototype_store import FILE, has_prototypes
from condu_ray.methods import get
from condu_ray.methods.session import load_session
from condu_ray.plan.changes import rolled_back
from condu_ray.plan.opened import open_run
from condu_ray.plan.preflight import check
from condu_ray.plan.repair import damaged
from condu_ray.plan.results import Results
from condu_ray.plan.run_plan import plan_run
from condu_ray.plan.stored_run import StoredRun, finished_run
from condu_ray.store import layout
from condu_ray.store.artifacts import ArtifactError, load_tensors, read_meta
from condu_ray.store.experts import load_expert
from condu_ray.store.ledger import read_entries
from condu_ray.store.measurements import read_measurement
from condu_ray.store.posix import Posix
from condu_ray.use.inspect import inspected
from condu_ray.use.served import served_run
from jobs.report import main

WRITTEN = Path(__file__).parents[1] / "data" / "stored_run"
DISK = Path("disk")
RUNS = (
    "run",
    *(f"sweep.{order}.{method}.seed0" for order in ("given", "random-01") for method in ("condu", "sequential")),
)


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stored") / "run"
    shutil.copytree(WRITTEN, folder)
    return folder


@pytest.fixture(autouse=True)
def there(copy, monkeypatch, undrawn):
    monkeypatch.chdir(copy)


@pytest.mark.parametrize("kept", ["data", "backbone", None])
def test_paths_that_are_relative_to_another_folder_are_named_with_where_to_go(copy, kept, tmp_path, monkeypatch):
    if kept:
        (tmp_path / kept).symlink_to(copy / kept)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"no such folder.*\n.*run was begun in another folder") as caught:
        open_run(copy / DISK, "run")
    told = str(caught.value).splitlines()[-1]
    assert told.endswith("; give this command in that folder")
    names = told.split(" name ")[1].split(";")[0].split(", ")
    assert names == [name for name in ("data", "backbone") if name != kept]


def config(name):
    kept = json.loads(layout.config_path(layout.run_folder(DISK, name)).read_text())
    return Experiment.model_validate(kept | {"storage": DISK})


def plans(name):
    return plan_run(check(config(name)), "fp32").methods


def names(folder):
    return {path.name for path in folder.iterdir()}


def report(monkeypatch, name, *flags):
    monkeypatch.setattr(sys, "argv", ["report.py", name, "--storage", str(DISK), *flags])
    main()
    assert not ray.is_initialized()


def test_everything_verifies():
    assert damaged(DISK) == []


def test_no_expert_answers_for_a_backbone_that_its_key_did_not_name_whole():
    """Keys of that version named a backbone by its weights alone; what they hold is still read, by its name."""
    planned = {expert.key for name in RUNS for plan in plans(name) for expert in plan.experts}
    assert planned
    assert not planned & names(layout.experts_folder(DISK))
    for key in names(layout.experts_folder(DISK)):
        assert read_meta(layout.expert_folder(DISK, key))["key"] == key
        assert load_expert(DISK, key)


@pytest.mark.parametrize("name", RUNS)
def test_states_are_read_and_are_no_ones_that_are_planned_now(name):
    for plan in plans(name):
        run, method = layout.run_folder(DISK, name), plan.method.name
        entries, _ = read_entries(layout.ledger_path(run, method))
        assert [entry.task for entry in entries] == [session.task for session in plan.sessions]
        moved = {entry.state for entry in entries}.isdisjoint(session.state for session in plan.sessions)
        assert moved or method == "zero-shot"  # which has no expert, and learns nothing
        states = [load_session(run, get(method, config(name)), entry) for entry in entries]
        assert [state.tasks[-1] for state in states] == [session.task for session in plan.sessions]
        assert names(layout.sessions_folder(run, method)) == {
            layout.session_folder(run, method, entry.position, entry.task, entry.state).name for entry in entries
        }


@pytest.mark.parametrize("name", RUNS)
def test_a_run_of_the_same_settings_finds_none_of_its_measurements(name):
    checked = check(config(name))
    assert finished_run(checked) is None
    results = Results(plan_run(checked, "fp32"))
    for plan in results.plan.methods:
        for entry in read_entries(layout.ledger_path(layout.run_folder(DISK, name), plan.method.name))[0]:
            for measurement in results.measurements(plan, entry):
                assert read_measurement(DISK, measurement.key) is None


def test_who_asks_for_sessions_whose_keys_have_moved_is_told_that_they_are_there_and_why_none_counts():
    found = open_run(DISK, "run")
    words = r"run: condu has 2 sessions in storage, of which .* an earlier condu_ray wrote them\. .* own command again"
    for ask in (lambda: served_run(found, "condu"), lambda: inspected(found), lambda: rolled_back(found, 1)):
        with pytest.raises(ValueError, match=words):
            ask()
    ledger = Path(layout.ledger_path(layout.run_folder(DISK, "run"), "condu"))
    ledger.rename("kept")
    try:
        with pytest.raises(ValueError, match="condu has committed no session yet"):
            served_run(found, "condu")
    finally:
        Path("kept").rename(ledger)


@pytest.mark.parametrize(
    ("second", "sessions", "last"), [([40.0, math.nan, 20.0], 1, 50.0), ([40.0, 60.0, 20.0], 3, 60.0)]
)
def test_metrics_are_over_the_sessions_from_the_first_on_that_are_measured_whole(second, sessions, last):
    matrix = DataFrame([[50.0, 10.0, 20.0], second, [30.0, 60.0, 90.0]])
    method = SimpleNamespace(method=get("average"))
    run = SimpleNamespace(config=Experiment(), methods={"average": method}, matrix=lambda *which: matrix)
    [found] = StoredRun.metrics(run).to_dict("records")
    assert (found["protocol"], found["sessions"], found["last"]) == ("task", sessions, last)


def test_prototypes_are_made_anew_and_the_old_ones_stay():
    backbone = check(config("run")).backbone
    stored = names(layout.prototypes_folder(DISK))
    assert len(stored) == 2
    for task in ("walls", "doors"):
        assert not has_prototypes(DISK, backbone, load_task(Path("data") / task))  # their text parts were other sums
    for name in stored:
        assert load_tensors(layout.prototypes_folder(DISK) / name, FILE)["sums"].shape == (2, 4)


@pytest.mark.parametrize("name", RUNS)
def test_a_runs_report_is_made_again_of_the_numbers_that_it_wrote(name, monkeypatch, capsys):
    folder = Path(layout.report_folder(layout.run_folder(DISK, name)))
    page = folder / "report.md"
    kept, before = json.loads((folder / "results.json").read_text()), page.read_text() if page.is_file() else None
    page.unlink(missing_ok=True)  # a trial of a sweep has none of its own
    report(monkeypatch, name)
    assert "of the numbers that the run wrote" in capsys.readouterr().out
    assert json.loads((folder / "results.json").read_text()) == kept
    if before is not None:
        tables = [[line for line in text.splitlines() if line.startswith("|")] for text in (before, page.read_text())]
        assert tables[0] == tables[1]


def test_papers_figures_beside_a_run_leave_its_own_report_as_it_is(monkeypatch):
    folder = Path(layout.report_folder(layout.run_folder(DISK, "run")))
    kept = {path.name: path.read_bytes() for path in folder.iterdir()}
    report(monkeypatch, "run", "--published")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == kept
    assert (DISK / "reports" / "run" / "report.md").is_file()


def test_a_runs_report_in_another_folder_is_its_own(monkeypatch, tmp_path):
    folder = Path(layout.report_folder(layout.run_folder(DISK, "run")))
    report(monkeypatch, "run", "--out", str(tmp_path / "there"))
    assert {path.name for path in (tmp_path / "there").iterdir()} == {path.name for path in folder.iterdir()}
    assert (tmp_path / "there" / "report.md").read_text() == (folder / "report.md").read_text()


def test_a_report_of_a_run_that_wrote_no_numbers_is_refused(monkeypatch, capsys):
    numbers = Path(layout.results_path(layout.run_folder(DISK, "run")))
    kept = numbers.read_bytes()
    numbers.unlink()
    try:
        with pytest.raises(SystemExit) as caught:
            report(monkeypatch, "run")
    finally:
        numbers.write_bytes(kept)
    assert caught.value.code == 2
    assert "by an earlier version" in capsys.readouterr().err


def test_a_sweeps_report_is_made_again_from_storage_alone(monkeypatch):
    sweep = layout.sweep_folder(DISK, "sweep")
    kept = json.loads(layout.sweep_numbers_path(sweep).read_text())
    shutil.rmtree(layout.report_folder(sweep))
    report(monkeypatch, "sweep")
    made = json.loads(layout.sweep_numbers_path(sweep).read_text())
    for trial in made["trials"]:  # a metric that was not recorded then
        assert math.isfinite(trial["metrics"].pop("forgetting_since_learned"))
        assert trial.pop("measured_on") == "test"  # there were no other images then
    assert made["trials"] == [  # what nobody measured has no key any more
        {key: value for key, value in trial.items() if not (key.startswith("union") and value is None)}
        for trial in kept["trials"]
    ]
    assert made["groups"] == kept["groups"]
    assert made["extra"]["costs"] == kept["extra"]["costs"]


def test_a_run_on_storage_that_cannot_be_written_is_opened_and_only_a_newer_format_refused(copy, monkeypatch):
    def read_only(self, place):
        raise OSError(30, "Read-only file system", str(place))

    monkeypatch.setattr(Posix, "probe", read_only)
    assert "condu" in open_run(DISK, "run").methods
    with pytest.raises(ArtifactError, match="cannot be written"):
        check(config("run"))
    marker = layout.marker_path(DISK)
    before = marker.read_text() if marker.exists() else None
    try:
        marker.write_text('{"format": 99}')
        with pytest.raises(ArtifactError, match="written by a newer condu_ray"):
            open_run(DISK, "run")
    finally:
        marker.unlink() if before is None else marker.write_text(before)
