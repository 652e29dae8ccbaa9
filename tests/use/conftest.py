"""A run that learned three tasks, made without Ray: experts of noise, merged and measured as a run's are."""

import pytest
import torch

from condu_ray import Experiment, load_backbone, open_run
from condu_ray.learn.prototype_pass import prototypes_here
from condu_ray.orchestration.measure.evaluator import EvaluatorActor
from condu_ray.orchestration.state import ModelKeeper
from condu_ray.plan.preflight import check
from condu_ray.plan.results import Results
from condu_ray.plan.run_plan import plan_run
from condu_ray.store.artifacts import save_tensors, write_text
from condu_ray.store.experts import FILES, save_expert
from condu_ray.store.layout import config_path
from condu_ray.store.measurements import write_measurement
from condu_ray.vlm.lora import attach, materialise

METHODS = ("condu", "individual", "average", "sequential", "zero-shot", "condu-lora", "pam", "condu-svd")
TASKS = ("walls", "doors", "cars")


def write_expert(storage, backbone, method, expert, seed):
    generator = torch.Generator().manual_seed(seed)
    if method.adapter == "lora":
        with attach(backbone, rank=method.lora.rank, scale=method.lora.scale, std=0.2, seed=seed) as adapters:
            factors = adapters.factors()
        files = {FILES["factors"]: lambda path: save_tensors(path, factors)}
        delta = materialise(factors, method.lora.scale)
    else:
        theta0, files = backbone.snapshot(), {}
        delta = {name: 0.2 * torch.randn(tensor.shape, generator=generator) for name, tensor in theta0.items()}
    save_expert(storage, expert.key, delta, {"task": expert.task, "key": expert.key}, files)


def make_run(storage, task_data, small_backbone, methods=METHODS):
    """Storage with the run `r`, whose every session is measured by the protocols `task` and `union`."""
    config = Experiment.model_validate({
        "method": methods, "data": task_data, "pretrained": str(small_backbone), "storage": storage, "run": "r",
        "protocol": ("task", "union"), "training": {"precision": "fp32"}, "evaluation": {"batch_size": 5},
        "lora": {"rank": 4, "scale": 0.5}, "pam": {"rank": 2}, "inference": {"top_k": 2},
    })  # fmt: skip
    write_text(config_path(config.run_folder), config.model_dump_json(exclude={"storage"}))
    checked = check(config)
    plan, backbone = plan_run(checked, "fp32"), load_backbone(pretrained=str(small_backbone))
    keeper, results = ModelKeeper(config.absolute()), Results(plan)
    prototypes_here(storage, backbone, checked.tasks, "cpu")
    folders = {task.name: task.folder for task in checked.tasks}
    actor = EvaluatorActor(checked.spec, config.absolute(), "fp32", folders, cuda=False)
    for one in plan.methods:
        for session in one.sessions:
            if session.expert is not None:
                write_expert(storage, backbone, one.method, session.expert, len(one.method.name) + session.position)
            entry = keeper.merge(one.method.name, session)
            for wanted in results.measurements(one, entry):
                write_measurement(storage, wanted.key, actor.measure(wanted))
    return storage


@pytest.fixture(scope="session")
def storage(tmp_path_factory, task_data, small_backbone):
    return make_run(tmp_path_factory.mktemp("used") / "storage", task_data, small_backbone)


@pytest.fixture(scope="session")
def found(storage):
    return open_run(storage, "r")
