"""Every kind of worker holds the backbone that is staged in storage, with the driver's files gone."""

import shutil
from dataclasses import asdict

import numpy as np
from safetensors.torch import load

from condu_ray.config import Experiment
from condu_ray.learn.prototype_pass import chunks
from condu_ray.orchestration.lanes.trainer import Trainer
from condu_ray.orchestration.measure.encoders import Encode
from condu_ray.orchestration.measure.evaluator import Measurer
from condu_ray.plan.preflight import check
from condu_ray.vlm.staged import staged


def test_workers_load_what_is_staged(task_data, small_backbone, tmp_path):
    shutil.copytree(small_backbone, tmp_path / "given")
    settings = {"storage": tmp_path / "storage", "data": task_data, "pretrained": str(tmp_path / "given")}
    checked = check(Experiment(**settings))
    spec = staged(checked.config.storage, checked.spec, checked.backbone)
    shutil.rmtree(tmp_path / "given")
    tasks = {task.name: task for task in checked.tasks}
    trainer = Trainer(spec, tasks, precision="fp32", rank=0, world=1, device="cpu")
    folders = {name: task.folder for name, task in tasks.items()}
    evaluator = Measurer(spec, checked.config, "fp32", folders, cuda=False)
    assert trainer.backbone.fingerprint == evaluator._evaluator.features.backbone.fingerprint == checked.backbone
    encode = Encode(asdict(spec), threads=1, cuda=False)
    row = {"folder": str(folders["walls"]), "task": 0} | asdict(chunks(tasks["walls"])[0])
    (part,) = encode({name: np.asarray([value]) for name, value in row.items()})["part"]
    assert {tensor.shape for tensor in load(part).values()} >= {(3, 16)}
