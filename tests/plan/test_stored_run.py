"""A run and a sweep that an earlier version wrote (tests/data/stored_run), read by today's code."""

import json
import shutil
import sys
from pathlib import Path

import pytest
import ray

from condu_ray.benchmark import load_task
from condu_ray.config import Experiment
from condu_ray.learn.prototype_store import load_prototypes
from condu_ray.methods import get
from condu_ray.methods.session import load_session
from condu_ray.plan.preflight import check
from condu_ray.plan.repair import damaged
from condu_ray.plan.run_plan import plan_run
from condu_ray.store import layout
from condu_ray.store.artifacts import read_meta
from condu_ray.store.experts import load_expert
from condu_ray.store.ledger import read_entries
from condu_ray.store.results import read_rows
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
def there(copy, monkeypatch):
    monkeypatch.chdir(copy)


def config(name):
    kept = json.loads(layout.config_path(layout.run_folder(DISK, name)).read_text())
    return Experiment.model_validate(kept | {"storage": DISK})


def plans(name):
    return plan_run(check(config(name)), "fp32").methods


def names(folder):
    return {path.name for path in folder.iterdir()}


def report(monkeypatch, name):
    monkeypatch.setattr(sys, "argv", ["report.py", name, "--storage", str(DISK)])
    main()
    assert not ray.is_initialized()


def test_everything_verifies():
    assert damaged(DISK) == []


def test_no_key_of_an_expert_has_moved():
    planned = {expert.key for name in RUNS for plan in plans(name) for expert in plan.experts}
    assert planned == names(layout.experts_folder(DISK))
    for key in planned:
        assert read_meta(layout.expert_folder(DISK, key))["key"] == key
        assert load_expert(DISK, key)


@pytest.mark.parametrize("name", RUNS)
def test_no_state_has_another_identity(name):
    for plan in plans(name):
        run, method = layout.run_folder(DISK, name), plan.method.name
        entries, _ = read_entries(layout.ledger_path(run, method))
        assert [entry.state for entry in entries] == [session.state for session in plan.sessions]
        states = [load_session(run, get(method, config(name)), entry) for entry in entries]
        assert [state.tasks[-1] for state in states] == [session.task for session in plan.sessions]
        assert names(layout.sessions_folder(run, method)) == {
            layout.session_folder(run, method, entry.position, entry.task, entry.state).name for entry in entries
        }


def test_prototypes_are_found_again():
    backbone = check(config("run")).backbone
    for task in ("walls", "doors"):
        assert load_prototypes(DISK, backbone, load_task(Path("data") / task), "both").shape == (2, 4)
    assert len(names(layout.prototypes_folder(DISK))) == 2


@pytest.mark.parametrize("name", RUNS)
def test_a_runs_report_is_made_again_from_storage_alone(name, monkeypatch):
    run = layout.run_folder(DISK, name)
    kept, rows = json.loads(layout.results_path(run).read_text()), read_rows(layout.results_folder(run))
    for folder in (layout.report_folder(run), layout.results_folder(run)):
        shutil.rmtree(folder)
    report(monkeypatch, name)  # refused where one measurement or state is not found by its key
    made = json.loads(layout.results_path(run).read_text())
    assert {method: entry["accuracy"] for method, entry in made["methods"].items()} == {
        method: entry["accuracy"] for method, entry in kept["methods"].items()
    }
    assert read_rows(layout.results_folder(run)) == rows


def test_a_sweeps_report_is_made_again_from_storage_alone(monkeypatch):
    sweep = layout.sweep_folder(DISK, "sweep")
    kept = json.loads(layout.sweep_numbers_path(sweep).read_text())
    shutil.rmtree(layout.report_folder(sweep))
    report(monkeypatch, "sweep")
    made = json.loads(layout.sweep_numbers_path(sweep).read_text())
    assert made["trials"] == [  # what nobody measured has no key any more
        {key: value for key, value in trial.items() if not (key.startswith("union") and value is None)}
        for trial in kept["trials"]
    ]
    assert made["groups"] == kept["groups"]
    assert made["extra"]["costs"] == kept["extra"]["costs"]
