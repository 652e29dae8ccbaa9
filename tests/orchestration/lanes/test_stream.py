"""Ray Data against its local twins: the same batches, and prototypes as computed image by image."""

from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import ray
import torch

from condu_ray.benchmark import load_task
from condu_ray.config import Experiment
from condu_ray.learn.chunks import ChunkReader, batches, training_chunks
from condu_ray.orchestration.cluster.room import Room
from condu_ray.vlm.inputs import normalise
from condu_ray.vlm.model import backbone_spec, load_backbone
from condu_ray.vlm.moments import TENSORS
from condu_ray.vlm.preprocess import Preprocessor
from condu_ray.vlm.prototypes import class_prototypes
from condu_ray.vlm.zeroshot import image_features, text_features

pytestmark = [pytest.mark.ray, pytest.mark.slow]


@pytest.mark.parametrize("frozen", [False, True])
def test_batches_are_those_of_the_local_stream(local_cluster, task_data, small_backbone, frozen):
    from condu_ray.orchestration.lanes.stream import started, training_batches

    spec = backbone_spec(pretrained=str(small_backbone))
    chunks = [
        chunk
        for name in ("walls", "doors")
        for chunk in training_chunks(
            str(task_data / name / "train.parquet"), seed=3, steps=6, batch_size=8, rank=1, world=2, rows=16
        )
    ]
    options = {"preprocess": spec.preprocess, "augment": True, "batch_size": 4, "decoders": 2, "frozen": frozen}
    streamed = list(started(training_batches(chunks, **options)))
    local = list(batches(ChunkReader(spec.preprocess, True, frozen), iter(chunks), 4))
    assert len(streamed) == len(local) == 12
    for one, other in zip(streamed, local, strict=True):
        assert all(np.array_equal(one[name], other[name]) for name in ("image", "label"))


def test_prototypes_are_those_computed_image_by_image(local_cluster, task_data, small_backbone, tmp_path, monkeypatch):
    from condu_ray.learn.prototype_pass import prototypes_here
    from condu_ray.learn.prototype_store import load_moments, load_prototypes
    from condu_ray.orchestration.measure import encoders
    from condu_ray.orchestration.measure.actor import EvaluatorActor
    from condu_ray.orchestration.measure.encoders import make_prototypes

    spec = backbone_spec(pretrained=str(small_backbone))
    backbone = load_backbone(spec)
    tasks = [load_task(task_data / name) for name in ("walls", "doors")]
    room = Room(lanes=1, gpus_per_worker=0, gpus_per_evaluator=0, evaluators=2)
    told: list[str] = []
    evaluators: list[Any] = []

    def first():
        config = Experiment(storage=tmp_path)
        evaluators.append(ray.remote(EvaluatorActor).options(num_cpus=0.1).remote(spec, config, "bf16", {}, False))
        return evaluators[-1]

    def made(some):
        return make_prototypes(tmp_path, spec, backbone.fingerprint, some, room, 1, told.append, first)

    assert made(tasks[:1]) == len(evaluators) == 1  # little: by the first evaluator
    assert (told[0], told[-1]) == ("0 of 1 tasks, 0 of 24 images", "1 of 1 tasks, 24 of 24 images")
    ray.kill(evaluators[0])
    monkeypatch.setattr(encoders, "CHUNKS_PER_ENCODER", 1)
    assert made(tasks) == 1  # more: by encoders
    assert (told[-1], len(evaluators)) == ("1 of 1 tasks, 16 of 16 images", 1)
    assert made(tasks) == 0
    assert prototypes_here(tmp_path / "a", backbone, tasks, "cpu") == 2
    preprocessor = Preprocessor(spec.preprocess)
    for task in tasks:
        table = pq.read_table(task.train)
        sums = torch.zeros(len(task.classes), 16, dtype=torch.float64)
        for encoded, label in zip(table["image"], table["label"].to_pylist(), strict=True):
            pixels = torch.from_numpy(preprocessor.pixels(encoded.as_py()).copy())[None]
            sums[label] += image_features(backbone.model, normalise(pixels, spec.preprocess))[0].double()
        counts = torch.bincount(torch.tensor(table["label"].to_pylist()), minlength=len(task.classes))
        text = text_features(backbone.model, backbone.tokenizer, task.classes, task.templates)
        for kind in ("both", "image", "text"):
            found = load_prototypes(tmp_path, backbone.fingerprint, task, kind)
            plain = load_prototypes(tmp_path, backbone.fingerprint, task, kind, text="mean")
            assert torch.allclose(plain, found, atol=1e-5)  # one template: its mean has length 1
            assert torch.allclose(found, class_prototypes(sums, counts, text, kind), atol=1e-5)
        streamed, alone = (
            load_moments(storage, backbone.fingerprint, task)[0] for storage in (tmp_path, tmp_path / "a")
        )
        assert all(torch.equal(getattr(streamed, name), getattr(alone, name)) for name in TENSORS)
