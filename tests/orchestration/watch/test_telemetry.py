"""Telemetry: the registry's conventions, every call in the package, and that a run never feels it."""

import ast
import logging
import os
import re
import shutil
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest

from condu_ray.config import Experiment
from condu_ray.orchestration.watch import discovery as targets_module
from condu_ray.orchestration.watch import pulse as pulse_module
from condu_ray.orchestration.watch import telemetry
from condu_ray.orchestration.watch.meters import METRICS, TAGS
from condu_ray.orchestration.watch.pulse import Pulse, waiting_experts
from condu_ray.orchestration.watch.telemetry import MetricError

PACKAGE = Path(__file__).parents[3] / "condu_ray"
KINDS = {"inc": "counter", "busy": "counter", "gauge": "gauge", "observe": "histogram"}
RUN = {"run": "r"}


# The registry.


@pytest.mark.parametrize("metric", METRICS.values(), ids=list(METRICS))
def test_conventions(metric):
    assert re.fullmatch(r"condu_[a-z]+(_[a-z]+)*", metric.name)
    assert metric.name.endswith("_total") == (metric.kind == "counter")
    base = metric.name.removesuffix("_total")
    for unit in ("seconds", "bytes", "ratio"):
        assert base.endswith(f"_{unit}") == (metric.unit == unit), metric.unit
    assert not re.search(r"_(bucket|sum|count|minutes|percent|mb|ms)$", metric.name)
    assert (metric.kind == "histogram") == bool(metric.bounds)
    assert list(metric.bounds) == sorted(set(metric.bounds))
    assert all(bound > 0 for bound in metric.bounds)
    assert metric.kind == "gauge" or not metric.held
    assert metric.exported == f"ray_{metric.name}"


@pytest.mark.parametrize("metric", METRICS.values(), ids=list(METRICS))
def test_help_and_tags(metric):
    assert metric.description[0].isupper() or metric.description[0].isdigit()
    assert metric.description.endswith(".")
    assert 20 < len(metric.description) < 140
    assert "\n" not in metric.description
    assert len(set(metric.tags)) == len(metric.tags)
    assert metric.tags[0] == "run"  # a cluster may hold several runs
    assert set(metric.tags) <= set(TAGS)


def test_every_tag_is_used():
    assert {tag for metric in METRICS.values() for tag in metric.tags} == set(TAGS)


# The calls.


def calls():
    """All calls of telemetry in the package: place, function, name, tags that are written out, whether more follow."""
    for path in sorted(PACKAGE.rglob("*.py")):
        if "telemetry." not in (text := path.read_text()):  # parsing all takes each test process seconds
            continue
        for node in ast.walk(ast.parse(text)):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in KINDS):
                continue
            if not (isinstance(node.func.value, ast.Name) and node.func.value.id == "telemetry"):
                continue
            first = node.args[0]
            assert isinstance(first, ast.Constant), f"{path}:{node.lineno}: a metric's name is written out"
            tags = {keyword.arg for keyword in node.keywords if keyword.arg is not None}
            more = any(keyword.arg is None for keyword in node.keywords)
            yield f"{path.name}:{node.lineno}", node.func.attr, first.value, tags, more


@pytest.mark.parametrize(
    ("place", "function", "name", "tags", "more"),
    list(calls()),
    ids=lambda value: str(sorted(value) if isinstance(value, set) else value),
)
def test_a_call_fits_its_metric(place, function, name, tags, more):
    metric = METRICS[name]
    assert metric.kind == KINDS[function], place
    assert tags <= set(metric.tags), place
    assert more or tags == set(metric.tags), place


def test_every_metric_is_exported_somewhere():
    assert set(METRICS) - {name for _, _, name, _, _ in calls()} <= {"condu_trial_seconds"}  # by a sweep's trials


# How it behaves.


class Made:
    """Stands for Ray's metric objects."""

    def __init__(self, metric, log):
        self.metric, self.log = metric, log

    def record(self, value, tags):
        assert tuple(tags) == self.metric.tags
        assert all(isinstance(text, str) for text in tags.values())
        self.log.append((self.metric.name, value, tags))

    inc = set = observe = record


@pytest.fixture
def clean(monkeypatch):
    """Telemetry as in a new process, and a heart that beats only when it is told to."""
    for name, empty in (("_objects", {}), ("_held", {}), ("_failed", set())):
        monkeypatch.setattr(telemetry, name, empty)
    monkeypatch.setattr(telemetry, "_start", lambda: None)
    monkeypatch.setattr(telemetry, "_ray", lambda: None)


@pytest.fixture
def sent(clean, monkeypatch):
    """What goes out, with Ray up."""
    log = []
    monkeypatch.setattr(telemetry, "_ray", lambda: SimpleNamespace())
    monkeypatch.setattr(telemetry, "_make", lambda metric: Made(metric, log))
    return log


def test_numbers_go_out_by_their_names(sent):
    telemetry.inc("condu_faults_total", run="r", part="lane")
    telemetry.inc("condu_evaluator_busy_seconds_total", 2.5, **RUN)
    telemetry.gauge("condu_lanes_active", 1, lane=0, **RUN)
    telemetry.observe("condu_merge_seconds", 0.25, run="r", method="condu")
    assert sent == [
        ("condu_faults_total", 1.0, {"run": "r", "part": "lane"}),
        ("condu_evaluator_busy_seconds_total", 2.5, RUN),
        ("condu_lanes_active", 1.0, {"run": "r", "lane": "0"}),
        ("condu_merge_seconds", 0.25, {"run": "r", "method": "condu"}),
    ]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), None, "many"])
def test_what_is_no_number_is_left_out(sent, value):
    telemetry.gauge("condu_experts_wanted", value, **RUN)
    assert sent == []


def test_nothing_is_no_count(sent):
    telemetry.inc("condu_evaluator_busy_seconds_total", 0, **RUN)
    assert sent == []


@pytest.mark.parametrize(
    ("name", "tags", "kind", "words"),
    [
        ("condu_lost", RUN, None, "no metric 'condu_lost'"),
        ("condu_experts_wanted", RUN, "counter", "is a gauge, not a counter"),
        ("condu_experts_wanted", {}, None, "has the tags run, not none"),
        ("condu_lanes_active", RUN, None, "has the tags run, lane, not run"),
        ("condu_experts_wanted", {"run": "r", "task": "a"}, None, "has the tags run, not run, task"),
    ],
)
def test_wrong_use_is_found(name, tags, kind, words):
    with pytest.raises(MetricError, match=words):
        telemetry.check(name, tags, kind)


def test_wrong_use_is_not_felt_and_said_once(sent, caplog):
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            telemetry.inc("condu_lost", **RUN)
            telemetry.gauge("condu_lanes_active", 1, **RUN)
    assert sent == []
    assert [record.getMessage().split()[2] for record in caplog.records] == ["condu_lost", "condu_lanes_active"]


def test_an_exporter_that_fails_is_not_felt(clean, monkeypatch, caplog):
    monkeypatch.setattr(telemetry, "_ray", lambda: SimpleNamespace())
    monkeypatch.setattr(telemetry, "_make", lambda metric: (_ for _ in ()).throw(OSError("the agent is gone")))
    for _ in range(2):
        telemetry.gauge("condu_experts_wanted", 1, **RUN)
        assert telemetry.beat()
    assert len(caplog.records) == 1
    assert "the agent is gone" in caplog.text


def test_without_ray_nothing_is_made_or_remembered(clean):
    telemetry.gauge("condu_experts_wanted", 1, **RUN)
    telemetry.restarted("state", "r")
    assert telemetry._objects == telemetry._held == {}
    assert not telemetry.beat()


def test_ray_is_not_imported_for_it():
    import subprocess

    script = (
        "import sys\nfrom condu_ray.orchestration.watch import telemetry\n"
        "telemetry.gauge('condu_experts_wanted', 1, run='r')\nassert not telemetry.beat()\n"
        "sys.exit('ray' in sys.modules)\n"
    )
    assert subprocess.run([sys.executable, "-c", script], timeout=60, check=False).returncode == 0


def test_ray_that_is_half_imported_counts_as_absent(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace())
    assert telemetry._ray() is None


def test_the_heart_sets_held_gauges_again_and_no_others(sent):
    telemetry.gauge("condu_experts_wanted", 3, **RUN)
    telemetry.gauge("condu_experts_wanted", 2, **RUN)
    telemetry.gauge("condu_training_loss", 1.5, run="r", method="condu", task="a", lane=0)
    telemetry.inc("condu_faults_total", run="r", part="lane")
    sent.clear()
    assert telemetry.beat()
    assert sent == [("condu_experts_wanted", 2.0, RUN)]


def test_what_is_forgotten_is_not_set_again(sent):
    for run in ("a", "b"):
        telemetry.gauge("condu_experts_wanted", 1, run=run)
        telemetry.gauge("condu_lanes_active", 1, run=run, lane=0)
    telemetry.forget(run="a", lane="0")
    assert len(telemetry._held) == 3
    telemetry.forget(run="a")
    sent.clear()
    telemetry.beat()
    assert {tags["run"] for _, _, tags in sent} == {"b"}


def test_a_cluster_that_is_gone_takes_what_was_held_with_it(sent, monkeypatch):
    telemetry.gauge("condu_experts_wanted", 1, **RUN)
    monkeypatch.setattr(telemetry, "_ray", lambda: None)
    assert not telemetry.beat()
    assert telemetry._held == {}


def test_the_heart_beats_by_itself_and_stops_with_the_cluster(sent, monkeypatch):
    twice, up = threading.Event(), True
    monkeypatch.setattr(telemetry, "BEAT_SECONDS", 0.01)
    monkeypatch.setattr(telemetry, "_ray", lambda: SimpleNamespace() if up else None)
    monkeypatch.setattr(telemetry, "_record", lambda *_: twice.set() if len(sent) > 2 else sent.append(1))
    monkeypatch.setattr(telemetry, "_thread", None)
    telemetry._held["condu_experts_wanted", (("run", "r"),)] = 1.0
    thread = threading.Thread(target=telemetry._beat, daemon=True)
    thread.start()
    assert twice.wait(5)
    up = False
    thread.join(5)
    assert not thread.is_alive()


def test_busy_counts_what_fails_too(sent):
    with pytest.raises(KeyError), telemetry.busy("condu_evaluator_busy_seconds_total", **RUN):
        raise KeyError("x")
    assert sent[0][0] == "condu_evaluator_busy_seconds_total"
    assert sent[0][1] > 0


@pytest.mark.parametrize(("actor", "again", "faults"), [(None, True, 0), ("a", False, 0), ("a", True, 1)])
def test_only_an_actor_that_came_back_is_a_fault(sent, monkeypatch, actor, again, faults):
    context = SimpleNamespace(get_actor_id=lambda: actor, was_current_actor_reconstructed=again)
    monkeypatch.setattr(telemetry, "_ray", lambda: SimpleNamespace(get_runtime_context=lambda: context))
    telemetry.restarted("evaluator", "r")
    assert sent == [("condu_faults_total", 1.0, {"run": "r", "part": "evaluator"})] * faults


def test_every_metric_can_be_made_of_ray(monkeypatch):
    from ray.util import metrics

    made = []
    for kind in ("Counter", "Gauge", "Histogram"):
        monkeypatch.setattr(metrics, kind, lambda *arguments, kind=kind: made.append((kind, arguments)))
    for metric in METRICS.values():
        telemetry._make(metric)
    assert [arguments[0] for _, arguments in made] == list(METRICS)
    for (kind, arguments), metric in zip(made, METRICS.values(), strict=True):
        assert kind.lower() == metric.kind
        assert arguments[-1] == metric.tags
        assert kind != "Histogram" or arguments[2] == list(metric.bounds)


# The driver's pulse.


def sessions(*keys):
    return tuple(SimpleNamespace(expert=None if key is None else SimpleNamespace(key=key)) for key in keys)


def plan(*keys, name="condu"):
    return SimpleNamespace(method=SimpleNamespace(name=name), sessions=sessions(*keys))


@pytest.mark.parametrize(
    ("keys", "there", "merged", "waiting"),
    [
        ("abcd", "", 0, 0),
        ("abcd", "ab", 0, 2),
        ("abcd", "abd", 0, 2),  # d has to wait for c
        ("abcd", "abcd", 3, 1),
        ("abcd", "abcd", 4, 0),
        ((None, None), "", 0, 0),
    ],
)
def test_what_waits_for_its_merge(keys, there, merged, waiting):
    assert waiting_experts(plan(*keys), merged, there) == waiting


def test_the_pulse_tells_what_the_driver_sees(sent, tmp_path, monkeypatch):
    monkeypatch.setattr(pulse_module, "PULSE_SECONDS", 0.0)
    missing = [SimpleNamespace(key=key) for key in "bcd"]
    pulse = Pulse("r", tmp_path, 2, missing, [plan("a", "b")])
    pulse.beat({"step": 1}, {"a"}, {"condu": 0})
    pulse.beat({"step": 1}, {"a", "c"}, {"condu": 1})
    values = {}
    for name, value, _ in sent:
        values.setdefault(name.removeprefix("condu_"), []).append(value)
    assert values["cache_lookups_total"] == [2, 3]
    assert values["experts_wanted"] == [3]
    assert values["experts_done"] == [0, 1]
    assert values["sessions_wanted"] == [2]
    assert values["merge_queue_experts"] == [1, 0]
    assert len(values["last_progress_timestamp_seconds"]) == 1  # nothing had changed
    assert 0 < values["storage_free_ratio"][-1] < 1
    assert values["storage_free_bytes"][-1] == pytest.approx(shutil.disk_usage(tmp_path).free, rel=0.1)


def test_the_pulse_tells_of_trials_and_of_a_divergence(sent, tmp_path):
    pulse = Pulse("r", tmp_path, 0, [])
    sent.clear()
    pulse.trials(3, 1)
    pulse.diverged()
    assert sent == [
        ("condu_trials", 3.0, {"run": "r", "state": "finished"}),
        ("condu_trials", 1.0, {"run": "r", "state": "left"}),
        ("condu_diverged_total", 1.0, RUN),
    ]


def test_the_pulse_is_slow(sent, tmp_path):
    pulse = Pulse("r", tmp_path, 0, [])
    pulse.beat(1, ())
    sent.clear()
    pulse.beat(2, ())
    assert sent == []
    pulse.beat(2, (), now=True)
    assert sent != []


def test_storage_that_is_away_is_not_felt_and_said_once(sent, tmp_path, caplog):
    pulse = Pulse("r", tmp_path / "gone", 0, [])
    pulse.beat(1, ())
    pulse.beat(2, (), now=True)
    assert [record.getMessage()[:28] for record in caplog.records] == ["the run's pulse is not expor"]
    assert "condu_storage_free_bytes" not in {name for name, _, _ in sent}


# Where Prometheus finds a local run.

NODES = [
    {"NodeManagerAddress": "10.0.0.2", "MetricsExportPort": 8080, "Alive": True},
    {"NodeManagerAddress": "10.0.0.1", "MetricsExportPort": 8081, "Alive": True},
    {"NodeManagerAddress": "10.0.0.3", "MetricsExportPort": 8080, "Alive": False},
    {"NodeManagerAddress": "10.0.0.4", "MetricsExportPort": -1, "Alive": True},
]


def test_targets_are_the_nodes_that_export():
    assert targets_module.targets(NODES) == [{"labels": {"job": "ray"}, "targets": ["10.0.0.1:8081", "10.0.0.2:8080"]}]


def test_a_run_is_announced_while_it_lasts(tmp_path, monkeypatch):
    import json

    import ray

    socket = str(tmp_path / "session_1" / "sockets" / "raylet")
    monkeypatch.setattr(ray, "nodes", lambda: [NODES[0] | {"RayletSocketName": socket}])
    dead = tmp_path / "condu_ray_99999999.json"
    dead.write_text("[]")
    with targets_module.announced() as path:
        assert path == tmp_path / f"condu_ray_{os.getpid()}.json"
        assert path.match(targets_module.PATTERN)
        assert json.loads(path.read_text())[0]["targets"] == ["10.0.0.2:8080"]
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_cannot_be_announced_runs(monkeypatch, caplog):
    import ray

    monkeypatch.setattr(ray, "nodes", lambda: [])
    with targets_module.announced() as path:
        assert path is None
    assert "will not find this run" in caplog.text


# What a worker says.


@pytest.mark.parametrize("rank", [0, 1])
def test_a_worker_reports_now_and_then_and_leaves_no_step_out(sent, monkeypatch, rank):
    from condu_ray.learn.loop import Progress
    from condu_ray.orchestration.lanes import reporter as module
    from condu_ray.orchestration.lanes.lane import Lane
    from condu_ray.plan.expert import PlannedExpert

    told, clock = [], [100.0]
    board = SimpleNamespace(tell=SimpleNamespace(remote=lambda lane, word: told.append((lane, word.step))))
    monkeypatch.setattr(module.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(module.torch.cuda, "is_available", lambda: False)
    config = Experiment(run="r")
    lane, expert = Lane(3, config, None, {}, "fp32", 1, board), PlannedExpert(config, "condu", "a", 0, "key")
    report = module.reporter(lane, rank, expert)
    for step in range(1, 21):
        clock[0] += 0.1
        report(Progress(step, 20, 1.0 / step, 8, 80.0, 0.25))
    added = {}
    for name, value, tags in sent:
        assert tags == {"run": "r", "method": "condu", "task": "a", "lane": "3"}
        added.setdefault(name, []).append(value)
    assert sum(added["condu_training_images_total"]) == 160
    assert 3 <= len(added["condu_training_images_total"]) <= 6
    if rank == 0:
        assert sum(added["condu_training_steps_total"]) == 20
        assert added["condu_training_loss"][-1] == 1 / 20
        assert added["condu_data_wait_ratio"][-1] == 0.25
        assert told[-1] == (3, 20)
    else:
        assert set(added) == {"condu_training_images_total"}
        assert told == []


# What the state actor and the results say.


def test_a_commit_is_exported_once(sent, tmp_path):
    import torch

    from condu_ray.orchestration.state import ModelKeeper
    from condu_ray.plan.expert import PlannedExpert
    from condu_ray.plan.sessions import PlannedSession
    from condu_ray.store.experts import save_expert
    from condu_ray.store.ledger import ROOT

    config = Experiment(storage=tmp_path, run="r")
    save_expert(tmp_path, "key", {"w": torch.ones(4, 3)}, {})
    keeper = ModelKeeper(config)
    for _ in range(2):
        session = PlannedSession(0, "a", PlannedExpert(config, "condu", "a", 0, "key"), ROOT, "s")
        entry = keeper.merge("condu", session)
    tags = {"run": "r", "method": "condu"}
    assert sent[:2] == [("condu_sessions_committed_total", 1.0, tags), ("condu_merge_seconds", entry.seconds, tags)]
    assert sent[2][0] == "condu_unified_model_bytes"
    assert sent[2][1] > 4 * 3 * 4
    assert len(sent) == 3


def test_the_latest_session_is_what_accuracy_shows(sent):
    from condu_ray.orchestration.watch.recorder import Recorder
    from condu_ray.plan.results import SessionResult
    from condu_ray.store.ledger import Entry
    from condu_ray.store.measurements import Accuracy

    sessions, config = {}, Experiment(run="r", tracking={"enabled": False})
    results = SimpleNamespace(
        plan=SimpleNamespace(config=config, tasks=()),
        session=lambda method, space, position: sessions.get(position),
        metrics=lambda method, space, count: None,
    )
    recorder = Recorder(results)

    def complete(position, correct):
        sent.clear()
        found = {task: Accuracy(correct, 4, 0.1, relative_l2=correct / 8) for task in "ab"}
        sessions[position] = SessionResult("condu", "task", Entry(position, "a", None, "", "", 0.0), found)
        recorder.session(sessions[position])
        return [(name, value) for name, value, _ in sent if name != "condu_sessions_measured_total"]

    assert complete(1, 3) == [
        ("condu_accuracy_ratio", 0.75), ("condu_reconstruction_error_ratio", 0.375),
        ("condu_accuracy_ratio", 0.75), ("condu_reconstruction_error_ratio", 0.375),
    ]  # fmt: skip
    assert complete(0, 1) == []
    assert sent == [("condu_sessions_measured_total", 1.0, {"run": "r", "method": "condu", "space": "task"})]
