"""Opening runs that storage holds, finished or not; and a run and a sweep from a notebook."""

import json
import re
import shutil
import sys
from copy import copy
from pathlib import Path

import pandas as pd
import pytest
import torch

import condu_ray
from condu_ray import Accuracy, Experiment, load_backbone, load_tasks, open_run, open_sweep
from condu_ray.command_line import ConfigError
from condu_ray.face.settings import changed
from condu_ray.methods import METHODS
from condu_ray.metrics import continual_metrics
from condu_ray.orchestration.state import ModelKeeper
from condu_ray.plan.preflight import check
from condu_ray.plan.results import Results
from condu_ray.plan.run_plan import plan_run
from condu_ray.plan.stored_run import finished_run
from condu_ray.store.artifacts import ArtifactError, write_text
from condu_ray.store.experts import save_expert
from condu_ray.store.layout import config_path, ledger_path, record_path, sweep_config_path, sweep_folder
from condu_ray.store.ledger import read_entries
from condu_ray.store.location import Location
from condu_ray.store.measurements import write_measurement

TASKS = ["walls", "doors", "cars"]


class Written:
    """A run's folder, made by hand: experts of noise, sessions by the state actor, measurements by a formula."""

    METHODS = ("condu", "individual")

    def __init__(self, storage, data, backbone):
        self.storage, self.backbone, self.tasks = storage, load_backbone(pretrained=str(backbone)), load_tasks(data)
        self.config = Experiment(
            method=self.METHODS, data=data, pretrained=str(backbone), storage=storage, run="r", label_space="union"
        )
        write_text(config_path(self.config.run_folder), self.config.model_dump_json(exclude={"storage"}))
        self.deltas = {
            task.name: {name: torch.randn_like(tensor) for name, tensor in self.backbone.snapshot().items()}
            for task in self.tasks
        }

    def accuracy(self, unit):
        """Correct of 100 images."""
        return 10 * unit.entry.position + TASKS.index(unit.task) + 50 * unit.seen + (unit.protocol == "union")

    def sessions(self, method, count, precision="fp32"):
        """Commits some sessions; returns their measurements."""
        run = plan_run(check(self.config), precision)
        plan = next(one for one in run.methods if one.method.name == method)
        keeper, wanted = ModelKeeper(self.config.absolute()), []
        for session in plan.sessions[:count]:
            save_expert(self.storage, session.expert.key, self.deltas[session.task], {"task": session.task})
            wanted += Results(run).measurements(plan, keeper.merge(method, session))
        return wanted

    def measure(self, units):
        for unit in units:
            error = {"relative_l2": 0.5, "sign_agreement": 0.75, "rescaler": 2.0}
            found = error if unit.method == "condu" and unit.seen else {}
            write_measurement(self.storage, unit.key, Accuracy(self.accuracy(unit), 100, 1.0, **found))


@pytest.fixture
def written(tmp_path, task_data, small_backbone):
    return Written(tmp_path, task_data, small_backbone)


@pytest.fixture(scope="module")
def whole(tmp_path_factory, task_data, small_backbone):
    """A finished one, which tests read."""
    written = Written(tmp_path_factory.mktemp("whole"), task_data, small_backbone)
    for method in Written.METHODS:
        written.measure(written.sessions(method, 3))
    return written


@pytest.fixture
def copied(whole, tmp_path):
    """A copy of it."""
    made = copy(whole)
    made.storage = shutil.copytree(whole.storage, tmp_path / "storage")
    made.config = whole.config.model_copy(update={"storage": Location(made.storage)})
    return made


class TestFinished:
    @pytest.fixture
    def written(self, whole):
        return whole

    @pytest.fixture(scope="class")
    def finished(self, whole):
        return open_run(whole.storage, "r")

    def test_the_matrix_has_a_row_a_session(self, finished):
        matrix = finished.matrix("condu")
        assert list(matrix.index) == list(matrix.columns) == TASKS
        expected = [[10 * s + t + 50 * (t <= s) for t in range(3)] for s in range(3)]
        assert matrix.to_numpy().tolist() == expected
        assert (finished.matrix("condu", "union").to_numpy() == matrix.to_numpy() + 1).all()
        assert finished.complete

    def test_rows_have_every_measurement(self, finished):
        rows = finished.rows()
        assert len(rows) == 9 * 3  # individual wants the task's identity, so it has no union
        row = rows[(rows.method == "condu") & (rows.session == 1) & (rows.task == "walls")].iloc[0]
        assert (row.learned_task, row.task_position, row.seen, row.protocol) == ("doors", 0, True, "task")
        assert (row.correct, row.images, row.accuracy, row.relative_l2, row.rescaler) == (60, 100, 60.0, 0.5, 2.0)
        assert row.state == finished.methods["condu"].entries[1].state
        assert rows[~rows.seen].relative_l2.isna().all()

    def test_metrics_are_those_of_the_matrices(self, finished):
        found = finished.metrics().set_index(["method", "protocol"])
        assert list(found.index) == [("condu", "task"), ("condu", "union"), ("individual", "task")]
        expected = continual_metrics(finished.matrix("condu").to_numpy())
        assert found.loc["condu", "task"].to_dict() == {"sessions": 3} | vars(expected)

    def test_states_and_experts_are_what_was_stored(self, finished, written):
        for task in TASKS:
            assert all(torch.equal(finished.expert(task)[name], value) for name, value in written.deltas[task].items())
        state = finished.state("condu")
        assert list(state.tasks) == TASKS
        assert finished.state("condu", 0).tasks == ("walls",)
        served = state.model.decouple("cars")
        assert served.keys() == written.deltas["cars"].keys()
        assert finished.state("individual", 1).model is None

    def test_sessions_are_listed(self, finished):
        sessions = finished.sessions()
        assert list(sessions.task) == TASKS * 2
        assert list(sessions.measured) == [6] * 3 + [3] * 3
        assert (sessions.to_measure == 0).all()

    def test_the_pages_code_reads_it(self, finished, written, monkeypatch, capsys):
        page = Path(condu_ray.__file__).parent / "face" / "README.md"
        *_, code = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.S)
        monkeypatch.chdir(written.storage.parent)
        code = code.replace('"storage", "mini_mtil-seed0"', f'"{written.storage.name}", "r"').replace(
            "flowers", "walls"
        )
        names = {}
        exec(compile(code, str(page), "exec"), names)
        assert names["best"]["walls"] == 70.0 + 1
        assert "Reconstruction(relative_l2=" in capsys.readouterr().out

    @pytest.mark.parametrize(
        ("call", "message"),
        [
            (lambda run: run.matrix("ties"), "has no method ties; it has condu, individual"),
            (lambda run: run.matrix("individual", "union"), "not measured under the protocol 'union'"),
            (lambda run: run.state("condu", 3), r"session 3 .* is not committed; there are 3"),
            (lambda run: run.expert("wall"), "has no expert of a task wall by any method"),
        ],
    )
    def test_what_it_has_not_is_said(self, finished, call, message):
        with pytest.raises(ValueError, match=message):
            call(finished)


class TestOpen:
    def test_a_run_at_work_shows_what_it_has(self, written):
        run = open_run(written.storage, "r")
        assert (len(run.rows()), len(run.sessions()), run.complete) == (0, 0, False)
        assert run.matrix("condu").shape == (0, 3)
        assert list(run.metrics().sessions) == [0, 0, 0]
        units = written.sessions("condu", 2)
        written.measure(unit for unit in units[:-1] if unit.protocol == "task")
        written.measure(units[-1:])
        run = open_run(written.storage, "r")
        matrix = run.matrix("condu")
        assert list(matrix.index) == TASKS[:2]
        assert matrix.notna().all(axis=None)
        assert run.matrix("condu", "union").notna().sum().sum() == 1
        assert list(run.sessions().to_measure) == [3, 2]
        metrics = run.metrics().iloc[0]
        assert (metrics.sessions, metrics["last"]) == (2, matrix.iloc[1, :2].mean())
        with pytest.raises(ArtifactError):
            run.expert("cars")

    def test_a_line_that_is_being_written_is_left_alone(self, written):
        written.sessions("condu", 1)
        path = Path(ledger_path(written.config.run_folder, "condu"))
        path.write_bytes(path.read_bytes() + b'{"position": 1, "ta')
        before = path.read_bytes()
        assert list(open_run(written.storage, "r").sessions().task) == ["walls"]
        assert path.read_bytes() == before
        assert len(read_entries(path)[0]) == 1

    def test_another_precision_than_this_machines_is_found_but_not_taken_for_finished(self, written, monkeypatch):
        monkeypatch.setattr("condu_ray.plan.stored_run.resolved_precision", lambda wanted, cuda: "fp32")
        for method in Written.METHODS:
            written.measure(written.sessions(method, 3, "bf16"))
        run = open_run(written.storage, "r")
        assert run.complete
        assert run.plan.precision == "bf16"
        assert finished_run(check(written.config)) is None

    @pytest.mark.parametrize("gone", ["experts/*", "runs/r/condu/sessions/02-*", "runs/r/individual/sessions/03-*"])
    def test_what_a_copy_of_storage_left_out_is_to_be_made_before_it_is_finished(self, copied, gone):
        assert finished_run(check(copied.config)) is not None
        shutil.rmtree(next(copied.storage.glob(gone)))
        assert open_run(copied.storage, "r").complete  # of what it measured nothing is lost
        assert finished_run(check(copied.config)) is None

    def test_names_that_are_not_there(self, written, tmp_path):
        with pytest.raises(ConfigError, match=r"holds no run or sweep 'q'"):
            open_run(written.storage, "q")
        with pytest.raises(ConfigError, match="no such folder"):
            open_run(tmp_path / "nowhere", "r")
        with pytest.raises(ConfigError, match="is a run; open_run opens it"):
            open_sweep(written.storage, "r")


@pytest.mark.parametrize("opens", [open_run, open_sweep])
def test_an_empty_storage_is_not_the_folder_one_is_in(opens, written, monkeypatch):
    monkeypatch.chdir(written.storage)
    with pytest.raises(ValueError, match="storage: is empty; give the name of a folder"):
        opens("", "r")


def test_a_sweep_is_a_table_and_its_trials(written):
    written.measure(written.sessions("condu", 3))
    heads = {"order_name": "given", "order": TASKS, "seed": 0, "settings": {"lora.rank": 4}, "method": "condu"}
    trials = [{"trial": "given.condu.seed0", **heads}, {"trial": "given.condu.seed1", **heads, "seed": 1}]
    folder = sweep_folder(written.storage, "s")
    (folder / "trials").mkdir(parents=True)
    config = written.config.model_dump(mode="json", exclude={"storage", "run"})
    sweep_config_path(folder).write_text(json.dumps({"config": config, "trials": trials}))
    record = trials[0] | {"accuracy": [[50.0] * 3] * 3, "seconds": 1.0}
    record_path(folder, "given.condu.seed0").write_text(json.dumps(record))
    sweep = open_sweep(written.storage, "s")
    (row,) = sweep.table().to_dict("records")
    assert (row["method"], row["lora.rank"], row["last"]) == ("condu", 4, 50.0)
    with pytest.raises(ConfigError, match="is a sweep; open_sweep opens it"):
        open_run(written.storage, "s")
    runs = sweep.runs(written.storage)
    assert list(runs) == ["given.condu.seed0", "given.condu.seed1"]
    assert runs["given.condu.seed0"].config.run_name == "s.given.condu.seed0"
    assert not runs["given.condu.seed1"].complete


class TestSettings:
    def test_changes_lie_over_the_recipe_or_what_is_given(self):
        found = changed(Experiment, None, {"method": "condu,ties", "training": {"steps": 7, "lr": None}})
        assert (found.recipe, found.method, found.training.steps) == ("mini_mtil", ("condu", "ties"), 7)
        assert found.training.lr == changed(Experiment, None, {}).training.lr
        assert changed(Experiment, None, {"data": "d"}).recipe == "own_data"
        given = Experiment(repair=True, training={"steps": 3, "lr_by_task": {"a": 1e-3}})
        found = changed(Experiment, given, {"training": {"lr_by_task": {"b": 1e-4}}})
        assert (found.repair, found.training.steps, found.training.lr_by_task) == (True, 3, {"a": 1e-3, "b": 1e-4})

    def test_what_is_wrong_is_refused(self):
        with pytest.raises(ValueError, match="recipe 'mtil': there is none"):
            changed(Experiment, None, {"recipe": "mtil"})
        with pytest.raises(ValueError, match="stepz"):
            changed(Experiment, None, {"training": {"stepz": 3}})


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.long
def test_a_run_and_a_sweep_with_a_method_from_outside(tmp_path, monkeypatch, task_data, small_backbone):
    (tmp_path / "my_rule.py").write_text(
        "from condu_ray import merge_rule\n"
        "@merge_rule('mine', 'none')\n"
        "def mine(deltas):\n"
        "    every = list(deltas.values())\n"
        "    return {name: sum(delta[name] for delta in every) / len(every) for name in every[0]}\n"
    )
    monkeypatch.chdir(tmp_path)  # where the command is given, Ray's workers look too
    settings = {
        "method": "my_rule:mine,average", "data": task_data, "pretrained": str(small_backbone),
        "storage": tmp_path / "storage", "tracking": {"enabled": False},
        "training": {"steps": 4, "batch_size": 8, "lr": 3e-3, "threads": 1, "lanes": 1},
    }  # fmt: skip
    run = condu_ray.run(run="r", **settings)
    assert run.complete
    assert list(run.methods) == ["mine", "average"]
    assert run.matrix("mine").iloc[0].equals(run.matrix("average").iloc[0])  # of one delta both rules make itself
    shared = run.sessions().groupby("method").expert.apply(list)
    assert shared["mine"] == shared["average"]
    swept = condu_ray.sweep(orders="given", **settings)
    assert sorted(swept.table().method) == ["average", "mine"]
    trial = open_run(tmp_path / "storage", f"{swept.name}.given.mine.seed0")
    pd.testing.assert_frame_equal(trial.matrix("mine"), run.matrix("mine"))
    METHODS.pop("mine")
    sys.modules.pop("my_rule")
