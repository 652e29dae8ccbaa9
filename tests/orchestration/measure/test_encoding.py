"""An evaluator that encodes what prototypes are made of, against the pass itself."""

import torch
from safetensors.torch import load

from condu_ray.benchmark import load_task
from condu_ray.config import Experiment
from condu_ray.learn.features import Weights
from condu_ray.learn.prototype_pass import ChunkEncoder, chunks
from condu_ray.orchestration.measure import actor as module
from condu_ray.orchestration.measure.actor import EvaluatorActor
from condu_ray.vlm.model import backbone_spec, load_backbone


def test_it_encodes_by_theta0_whatever_weights_it_had(task_data, small_backbone, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "BEHIND", 0)  # a process that stood back would do so for all tests to come
    spec = backbone_spec(pretrained=str(small_backbone))
    backbone = load_backbone(spec)
    actor = EvaluatorActor(spec, Experiment(storage=tmp_path), "bf16", {}, False)
    task, plain = load_task(task_data / "walls"), ChunkEncoder(backbone, torch.device("cpu"))
    delta = {name: torch.ones_like(tensor) for name, tensor in backbone.snapshot().items()}
    for chunk in chunks(task):
        actor._measurer._evaluator.features.place(Weights("another", lambda: delta))
        found, expected = load(actor.encode(str(task.folder), chunk)), plain(task, chunk)
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], tensor) for name, tensor in expected.items()), chunk
