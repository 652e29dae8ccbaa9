"""Probes: tasks that are never learned, measured after every session."""

import json
from dataclasses import replace

import pytest

from condu_ray import Experiment, open_run
from condu_ray.benchmark.tasks import TaskError
from condu_ray.command_line import ConfigError
from condu_ray.face.learning import evaluate
from condu_ray.learn.evaluate import Evaluator
from condu_ray.orchestration.run import from_storage
from condu_ray.orchestration.watch.lines import Lines
from condu_ray.orchestration.watch.progress import Display
from condu_ray.plan.changes import taught_again, with_new_tasks
from condu_ray.plan.preflight import check
from condu_ray.plan.run_plan import plan_run
from condu_ray.plan.stored_run import finished_run
from condu_ray.report import inspect_plots, style
from condu_ray.store import artifacts
from condu_ray.store.location import Location
from condu_ray.store.results import read_rows
from condu_ray.use.inspect import inspected
from condu_ray.vlm.model import load_backbone
from tests.benchmark.ingest.forms import class_folders
from tests.conftest import write_task
from tests.learnt import learn_here

METHODS = ("condu", "individual", "average")


@pytest.fixture(scope="module")
def config(tmp_path_factory, task_data, small_backbone):
    """A run of two tasks with a probe of each form, whole."""
    home = tmp_path_factory.mktemp("probes")
    write_task(home / "mine" / "gates", ("red", "blue"), 5)
    class_folders(home / "photos" / "birds")
    config = Experiment.model_validate({
        "method": METHODS, "data": task_data, "pretrained": str(small_backbone), "storage": home / "storage",
        "run": "r", "protocol": ("union", "task"), "training": {"precision": "fp32"}, "tracking": {"enabled": False},
        "tasks": ("walls", "doors"), "probe": (home / "mine", home / "photos"),
    })  # fmt: skip
    learn_here(config)
    return config


def test_each_session_is_measured_on_them_and_theta0_too(config):
    checked = check(config)
    found = open_run(config.storage, "r")
    assert finished_run(checked) is not None
    table = found.probes().set_index(["method", "session"])
    assert list(table.columns) == ["gates", "birds"]
    assert len(table) == 1 + 2 * len(METHODS)
    assert not table.isna().any().any()
    backbone = load_backbone(checked.spec)
    for probe in checked.probes:
        zero = evaluate(backbone, probe, precision="fp32").percent
        assert table.loc[("", 0), probe.name] == zero
        assert {table.loc[("individual", session), probe.name] for session in (1, 2)} == {zero}
        one = found.methods["average"]
        evaluator = Evaluator(load_backbone(checked.spec), batch_size=250)
        served = evaluator.known(probe, one.weights(one.state(1), probe.name)).percent
        assert table.loc[("average", 2), probe.name] == served


def test_they_are_no_tasks(config):
    found = open_run(config.storage, "r")
    assert list(found.matrix("condu").columns) == ["walls", "doors"]
    assert [entry.task for entry in found.methods["condu"].entries] == ["walls", "doors"]
    checked = check(config)
    without = check(config.model_copy(update={"probe": ()}))
    plans = [plan_run(one, "fp32").methods[0].sessions for one in (checked, without)]
    assert plans[0][-1].state == plans[1][-1].state
    assert (
        config.model_copy(update={"probe": ()}).content_hash()
        == Experiment(**(config.model_dump() | {"probe": ()})).content_hash()
    )


def test_the_report_the_rows_and_the_page_have_them(config, monkeypatch):
    for module in (style, inspect_plots):  # pictures are put together, and not drawn
        monkeypatch.setattr(module, "png", lambda figure: b"")
    lines = Lines()
    checked = check(config)
    results = from_storage(checked, Display(["walls", "doors"], 1, lines))
    assert results is not None
    probes = open_run(config.storage, "r").probes().set_index(["method", "session"])
    assert results["probes"] == probes.loc[("", 0)].to_dict()
    for method in METHODS:
        expected = {name: [probes.loc[(method, session), name] for session in (1, 2)] for name in probes.columns}
        assert results["methods"][method]["probes"] == expected
    text = artifacts.read_text(config.run_folder / "report" / "report.md")
    assert "## Probes" in text
    assert f"| birds | condu | {probes.loc[('', 0), 'birds']:.1f} |" in text
    rows = [row for row in read_rows(config.run_folder / "results") if row["task"] in probes.columns]
    assert {(row["protocol"], row["seen"]) for row in rows} == {("task", False)}
    assert len(rows) == 2 * 2 * len(METHODS)
    assert json.loads(json.dumps(results))
    assert "never learned" in inspected(open_run(config.storage, "r"), "condu", images=4)


def test_a_name_that_is_taken_is_refused(config, tmp_path):
    write_task(tmp_path / "walls", ("red", "blue"), 5)
    place = Location(tmp_path)
    with pytest.raises(TaskError, match=r"--probe .*: walls is the name of a task, which is read from .*walls; rename"):
        check(config.model_copy(update={"probe": (place,)}))
    with pytest.raises(TaskError, match="gates is the name of another probe"):
        check(config.model_copy(update={"probe": (*config.probe, *config.probe)}))


def test_a_probe_that_was_learned_is_taught_again(config, tmp_path, capsys):
    write_task(tmp_path / "gates", ("red", "blue"), 7)
    found = open_run(config.storage, "r")
    learned = check(with_new_tasks(found, ["gates"], None))
    change = taught_again(replace(found, plan=plan_run(learned, "fp32")), "gates", Location(tmp_path))
    capsys.readouterr()
    checked = check(change)
    assert [(one.name, one.folder.parent) for one in checked.tasks][-1] == ("gates", Location(tmp_path))
    assert [probe.name for probe in checked.probes] == ["birds"]
    said = " ".join(capsys.readouterr().out.split())
    assert "gates is learned, from" in said
    assert "and so no probe" in said


def test_a_probe_that_is_learned_is_a_task_from_then_on(config, tmp_path):
    """As `add` would have it, by its name alone or with its folder; the folder's other tasks stay probes."""
    for task, folder, left in (("gates", config.probe[0], ["birds"]), ("birds", config.probe[1], ["gates"])):
        found = open_run(config.storage, "r")
        change = with_new_tasks(found, [task], None)
        assert change == with_new_tasks(found, [task], folder)
        assert change.probe == config.probe
        checked = check(change)
        assert [one.name for one in checked.tasks] == ["walls", "doors", task]
        assert [probe.name for probe in checked.probes] == left
    write_task(tmp_path / "gates", ("red", "blue"), 7)
    with pytest.raises(ConfigError, match=r"--tasks gates: r has another gates as a probe, in .*mine; rename"):
        with_new_tasks(found, ["gates"], Location(tmp_path))
    both = check(with_new_tasks(found, ["birds", "gates"], None))
    assert ([one.name for one in both.tasks], both.probes) == (["walls", "doors", "birds", "gates"], ())
