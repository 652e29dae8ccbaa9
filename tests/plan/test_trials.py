"""The trials of a sweep are all combinations, in a fixed order, each with a whole configuration."""

import json
from pathlib import Path

import pytest

from condu_ray.benchmark.orders import draw_orders, resolve_orders
from condu_ray.command_line import ConfigError, parse
from condu_ray.config import Experiment, Sweep
from condu_ray.constants import ORDER_1
from condu_ray.methods.registry import MethodError
from condu_ray.plan.preflight import check
from condu_ray.plan.results import Results
from condu_ray.plan.run_plan import plan_run
from condu_ray.plan.trials import (
    base_of,
    count_records,
    made_of,
    make_trials,
    read_axes,
    read_records,
    record_path,
    require_alike,
)
from condu_ray.recipes import mtil_order1
from tests.conftest import write_task
from tests.learnt import work_here

TASKS = ("a", "b", "c")


def sweep(**changes):
    return Sweep(**{"method": ("condu", "average")} | changes)


def trials(**changes):
    return make_trials(sweep(**changes), draw_orders(TASKS, 2, 0))


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        ([], {}),
        (["training.lr=1e-5,3e-5"], {"training.lr": [1e-5, 3e-5]}),
        (["training.lr=1e-5", "3e-5", "lora.rank=8", "16"], {"training.lr": [1e-5, 3e-5], "lora.rank": [8, 16]}),
        (["merging.rescaler=l1,tensor_mean"], {"merging.rescaler": ["l1", "tensor_mean"]}),
        (["training.augment=true,false"], {"training.augment": [True, False]}),
        (["inference.top_k=1"], {"inference.top_k": [1]}),
        (["lora.rank=8,016"], {"lora.rank": [8, "016"]}),  # a text, which its field reads as 16, not by eights as 14
    ],
)
def test_axes_are_read_as_they_are_written(texts, expected):
    assert read_axes(texts) == expected


def test_a_rate_by_which_no_task_is_trained_is_not_swept():
    """All of its trials would be one and the same."""
    orders = draw_orders(ORDER_1[:3], 1, 0)
    base = mtil_order1().model_dump() | {"tasks": ORDER_1[:3]}
    with pytest.raises(ConfigError, match=r"condu-lora.*lora\.lr 0\.0001.*each has a rate of its own.*lr_by_task"):
        make_trials(Sweep(**base | {"method": ("condu-lora",), "sweep": ("lora.lr=1e-4,1e-3",)}), orders)
    for method, axis in (("condu", "training.lr=1e-6,1e-5"), ("pam", "pam.lr=1e-4,1e-3"), ("condu", "lora.rank=8,16")):
        assert len(make_trials(Sweep(**base | {"method": (method,), "sweep": (axis,)}), orders)) == 2
    given = {"lr_by_task": {"a": 1e-3, "b": 1e-3, "c": 1e-3}}
    with pytest.raises(ConfigError, match=r"average.*training\.lr"):
        trials(training=given, sweep=("training.lr=1e-4,1e-3",), method=("average",))


@pytest.mark.parametrize(
    ("texts", "words"),
    [
        (["training.rl=1"], ["--sweep training.rl", "did you mean training.lr"]),
        (["5"], ["write field=value"]),
        (["training.lr="], ["training.lr: no value"]),
        (["training.lr=1,1"], ["a value twice"]),
        (["training.lr=1", "training.lr=2"], ["given twice"]),
        (["seed=1,2"], ["same for all trials", "--seed"]),
        (["method=condu"], ["same for all trials"]),
        (["model=a,b"], ["same for all trials"]),
        (["training.threads=1,2"], ["same for all trials"]),
        (["evaluation.max_images=1,2"], ["same for all trials"]),
        (["training.precision=fp32,bf16"], ["same for all trials", "--training.precision"]),
        (["template=a {}.,b {}."], ["same for all trials", "--template"]),
        (["test_share=0.1,0.3"], ["same for all trials"]),
        (["preprocess=openai,laion2b_s34b_b88k"], ["same for all trials"]),
    ],
)
def test_a_wrong_axis_is_refused_by_name(texts, words):
    with pytest.raises(ConfigError) as error:
        read_axes(texts)
    assert all(word in str(error.value) for word in words)


@pytest.mark.parametrize(
    "axis", ["training.steps=10,10.0", "lora.targets=mlp,[mlp]", "training.lr=1e-4,0.00010", "pam.rank=8,16,8.0"]
)
def test_a_value_that_is_written_in_two_ways_is_refused(axis):
    with pytest.raises(ConfigError, match=rf"--sweep {axis.split('=')[0]}: .* are one value|a value twice"):
        trials(sweep=(axis,), method=("condu",))


def test_files_of_an_axis_are_absolute(tmp_path, monkeypatch):
    """Workers have working directories of their own."""
    monkeypatch.chdir(tmp_path)
    found = trials(sweep=("distillation.reference=a,./7",), method=("zscl",))
    paths = [trial.config(sweep(method=("zscl",)).experiment(), "s").distillation.reference for trial in found[:2]]
    assert [str(one) for (one,) in paths] == [str(tmp_path / "a"), str(tmp_path / "7")]


def test_swept_reference_images_need_no_others(tmp_path, task_data, small_backbone):
    folders = [tmp_path / name / "gates" for name in ("a", "b")]
    for one in folders:
        write_task(one, ("red", "blue"), 5)
    one = sweep(
        method=("zscl", "condu"), sweep=(f"distillation.reference={folders[0]},{folders[1]}",), data=task_data,
        pretrained=str(small_backbone), storage=tmp_path / "storage",
    )  # fmt: skip
    base = base_of(one)
    checked = check(base)
    made = make_trials(one, draw_orders(("walls", "doors", "cars"), 1, 0))
    found = {trial.config(checked.config, "s").distillation.reference for trial in made}
    assert {Path(str(path)) for (path,) in found} == set(folders)
    assert base_of(sweep(sweep=("lora.rank=8,16",))) == sweep().experiment()
    plans = [plan_run(checked.under(trial.config(checked.config, "s")), "fp32") for trial in made[:2]]
    keys = [[expert.key for expert in plan.experts] for plan in plans]
    keys[0][0] = "an expert of what the first folder had"
    records = [{"experts": one, "made": made_of(plan)} for one, plan in zip(keys, plans, strict=True)]
    with pytest.raises(ValueError, match=f"{made[0].id} was finished with other experts"):
        require_alike(checked, "s", list(zip(made[:2], records, strict=True)), "fp32")


def test_all_combinations_are_there_once():
    found = trials(seeds=2, sweep=("training.lr=1e-4,1e-3",))
    assert len(found) == len({trial.id for trial in found}) == 2 * 2 * 2 * 2
    assert {trial.seed for trial in found} == {0, 1}
    assert [trial.order_name for trial in found[:8]] == ["given"] * 8
    assert {trial.settings["training.lr"] for trial in found} == {1e-4, 1e-3}


def test_a_trial_has_its_own_configuration_and_run():
    made = trials(sweep=("training.lr=0.1",), seed=5, seeds=2)
    assert {trial.seed for trial in made} == {5, 6}
    trial = next(one for one in made if (one.method, one.order_name, one.seed) == ("average", "random-01", 6))
    config = trial.config(sweep(seed=5).experiment(), "s")
    assert (config.seed, trial.id.partition(".seed")[2][:2]) == (6, "6.")
    assert type(config) is Experiment
    assert config.method == ("average",)
    assert config.tasks == trial.order
    assert config.training.lr == 0.1
    assert config.run_name == f"s.{trial.id}"
    assert config.run_folder.parent.name == "runs"


def test_a_value_that_does_not_fit_is_refused_before_anything_runs():
    with pytest.raises(ConfigError, match=r"--sweep training.lr: .*greater than 0"):
        trials(sweep=("training.lr=-1",))
    with pytest.raises(MethodError, match="did you mean"):
        make_trials(Sweep(method=("condo",)), draw_orders(TASKS, 1, 0))


def test_records_are_found_by_trial(tmp_path):
    first, *_ = found = trials()
    path = record_path(tmp_path, first.id)
    path.parent.mkdir()
    path.write_text(json.dumps(first.record()))
    assert list(read_records(tmp_path, found)) == [first.id]
    assert read_records(tmp_path, found)[first.id]["order"] == list(first.order)
    path.with_name("another.condu.seed0.json").write_text("{}")  # of no trial that the sweep has now
    assert (count_records(tmp_path, found), len(read_records(tmp_path, found))) == (1, 1)


def test_the_command_line_knows_a_sweeps_flags_and_a_runs():
    found = parse(
        ["--orders", "12", "--method", "condu,ties", "--sweep", "training.lr=1e-5,3e-5", "--training.steps", "3"], Sweep
    )
    assert (found.orders, found.method, found.training.steps) == ("12", ("condu", "ties"), 3)
    assert read_axes(found.sweep) == {"training.lr": [1e-5, 3e-5]}
    with pytest.raises(ConfigError, match="unknown flag --orders"):
        parse(["--orders", "12"])


def test_finished_trials_of_another_precision_are_not_gone_on_with(task_data, small_backbone, tmp_path):
    settings = {"storage": tmp_path, "data": task_data, "pretrained": str(small_backbone), "run": "s"}
    base = Sweep(**settings, method=("condu", "zero-shot"), orders="2")
    checked = check(base.experiment())
    made = make_trials(base, resolve_orders("2", [task.name for task in checked.tasks], 0))

    def record(trial, precision):
        plan = plan_run(checked.under(trial.config(checked.config, "s")), precision)
        return trial, {"experts": [expert.key for expert in plan.experts], "made": made_of(plan)}

    require_alike(checked, "s", [], "fp32")
    require_alike(checked, "s", [record(trial, "fp32") for trial in made], "fp32")
    with pytest.raises(ValueError, match=r"condu\.seed0 was finished with other experts .* in bf16 here"):
        require_alike(checked, "s", [record(trial, "fp32") for trial in made], "bf16")


class TestOtherVersions:
    """Trials that an earlier version finished with the same experts, and merged or measured otherwise."""

    @pytest.fixture(scope="class")
    def finished(self, task_data, small_backbone, tmp_path_factory):
        storage = tmp_path_factory.mktemp("sweep")
        settings = {"storage": storage, "data": task_data, "pretrained": str(small_backbone), "run": "s"}
        base = Sweep(**settings, method=("zero-shot",), orders="1", protocol=("task", "union"))
        checked = check(base.experiment())
        (trial,) = make_trials(base, resolve_orders("1", [task.name for task in checked.tasks], 0))
        work_here(under := checked.under(trial.config(checked.config, "s")), Results(plan_run(under, "fp32")))
        return checked, trial, made_of(plan_run(under, "fp32"))

    def test_what_is_alike_goes_on(self, finished):
        checked, trial, made = finished
        for record in ({"made": made}, {}):  # one of before records had it
            require_alike(checked, "s", [(trial, {"experts": [], **record})], "fp32")

    @pytest.mark.parametrize("place", [0, 1])
    def test_other_states_and_measurements_are_refused_by_the_record(self, finished, place):
        checked, trial, made = finished
        made = [*made[:place], "0" * 16, *made[place + 1 :]]
        with pytest.raises(ValueError, match=f"--run s: {trial.id} was finished by a version .*Give another name"):
            require_alike(checked, "s", [(trial, {"experts": [], "made": made})], "fp32")

    @pytest.mark.parametrize("gone", ["runs/s.*/zero-shot/ledger.jsonl", "evaluations/*.json"])
    def test_and_of_before_records_said_so_by_what_is_in_storage(self, finished, gone):
        checked, trial, _ = finished
        path = sorted(Path(checked.config.storage).glob(gone))[0]
        kept = path.read_bytes()
        path.unlink()
        try:
            self.refused(checked, trial)
        finally:
            path.write_bytes(kept)

    def refused(self, checked, trial):
        with pytest.raises(ValueError, match=f"--run s: {trial.id} was finished by a version .*Give another name"):
            require_alike(checked, "s", [(trial, {"experts": []})], "fp32")
