import logging
import threading
import time
from functools import partial
from unittest.mock import MagicMock

import pytest
from mlflow import MlflowClient

from condu_ray.config import Experiment, Tracking, Training, content_hash
from condu_ray.orchestration.trial import MLFLOW_SECONDS
from condu_ray.orchestration.watch import mlflow_patience, recorder, sweep_tracking, tracking
from condu_ray.orchestration.watch.mlflow_address import TrackingError, tracking_uri
from condu_ray.orchestration.watch.mlflow_experiment import IDENTITY, ended, log_params, open_experiment
from condu_ray.orchestration.watch.mlflow_patience import Patience
from condu_ray.orchestration.watch.sweep_tracking import MLFLOW_COMPLETE, Parent
from condu_ray.orchestration.watch.tracking import Tracker, flatten
from condu_ray.plan.trials import Trial


def test_settings_get_dotted_names():
    assert flatten({"a": 1, "b": {"c": 2, "d": {"e": 3}}, "f": {}}) == {"a": 1, "b.c": 2, "b.d.e": 3, "f": {}}


def test_a_dead_server_costs_a_warning_and_no_waiting(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "2")
    goes_on, tried = threading.Event(), []

    def held(*what):
        tried.append(goes_on.wait(60))
        return open_experiment(*what)

    monkeypatch.setattr(tracking, "open_experiment", held)
    tracker = Tracker(Experiment(storage=tmp_path, tracking=Tracking(uri="http://user:secret@127.0.0.1:9")), ["a"])
    tracker.start("condu", "state")
    for session in range(1000):
        tracker.metrics("condu", session, {"last": 1.0})
    assert tried == []  # all of it was queued while the server had not answered yet
    goes_on.set()
    with caplog.at_level(logging.WARNING):
        tracker.close(timeout=60)
    ours = [record.getMessage() for record in caplog.records if record.name.startswith("condu_ray")]
    assert len(ours) == 1
    assert "MLflow at http://127.0.0.1:9" in ours[0]
    assert "secret" not in ours[0]


def test_the_end_does_not_come_between_a_dead_server_and_its_warning(tmp_path, monkeypatch, caplog):
    says, warn = threading.Event(), Tracker._warn

    def slowly(tracker, why):
        says.set()
        time.sleep(0.3)
        warn(tracker, why)

    monkeypatch.setattr(Tracker, "_warn", slowly)
    tracker = Tracker(Experiment(storage=tmp_path, tracking=Tracking(uri="http://127.0.0.1:9")), ["a"])
    tracker.start("condu", "state")
    assert says.wait(60)
    with caplog.at_level(logging.WARNING):
        tracker.close()
    [told] = [record.getMessage() for record in caplog.records if record.name.startswith("condu_ray")]
    assert "no server answers there" in told


@pytest.mark.usefixtures("own_store")
def test_what_a_server_missed_that_went_away_is_sent_when_it_answers_again(tmp_path, monkeypatch, caplog):
    away = threading.Event()
    monkeypatch.setattr(tracking, "unreachable", lambda uri: "no server answers there" if away.is_set() else None)
    monkeypatch.setattr(tracking, "AGAIN_SECONDS", 0.01)
    (tmp_path / "report").mkdir()
    tracker = started(Experiment(storage=tmp_path, run="r"))
    send = tracker._metrics

    def gone(*what):  # in the midst of a request
        monkeypatch.setattr(tracker, "_metrics", send)
        away.set()
        raise ConnectionResetError

    monkeypatch.setattr(tracker, "_metrics", gone)
    with caplog.at_level(logging.WARNING):
        for session in (1, 2):
            tracker.metrics("condu", session, {"last": float(session)})
        tracker.finish("condu", tmp_path / "report")
        while not caplog.text:
            time.sleep(0.01)
        away.clear()
        tracker.close()
    assert tracker.complete
    assert caplog.text.count("WARNING") == 1
    assert "is sent when it answers again" in caplog.text
    client, _ = open_experiment(Experiment(storage=tmp_path))
    assert [one.value for one in client.get_metric_history(tracker.run_id("condu"), "last")] == [1.0, 2.0]
    assert client.get_run(tracker.run_id("condu")).info.status == "FINISHED"


@pytest.mark.usefixtures("own_store")
def test_the_end_waits_for_no_server_that_went_away_and_says_how_what_it_missed_is_sent(tmp_path, monkeypatch, caplog):
    tracker, tries, goes_on = started(Experiment(storage=tmp_path, run="r")), threading.Event(), threading.Event()
    monkeypatch.setattr(tracking, "LOOK_SECONDS", 0.1)

    def sent(*what):  # MLflow's client tries for minutes
        tries.set()
        goes_on.wait(60)

    monkeypatch.setattr(tracker, "_metrics", sent)
    tracker.metrics("condu", 1, {"last": 1.0})
    tries.wait(60)
    monkeypatch.setattr(tracking, "unreachable", lambda uri: "no server answers there")
    begin = time.monotonic()
    with caplog.at_level(logging.WARNING):
        tracker.close()
    assert time.monotonic() - begin < 10
    goes_on.set()
    assert not tracker.complete
    assert "no server answers there; the last entries may be missing" in caplog.text
    assert "--sync-mlflow" in caplog.text


@pytest.fixture
def fails(monkeypatch):
    """A server that answers, and fails at what it is to write while the event is set: MLflow's client tries on."""
    monkeypatch.setattr(mlflow_patience, "QUIET_SECONDS", 1.5)
    monkeypatch.setattr(mlflow_patience, "SHORT_SECONDS", 0.1)
    monkeypatch.setattr(tracking, "LOOK_SECONDS", 0.1)
    failing, over = threading.Event(), threading.Event()

    def write(client, *what, **more):
        if failing.is_set():
            over.wait(60)
            raise ConnectionError("503")
        return MagicMock()

    client = MagicMock()
    client.search_runs.return_value = []
    for name in ("create_run", "log_batch", "log_artifact", "set_terminated", "set_tag", "update_run"):
        getattr(client, name).side_effect = partial(write, client)
    for module in (tracking, sweep_tracking):
        monkeypatch.setattr(module, "open_experiment", lambda *what: (client, "1"))
    monkeypatch.setattr(tracking, "unreachable", lambda uri: None)
    yield failing
    over.set()


def told(tmp_path, seconds):
    """Logs a run that finishes; returns whether all was taken, and how long the end waited, at most some seconds."""
    config = Experiment(storage=tmp_path, tracking=Tracking(uri="http://127.0.0.1:9"))
    tracker = Tracker(config, ["a"])
    tracker.start("condu", "state")
    tracker.metrics("condu", 1, {"last": 1.0})
    tracker.finish("condu", tmp_path)
    begin = time.monotonic()
    tracker.close(timeout=seconds)
    return tracker.complete, time.monotonic() - begin


def test_a_server_that_fails_at_what_it_is_to_write_is_waited_for_once_and_not_for_long(tmp_path, fails):
    """Each trial of a sweep would wait ten seconds for it, and the end of a run a minute."""
    fails.set()
    complete, seconds = told(tmp_path, 60)
    assert (complete, seconds < 30) == (False, True)
    for _ in range(3):
        complete, seconds = told(tmp_path, 60)
        assert (complete, seconds < 1.4) == (False, True)
    fails.clear()
    assert told(tmp_path, 60)[0]
    assert not Patience("http://127.0.0.1:9").short  # it was well meanwhile


def test_a_server_that_was_away_for_long_and_is_back_at_the_end_is_waited_for(tmp_path, fails, monkeypatch):
    away = threading.Event()
    away.set()
    monkeypatch.setattr(mlflow_patience, "QUIET_SECONDS", 2.0)  # more than a busy machine needs for a thing
    monkeypatch.setattr(tracking, "AGAIN_SECONDS", 2.5)
    monkeypatch.setattr(tracking, "unreachable", lambda uri: "no server answers there" if away.is_set() else None)
    tracker = Tracker(Experiment(storage=tmp_path, tracking=Tracking(uri="http://127.0.0.1:9")), ["a"])
    tracker.start("condu", "state")
    tracker.finish("condu", tmp_path)
    time.sleep(0.1)
    away.clear()
    tracker.close()
    assert tracker.complete


def test_what_a_server_has_refused_is_warned_of_once(tmp_path, fails, monkeypatch, caplog):
    """Though that the run failed is not taken either, which MLflow's client tries for minutes."""
    goes_on = threading.Event()
    monkeypatch.setattr(mlflow_patience, "QUIET_SECONDS", 0.1)
    monkeypatch.setattr(Tracker, "_fail", lambda tracker, status: goes_on.wait(60))
    monkeypatch.setattr(Tracker, "_metrics", lambda *what: 1 / 0)
    tracker = Tracker(Experiment(storage=tmp_path, tracking=Tracking(uri="http://127.0.0.1:9")), ["a"])
    with caplog.at_level(logging.WARNING):
        tracker.start("condu", "state")
        tracker.metrics("condu", 1, {"last": 1.0})
        while not caplog.text:
            time.sleep(0.01)
        tracker.close()
    goes_on.set()
    assert not tracker.complete
    assert [one.getMessage() for one in caplog.records if "missing" in one.getMessage()] == [
        "MLflow at http://127.0.0.1:9: division by zero; what is missing is sent by `condu-ray report NAME "
        "--sync-mlflow`; results are in the run's folder all the same"
    ]


def test_a_sweep_gives_up_a_server_that_fails_at_what_it_is_to_write_and_its_trials_tell_it_nothing(tmp_path, fails):
    fails.set()
    begin = time.monotonic()
    with Parent(Experiment(storage=tmp_path, tracking=Tracking(uri="http://127.0.0.1:9")), {}, []) as parent:
        assert (parent.run, parent.complete) == (None, False)
        parent.finish({}, tmp_path)
        assert not told(tmp_path, 60)[0]
    assert time.monotonic() - begin < 30


@pytest.mark.usefixtures("own_store")
def test_a_sweep_that_was_killed_before_its_parameters_were_logged_has_them_by_its_next_call(tmp_path, monkeypatch):
    config = Experiment(storage=tmp_path, run="orders")

    def killed(*what):
        raise OSError

    with monkeypatch.context() as patched:
        patched.setattr(sweep_tracking, "log_params", killed)
        Parent(config, {"orders": "3"}, []).__enter__()
    with Parent(config, {"orders": "3"}, []) as parent:
        pass
    with Parent(config, {"orders": "given"}, []) as again:  # as it is sent later: what is there stays
        assert (again.run, again.complete) == (parent.run, True)
    client, experiment = open_experiment(config)
    assert [run.data.params for run in client.search_runs([experiment])] == [{"orders": "3"}]


def test_a_sweep_waits_but_briefly_for_a_server_that_hangs(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(sweep_tracking, "OPEN_SECONDS", 0.1)
    monkeypatch.setattr(sweep_tracking, "open_experiment", lambda *what: time.sleep(30))
    config = Experiment(storage=tmp_path, tracking=Tracking(uri="http://127.0.0.1:9"))
    begin = time.monotonic()
    with caplog.at_level(logging.WARNING), Parent(config, {}, []) as parent:
        assert time.monotonic() - begin < 10
    assert (parent.run, parent.complete) == (None, False)
    assert "MLflow at http://127.0.0.1:9: is slow" in caplog.text


def test_the_end_waits_for_mlflow_as_long_as_it_was_told(monkeypatch):
    """A trial's end but briefly: there are many of them, and the sweep sends what is missing."""
    monkeypatch.setattr(recorder, "Tracker", MagicMock())
    with recorder.Recorder(MagicMock(), patience=MLFLOW_SECONDS) as opened:
        pass
    opened.tracker.close.assert_called_once_with(MLFLOW_SECONDS)
    assert MLFLOW_SECONDS < tracking.CLOSE_SECONDS / 4


@pytest.mark.usefixtures("own_store")
def test_a_run_that_a_server_makes_when_nobody_waits_any_more_is_no_second_one(tmp_path, monkeypatch):
    """Who sends what is missing has made another meanwhile."""
    make, asked, goes_on = tracking.create_run, threading.Event(), threading.Event()

    def late(*what):
        asked.set()
        goes_on.wait(60)
        return make(*what)

    config = Experiment(storage=tmp_path)
    open_experiment(config)
    with monkeypatch.context() as patched:
        patched.setattr(tracking, "create_run", late)
        tracker = Tracker(config, ["a"])
        tracker.start("condu", "state")
        assert asked.wait(60)
        tracker.close(timeout=0.1)
    client, run = finished(tmp_path)
    goes_on.set()
    tracker._thread.join(60)
    assert not tracker.complete
    assert [one.info.run_id for one in client.search_runs([run.info.experiment_id])] == [run.info.run_id]


@pytest.mark.usefixtures("own_store")
def test_a_sweep_that_is_sent_again_has_each_of_its_numbers_once_and_shows_the_latest(tmp_path, monkeypatch):
    (tmp_path / "report").mkdir()
    config, now = Experiment(storage=tmp_path, run="orders"), time.time_ns()
    for last, hours in ((2.0, 0), (2.0, 1), (1.0, -1)):  # a clock may be set back
        monkeypatch.setattr(sweep_tracking.time, "time_ns", lambda hours=hours: now + hours * 3_600_000_000_000)
        with Parent(config, {}, []) as parent:
            parent.finish({"last/condu": last, "last_std/condu": 0.5}, tmp_path / "report")
    client, _ = open_experiment(config)
    found = client.get_run(parent.run)
    assert (found.info.status, found.data.metrics) == ("FINISHED", {"last/condu": 1.0, "last_std/condu": 0.5})
    points = {key: [one.value for one in client.get_metric_history(parent.run, key)] for key in found.data.metrics}
    assert points == {"last/condu": [2.0, 1.0], "last_std/condu": [0.5]}


@pytest.mark.usefixtures("own_store")
def test_a_sweep_says_of_how_many_of_its_trials_mlflow_has_not_heard_all(tmp_path, caplog):
    parent = Parent(Experiment(storage=tmp_path, run="orders"), {}, [])
    records = [{MLFLOW_COMPLETE: True}, {}, {MLFLOW_COMPLETE: False}]  # an earlier release said nothing of it

    def refused():
        raise TrackingError("nobody is there")

    with caplog.at_level(logging.WARNING):
        parent.heard(records[:2], refused)
        assert (parent.complete, caplog.text) == (True, "")
        parent.heard(records, lambda: None)
        assert (parent.complete, caplog.text) == (True, "")
        parent.heard(records, refused)
    assert not parent.complete
    assert "has not heard all of 1 trials" in caplog.text
    assert "`condu-ray report orders --sync-mlflow` sends what is missing" in caplog.text


def test_tracking_switched_off_makes_no_store(tmp_path):
    tracker = Tracker(Experiment(storage=tmp_path, tracking=Tracking(enabled=False)), ["a"])
    tracker.start("condu", "state")
    tracker.close()
    assert list(tmp_path.iterdir()) == []


def logged(tmp_path, *, labels=None, end="close"):
    """The runs that MLflow shows after one method was logged and ended in a way."""
    from mlflow import MlflowClient

    config = Experiment(storage=tmp_path, run="r")
    open_experiment(config)  # a new store takes seconds, and what fails waits but briefly
    tracker = Tracker(config, ["a", "b"], labels=labels)
    tracker.start("condu", "state")
    tracker.metrics("condu", 1, {"last": 1.0})
    if end == "finish":
        (tmp_path / "report").mkdir(exist_ok=True)
        tracker.finish("condu", tmp_path / "report")
    tracker.fail("FAILED") if end == "fail" else tracker.close()
    client = MlflowClient(tracking_uri(config))
    return client.search_runs([client.get_experiment_by_name("condu_ray").experiment_id])


def test_a_run_that_failed_says_so_and_is_replaced_by_the_next(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (failed,) = logged(tmp_path, end="fail")
    assert failed.info.status == "FAILED"
    (done,) = logged(tmp_path, end="finish")
    assert done.info.status == "FINISHED"
    assert done.info.run_id != failed.info.run_id
    (still,) = logged(tmp_path, end="fail")  # found finished: nothing of it changes
    assert (still.info.run_id, still.info.status) == (done.info.run_id, "FINISHED")


def test_trials_of_a_sweep_differ_only_in_what_it_varies(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    labels = {"method": "condu", "order_name": "random-01", "seed": "0", "training.lr": "0.001"}
    (run,) = logged(tmp_path, labels=labels, end="finish")
    assert run.info.run_name == "condu, random-01, seed 0, training.lr=0.001"
    assert labels.items() <= run.data.params.items()
    assert not {"order", "tasks", "run"} & set(run.data.params)
    assert (run.data.tags["order"], run.data.tags["run"]) == ("a,b", "r")


def finished(storage, tasks=None, **tracking):
    """Logs a run that finishes, with a report; returns a client of its store and the run."""
    from mlflow import MlflowClient

    config = Experiment(storage=storage, tasks=tasks, tracking=Tracking(**tracking))
    tracker = Tracker(config, ["a"])
    tracker.start("condu", "state")
    (storage / "report").mkdir(parents=True, exist_ok=True)
    (storage / "report" / "report.md").write_text("all is well")
    tracker.finish("condu", storage / "report")
    tracker.close()
    client = MlflowClient(tracking_uri(config))
    return client, client.get_run(tracker.run_id("condu"))


@pytest.mark.usefixtures("own_store")
@pytest.mark.parametrize("name", ["a?b #%41 c", "100%", "größe", "a&b=c;d@e:f", "x'y"])
def test_any_sign_may_be_in_the_storage_folders_name(tmp_path, name):
    client, run = finished(tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert sorted(path.name for path in (tmp_path / name).iterdir()) == ["mlartifacts", "mlflow.db", "report"]
    assert len(list((tmp_path / name / "mlartifacts").rglob("report.md"))) == 1
    assert [file.path for file in client.list_artifacts(run.info.run_id, "report")] == ["report/report.md"]


def shared(tmp_path, who, **fields):
    """Settings of one of those who share a server, each with a storage folder of their own."""
    return Experiment(storage=tmp_path / who, tracking=Tracking(uri=f"sqlite:///{tmp_path}/shared.db"), **fields)


def started(config, measured=""):
    """A run's tracker, whose first method is open in MLflow."""
    tracker = Tracker(config, ["a"])
    tracker.start("condu", "state", measured)
    while tracker.run_id("condu") is None:
        time.sleep(0.01)
    return tracker


def test_a_run_leaves_the_living_run_of_the_same_settings_in_another_storage_alone(tmp_path):
    (tmp_path / "report").mkdir()
    first, second = started(shared(tmp_path, "one")), started(shared(tmp_path, "two"))
    again = started(shared(tmp_path, "two"))  # the second was killed, and said nothing
    first.metrics("condu", 1, {"last": 1.0, "transfer": None, "backward_transfer": float("nan")})
    first.finish("condu", tmp_path / "report")
    first.close()
    client, experiment = open_experiment(shared(tmp_path, "one"))
    runs = {run.info.run_id: run for run in client.search_runs([experiment])}
    assert first.complete
    assert set(runs) == {first.run_id("condu"), again.run_id("condu")}
    assert runs[first.run_id("condu")].data.metrics == {"last": 1.0}
    for tracker in (second, again):
        tracker.close()


def test_sweeps_of_one_name_in_two_storages_are_two_runs_of_a_server(tmp_path):
    def opened(who, orders, read=(), **fields):
        config = shared(tmp_path, who, run="lr", **fields)
        trials = [Trial(f"t{n}", "condu", f"order-{n}", ("a", "b"), 0, {}) for n in range(orders)]
        with Parent(config, {"orders": str(orders), "methods": "condu"}, trials, dict(read)) as parent:
            return parent.run

    client, experiment = open_experiment(shared(tmp_path, "one"))
    old = client.create_run(experiment, tags={IDENTITY: "sweep/lr"}).info.run_id  # as an earlier release made it
    log_params(client, old, {"orders": "3", "methods": "condu"})
    assert opened("two", 12) != old
    assert opened("one", 3) == old
    assert opened("moved", 3) == old
    assert opened("three", 3, training={"steps": 7}) != old
    assert len(client.search_runs([experiment])) == 3
    read = {"backbone": "theta0", "tasks": {"a": "1"}}
    assert opened("one", 3, read=read) == old  # an earlier release said nothing of it
    assert opened("moved", 3, read=read) == old
    assert opened("four", 3, read=read | {"tasks": {"a": "other images"}}) != old


@pytest.mark.usefixtures("own_store")
@pytest.mark.parametrize(("first", "second"), [(None, ("a",)), (("a",), None)])
def test_a_run_is_the_same_whether_its_tasks_are_named_or_are_all_there_are(tmp_path, first, second):
    """A command may name none, and what it leaves in storage, by which it is sent later, has them by name."""
    client, run = finished(tmp_path, first)
    assert finished(tmp_path, second)[1].info.run_id == run.info.run_id
    client.update_run(run.info.run_id, status="RUNNING")  # as where the server went away before the end
    finished(tmp_path, second)
    assert [one.info.status for one in client.search_runs([run.info.experiment_id])] == ["FINISHED"]


@pytest.mark.usefixtures("own_store")
def test_an_interrupted_run_that_goes_on_with_other_settings_of_no_result_is_no_second_one(tmp_path):
    """Such as more lanes: what it makes is the same, and so are its folder, experts and accuracies."""
    freely = {
        "keep_sessions": "last", "on_mismatch": "warn", "merging": {"shards": 2},
        "evaluation": {"batch_size": 50, "evaluators": 2},
        "training": {"lanes": 4, "workers": 2, "threads": 2, "max_failures": 9, "checkpoint_minutes": 1.0},
    }  # fmt: skip
    killed = started(Experiment(storage=tmp_path, run="r"))
    tracker = started(Experiment.model_validate({"storage": tmp_path, "run": "r", **freely}))
    (tmp_path / "report").mkdir()
    tracker.finish("condu", tmp_path / "report")
    for one in (tracker, killed):
        one.close()
    client, experiment = open_experiment(Experiment(storage=tmp_path))
    found = {run.info.run_id: run.info.status for run in client.search_runs([experiment])}
    assert found == {tracker.run_id("condu"): "FINISHED"}
    again = started(Experiment(storage=tmp_path, run="r"))
    again.close()
    assert again.run_id("condu") == tracker.run_id("condu")
    other = started(Experiment(storage=tmp_path, run="r", seed=1))
    other.close()
    assert len(client.search_runs([experiment])) == 2


@pytest.mark.usefixtures("own_store")
def test_the_same_weights_on_other_test_images_are_another_run(tmp_path):
    """Those of a task that were mended where they lie: MLflow would go on to show what was measured before."""
    (tmp_path / "report").mkdir()
    kept = []
    for measured, last in (("first", 50.0), ("mended", 60.0), ("mended", 60.0)):
        tracker = started(Experiment(storage=tmp_path, run="r"), measured)
        tracker.metrics("condu", 1, {"last": last})
        tracker.finish("condu", tmp_path / "report")
        tracker.close()
        kept.append(tracker.run_id("condu"))
    assert kept[0] != kept[1] == kept[2]
    client, _ = open_experiment(Experiment(storage=tmp_path))
    runs = [client.get_run(run) for run in kept[:2]]
    assert [run.data.metrics["last"] for run in runs] == [50.0, 60.0]
    assert [run.info.run_name for run in runs] == ["r/condu", "r/condu (2)"]


def test_what_was_trained_elsewhere_by_other_workers_is_another_run(tmp_path):
    """Its bits are others, though its experts have the same names."""
    (tmp_path / "report").mkdir()
    kept = []
    for who, threads in (("one", 1), ("two", 2), ("moved", 2)):
        tracker = started(shared(tmp_path, who, run="r", training={"threads": threads}))
        tracker.finish("condu", tmp_path / "report")
        tracker.close()
        kept.append(tracker.run_id("condu"))
    assert kept[0] != kept[1] == kept[2]


@pytest.mark.usefixtures("own_store")
@pytest.mark.parametrize("status", ["FINISHED", "KILLED"])
def test_a_run_that_an_earlier_release_logged_is_found(tmp_path, status):
    """By all of its settings, as they were given."""
    config = Experiment(storage=tmp_path, run="r", training=Training(lanes=2))
    given = config.identity(exclude={"method", "tracking", "cluster", "storage"})
    tag = content_hash(["condu", "state", ["a"], given])[:24]
    client, experiment = open_experiment(config)
    old = client.create_run(experiment, tags={IDENTITY: tag, "storage": str(tmp_path)}).info.run_id
    client.set_terminated(old, status)
    tracker = started(config)
    tracker.close()
    assert [run.info.run_id for run in client.search_runs([experiment])] == [tracker.run_id("condu")]
    assert (tracker.run_id("condu") == old) == (status == "FINISHED")


@pytest.mark.usefixtures("own_store")
def test_artifacts_go_and_are_found_where_the_storage_was_moved_to(tmp_path):
    _, first = finished(tmp_path / "before")
    (tmp_path / "before").rename(tmp_path / "now")
    before = Experiment(storage=tmp_path / "now", seed=1)
    tracker = Tracker(before, ["a"])
    tracker.start("condu", "state")
    tracker.finish("condu", tmp_path / "now" / "report")
    tracker.close()
    assert not (tmp_path / "before").exists()
    client, _ = finished(tmp_path / "now")
    for run in (first.info.run_id, tracker.run_id("condu")):
        assert [file.path for file in client.list_artifacts(run, "report")] == ["report/report.md"]
        assert client.get_run(run).info.artifact_uri.startswith((tmp_path / "now" / "mlartifacts").as_uri())
    assert len(list((tmp_path / "now" / "mlartifacts").rglob("report.md"))) == 2


@pytest.mark.usefixtures("own_store")
def test_an_experiment_that_was_deleted_says_how_to_restore_it(tmp_path, caplog):
    client, run = finished(tmp_path)
    client.delete_experiment(run.info.experiment_id)
    tracker = Tracker(Experiment(storage=tmp_path), ["a"])
    tracker.start("condu", "state")
    with caplog.at_level(logging.WARNING):
        tracker.close()
    (line,) = [record.getMessage() for record in caplog.records if record.name.startswith("condu_ray")]
    for word in (
        "'condu_ray' was deleted", f"mlflow experiments restore --experiment-id {run.info.experiment_id}",
        f"MLFLOW_TRACKING_URI='sqlite:///{tmp_path}/mlflow.db'", "--tracking.experiment", "in the run's folder",
    ):  # fmt: skip
        assert word in line


@pytest.mark.usefixtures("own_store")
def test_a_run_whose_making_was_answered_at_the_second_try_alone_is_there_once(tmp_path, monkeypatch):
    create = MlflowClient.create_run

    def again(client, experiment, **more):
        create(client, experiment, **more)  # its answer is lost, and MLflow's client asks again by itself
        return create(client, experiment, **more)

    monkeypatch.setattr(MlflowClient, "create_run", again)
    client, run = finished(tmp_path)
    with Parent(Experiment(storage=tmp_path, run="sweep"), {}, []) as parent:
        found = {one.info.run_id: one.info.status for one in client.search_runs([run.info.experiment_id])}
    assert found == {run.info.run_id: "FINISHED", parent.run: "RUNNING"}


@pytest.mark.usefixtures("own_store")
def test_a_run_of_which_mlflow_has_refused_something_is_not_at_work_for_ever(tmp_path, monkeypatch, caplog):
    def full(client, run, file, place):
        raise OSError(28, "No space left on device")

    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "report.md").write_text("# r")
    config = Experiment(storage=tmp_path)
    tracker = Tracker(config, ["a"])
    with monkeypatch.context() as patched, caplog.at_level(logging.WARNING):
        patched.setattr(MlflowClient, "log_artifact", full)
        tracker.start("condu", "state")
        tracker.finish("condu", tmp_path / "report")
        tracker.close()
    assert "No space left on device; what is missing is sent by `condu-ray report NAME --sync-mlflow`" in caplog.text
    client, experiment = open_experiment(config)
    assert [run.info.status for run in client.search_runs([experiment])] == ["FAILED"]
    assert not tracker.complete
    finished(tmp_path)
    assert [run.info.status for run in client.search_runs([experiment])] == ["FINISHED"]


@pytest.mark.usefixtures("own_store")
@pytest.mark.parametrize(("error", "status"), [(ValueError(), "FAILED"), (KeyboardInterrupt(), "KILLED")])
def test_what_a_run_and_a_sweep_with_its_trials_end_as(tmp_path, error, status):
    config = Experiment(storage=tmp_path, run="sweep")
    parent = Parent(config, {}, [])
    trial = Tracker(config, ["a"], parent.__enter__().run)
    trial.start("condu", "state")
    own = Tracker(config, ["a"])
    own.start("condu", "state")
    own.fail(ended(error))
    while trial.run_id("condu") is None:
        time.sleep(0.01)
    parent.__exit__(type(error), error, None)
    trial.fail("FAILED")  # it hears only then that there is no cluster any more
    client, experiment = open_experiment(config)
    assert [run.info.status for run in client.search_runs([experiment])] == [status] * 3
