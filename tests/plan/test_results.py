"""The matrix as it fills, by hand: what is written of it, and what a method costs; nothing is computed."""

from types import SimpleNamespace

import pytest

from condu_ray.config import Experiment
from condu_ray.methods import get
from condu_ray.plan import results as module
from condu_ray.plan.measurement import Measurement
from condu_ray.plan.results import Results
from condu_ray.store.ledger import Entry
from condu_ray.store.measurements import Accuracy
from condu_ray.store.results import read_rows

TASKS = ("walls", "doors")


@pytest.fixture
def results(tmp_path, monkeypatch):
    """Of a run of `condu` that is measured whole: session s has 10 s + t of 100 on task t, in 1 s each."""
    config = Experiment(storage=tmp_path, run="r", seed=3)
    method = SimpleNamespace(method=get("condu"), sessions=TASKS, experts=[])
    read = {"backbone": "theta0", "tasks": {"walls": "1", "doors": "2"}}
    checked = SimpleNamespace(backbone="theta0", read=read, spec=SimpleNamespace(preprocess={}), words=())
    tasks = [SimpleNamespace(name=task) for task in TASKS]
    plan = SimpleNamespace(
        config=config, tasks=tasks, probes=[], methods=[method], checked=checked, precision="fp32", backbone="theta0"
    )
    monkeypatch.setattr(module, "claim", lambda *which: None)
    monkeypatch.setattr(module, "routing_confusion", lambda *which: None)
    monkeypatch.setattr(module, "kept_bits", lambda *which: {"bits": 1.0})
    found = Results(plan)
    for place, session in enumerate(TASKS):
        entry = Entry(place, session, f"key {session}", "", f"state {place}", 0.25)
        for position, task in enumerate(TASKS):
            seen = position <= place
            more = {"relative_l2": 0.5, "sign_agreement": 0.75, "calibration_before": 7.0 + place} if seen else {}
            measurement = Measurement(config, "condu", entry, task, seen, "task", f"{place} {task}")
            found.add(measurement, Accuracy(10 * place + position, 100, 1.0, **more))
    return found


def test_rows_say_what_was_learned_by_then(results):
    rows = read_rows(results.plan.config.run_folder / "results")
    told = [(one["session"], one["task"], one["seen"], one["accuracy"], one["seed"], one["expert"]) for one in rows]
    assert sorted(told) == [
        (0, "doors", False, 1.0, 3, "key walls"), (0, "walls", True, 0.0, 3, "key walls"),
        (1, "doors", True, 11.0, 3, "key doors"), (1, "walls", True, 10.0, 3, "key doors"),
    ]  # fmt: skip


def test_a_summary_has_the_matrix_the_cost_and_what_is_known_of_learned_tasks(results):
    assert results.complete
    found = results.summary(9.0, reused=1, trained=2)["methods"]["condu"]
    assert found["accuracy"] == [[0.0, 1.0], [10.0, 11.0]]
    assert results.summary(9.0, reused=1, trained=2)["read"]["tasks"] == {"walls": "1", "doors": "2"}
    assert (found["transfer"], found["last"], found["backward_transfer"]) == (1.0, 10.5, 10.0)
    assert found["seconds"] == 4 * 1.0 + 2 * 0.25  # all measurements, and the merges
    assert [[one["task"] for one in session] for session in found["reconstruction"]] == [["walls"], ["walls", "doors"]]
    assert [(one["task"], one["before"]) for one in found["calibration"]] == [("walls", 8.0), ("doors", 8.0)]


@pytest.mark.parametrize("position", [0, 1])
def test_a_measurement_is_known_by_the_tasks_that_are_learned_by_then(results, monkeypatch, position):
    asked = []
    monkeypatch.setattr(module, "measurement_key", lambda *about: asked.append(about) or f"key {len(asked)}")
    sessions = tuple(SimpleNamespace(task=task, expert=None) for task in TASKS)
    entry = Entry(position, TASKS[position], None, "", "state", 0.0)
    found = results.measurements(SimpleNamespace(method=get("condu"), sessions=sessions), entry)
    assert [(one.task, one.seen) for one in found] == [("walls", True), ("doors", position == 1)]
    for _, _, _, _, state, task, seen, protocol, _, learned in asked:
        assert (state.id, state.tasks, protocol) == ("state", TASKS[: position + 1], "task")
        assert [one.name for one in learned] == list(state.tasks)
        assert seen == (task.name in state.tasks)


def test_what_a_methods_numbers_are_of_are_the_keys_of_its_first_and_last_session(results, monkeypatch):
    """By which MLflow finds its run: a state says nothing of test images."""
    tested = {"walls": "1", "doors": "2"}
    monkeypatch.setattr(module, "measurement_key", lambda *about: f"{about[4].id} {tested[about[5].name]}")
    entries = [Entry(place, task, None, "", f"state {place}", 0.0) for place, task in enumerate(TASKS)]
    sessions = tuple(SimpleNamespace(task=one.task, expert=None, entry=one) for one in entries)
    plans = [SimpleNamespace(method=get("condu"), sessions=sessions[:count]) for count in (1, 2)]
    before = [results.measured(plan) for plan in plans]
    assert [results.measured(plan) for plan in plans] == before
    tested["doors"] = "other images"
    assert not {results.measured(plan) for plan in plans} & set(before)
