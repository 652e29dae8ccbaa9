"""`condu-ray import`: from arguments to the run that is then made, which itself is stood in for here."""

import pytest
import torch

from condu_ray.commands.import_expert import main
from condu_ray.config import Experiment
from condu_ray.orchestration import changing
from condu_ray.orchestration import run as main_job
from condu_ray.plan.preflight import check
from condu_ray.plan.run_plan import plan_run
from condu_ray.vlm.model import backbone_spec, load_backbone
from tests.benchmark.ingest.forms import class_folders


@pytest.fixture
def checkpoint(small_backbone, tmp_path):
    model = load_backbone(backbone_spec(pretrained=str(small_backbone))).model
    with torch.no_grad():
        model.visual.proj.add_(0.01)
    torch.save(model.state_dict(), tmp_path / "expert.pt")
    return tmp_path / "expert.pt"


@pytest.fixture
def call(monkeypatch, capsys):
    """Runs the command; returns its exit code, what it would run, and what it said."""

    def run(*flags):
        made = []
        for module in (main_job, changing):
            monkeypatch.setattr(module, "run", lambda config, **_: made.append(config))
        try:
            main([str(flag) for flag in flags])
        except SystemExit as end:
            return end.code, made, capsys.readouterr().err
        return 0, made, capsys.readouterr().out

    return run


@pytest.fixture
def config(tmp_path, task_data, small_backbone):
    return Experiment.model_validate({
        "storage": tmp_path / "storage", "data": task_data, "pretrained": str(small_backbone), "run": "mine",
        "method": ("condu", "individual"), "tasks": ("walls",), "training": {"precision": "fp32"},
    })  # fmt: skip


def test_into_a_run_that_is_there(call, config, checkpoint, tmp_path):
    main_job.write_config(config)
    class_folders(tmp_path / "more" / "birds")
    where = ("--task", "birds", "--checkpoint", checkpoint, "--data", tmp_path / "more")
    code, [made], said = call("mine", "--storage", config.storage, *where)
    assert code == 0
    assert "birds: expert " in said
    assert "mine is not finished, so that nobody can say what its tasks lose by birds" in " ".join(said.split())
    assert "its delta's norm over theta0's: image 0.0" in said
    assert (made.run, made.tasks, made.method) == ("mine", ("walls", "birds"), config.method)
    plan = plan_run(check(made), "fp32")
    assert [expert.finished for expert in plan.experts] == [False, True]
    assert plan.experts[1].key == made.imported["birds"]
    assert "goes on without" not in said
    _, again, said = call(config.run_folder, *where, "--method", "condu")
    assert again == [made.model_copy(update={"method": ("condu",)})]
    assert "mine goes on without individual, whose sessions stay in its folder" in said


def test_a_run_that_begins_with_it(call, config, checkpoint, tmp_path, task_data, small_backbone):
    flags = ("--method", "condu", "--pretrained", small_backbone, "--training.precision", "fp32")
    code, [made], _ = call(
        "new",
        "--storage",
        tmp_path / "storage",
        "--task",
        "walls",
        "--checkpoint",
        checkpoint,
        "--data",
        task_data,
        *flags,
    )
    assert code == 0
    assert (made.run, made.tasks, made.method, made.more_data) == ("new", ("walls",), ("condu",), ())
    assert [expert.finished for expert in plan_run(check(made), "fp32").experts] == [True]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("mine", "--task", "birds", "--checkpoint", "none.pt"), ["none.pt: no such file"]),
        (("mine", "--task", "birds", "--checkpoint", "expert.pt"), ["birds", "no such task", "--data"]),
        (
            ("mine", "--task", "doors", "--checkpoint", "expert.pt", "--seed", "1"),
            ["--seed", "has its settings"],
        ),
        (("no/folder", "--task", "doors", "--checkpoint", "expert.pt"), ["no/folder", "no run's folder"]),
        (("other", "--task", "doors", "--checkpoint", "expert.pt", "--sed", "1"), ["--sed", "did you mean seed"]),
        (
            ("mine", "--task", "doors", "--checkpoint", "expert.pt", "--max_drop", "nan"),
            ["--max_drop nan"],
        ),
        (
            ("new", "--task", "doors", "--checkpoint", "expert.pt", "--max_drop", "1"),
            ["--max_drop: there is no run new yet", "leave it out"],
        ),
        (("s.one", "--task", "doors", "--checkpoint", "expert.pt"), ["s.one", "is a trial of a sweep"]),
    ],
)
def test_wrong_arguments_are_refused(flags, words, call, config, checkpoint, monkeypatch, tmp_path):
    main_job.write_config(config)
    main_job.write_config(config.model_copy(update={"run": "s.one"}))
    (tmp_path / "storage" / "sweeps" / "s").mkdir(parents=True)
    (tmp_path / "storage" / "sweeps" / "s" / "sweep-config.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    code, made, said = call(*flags)
    assert (code, made) == (2, [])
    assert [word for word in words if word not in said] == []
