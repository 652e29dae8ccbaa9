"""What MLflow hears of a run's sessions, by which names and steps; no server and no store."""

from types import SimpleNamespace
from unittest.mock import MagicMock

import pytest

from condu_ray.config import Experiment
from condu_ray.orchestration.watch import recorder as module
from condu_ray.orchestration.watch.recorder import Recorder
from condu_ray.plan.results import SessionResult
from condu_ray.store.ledger import Entry
from condu_ray.store.measurements import Accuracy

METRICS = {"transfer": None, "average": 40.0, "last": 30.0}


@pytest.fixture
def opened(monkeypatch):
    """A recorder of a run of three tasks by two protocols, and what its tracker was told."""
    config, names = Experiment(run="r", protocol=("task", "union")), ("a", "b", "c")
    method = SimpleNamespace(method=SimpleNamespace(name="average", routes=False, one_model=True), sessions=names)
    results = SimpleNamespace(
        plan=SimpleNamespace(config=config, tasks=[SimpleNamespace(name=name) for name in names], methods=[method]),
        session=lambda *which: None,
        metrics=lambda method, protocol, sessions: METRICS | {"average": 10.0 * sessions},
        kept=lambda plan: {"bits": 2.0, "bits_changed": None},
    )
    monkeypatch.setattr(module, "Tracker", MagicMock())
    return Recorder(results)


def told(recorder):
    return [call.args for call in recorder.tracker.metrics.call_args_list]


def session(protocol, position=1, probes=()):
    found = {
        task: Accuracy(correct, 4, seconds, relative_l2=error)
        for task, correct, seconds, error in (("a", 1, 0.5, 0.25), ("b", 2, 0.25, 0.75), ("c", 4, 0.125, None))
    }
    seen = {probe: Accuracy(3, 4, 9.0) for probe in probes}
    return SessionResult("average", protocol, Entry(position, "b", "key", "", "state", 7.0), found, seen)


def test_a_session_is_told_of_with_its_number_from_one(opened):
    opened.session(session("task", probes=["birds"]))
    [(method, step, values)] = told(opened)
    assert (method, step) == ("average", 2)
    assert next(iter(values)) == "last"  # which MLflow's plots open with
    assert values == METRICS | {
        "average": 20.0, "mean_accuracy": pytest.approx(175 / 3), "evaluation_seconds": 0.875, "merge_seconds": 7.0,
        "task_accuracy/a": 25.0, "task_accuracy/b": 50.0, "task_accuracy/c": 100.0, "probe/birds": 75.0,
        "reconstruction/a": 0.25, "reconstruction/b": 0.75, "reconstruction/c": None,
    }  # fmt: skip


def test_what_other_protocols_say_is_named_by_them_and_has_no_merge(opened):
    opened.session(session("union"))
    [(_, _, values)] = told(opened)
    assert {name.partition("/")[0] for name in values} == {"union"}
    assert values["union/task_accuracy/b"] == 50.0
    assert not {"union/merge_seconds", "union/reconstruction/a"} & values.keys()


def test_the_end_is_told_of_with_the_last_number_by_every_protocol_and_closes_the_run(opened):
    opened.finish("report")
    assert told(opened) == [
        ("average", 3, METRICS | {"average": 30.0}),
        ("average", 3, {f"union/{name}": value for name, value in (METRICS | {"average": 30.0}).items()}),
        ("average", 3, {"bits": 2.0, "bits_changed": None}),
    ]
    opened.tracker.finish.assert_called_once_with("average", "report")
