"""What a run makes, made without Ray: experts of noise, merged and measured as a run's are."""

import torch

from condu_ray import Experiment
from condu_ray.learn.prototype_pass import prototypes_here
from condu_ray.orchestration.measure.evaluator import Measurer
from condu_ray.orchestration.state import ModelKeeper
from condu_ray.plan.preflight import Checked, check
from condu_ray.plan.results import Results
from condu_ray.plan.run_plan import plan_run
from condu_ray.store.artifacts import save_tensors, write_text
from condu_ray.store.experts import FILES, save_expert
from condu_ray.store.layout import config_path
from condu_ray.store.measurements import read_measurement, write_measurement
from condu_ray.vlm.lora import attach, materialise
from condu_ray.vlm.model import load_backbone


def write_expert(storage, backbone, method, expert, seed):
    generator = torch.Generator().manual_seed(seed)
    if method.adapter == "lora":
        form = {"rank": method.lora.rank, "scale": method.lora.scale, "targets": method.lora.targets}
        with attach(backbone, std=0.2, seed=seed, **form) as adapters:
            factors = adapters.factors()
        files = {FILES["factors"]: lambda path: save_tensors(path, factors)}
        delta = materialise(factors, method.lora.scale)
    else:
        theta0, files = backbone.snapshot(), {}
        delta = {name: 0.2 * torch.randn(tensor.shape, generator=generator) for name, tensor in theta0.items()}
    save_expert(storage, expert.key, delta, {"task": expert.task, "key": expert.key, "seconds": 0.0}, files)


def work_here(checked: Checked, results: Results, *, staged: bool = False) -> None:
    """Does what is left of a run, by noise in place of training."""
    config, plan = checked.config.absolute(), results.plan
    backbone, keeper = load_backbone(checked.spec), ModelKeeper(config, staged)
    prototypes_here(config.storage, backbone, checked.tasks, "cpu")
    folders, held_out, probes = (
        {task.name: task.folder for task in tasks} for tasks in (checked.tasks, checked.validation, checked.probes)
    )
    actor = Measurer(checked.spec, config, "fp32", folders, False, held_out, probes, contents=checked.contents)
    for one in plan.methods:
        for session in one.sessions:
            if session.expert is not None and not session.expert.finished:
                seed = len(one.method.name) + session.position
                write_expert(config.storage, backbone, one.method, session.expert, seed)
            entry = keeper.merge(one.method.name, session)
            asked = results.measurements(one, entry)
            for encoding in results.encodings(asked):
                actor.measure(encoding)
            for wanted in asked:
                found = read_measurement(config.storage, wanted.key)
                if found is None:
                    found = actor.measure(wanted)
                    write_measurement(config.storage, wanted.key, found)
                results.add(wanted, found)


def learn_here(config: Experiment) -> Results:
    """Makes a whole run but its report; returns what was measured."""
    write_text(config_path(config.run_folder), config.model_dump_json(exclude={"storage"}))
    checked = check(config)
    results = Results(plan_run(checked, "fp32"))
    work_here(checked, results)
    return results
