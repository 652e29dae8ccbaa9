"""CUDA graphs: what is captured and when, on any machine; what they compute, on a GPU."""

import pytest
import torch
from pydantic import ValidationError

from condu_ray.config import Training
from condu_ray.learn.graphs import MOST, Graphed
from condu_ray.learn.objective import ClipClassifier
from condu_ray.methods import get
from condu_ray.methods.training import Worker, train_expert
from condu_ray.vlm.model import backbone_spec, load_backbone
from tests.learn.test_loop import make_lesson, stream


@pytest.fixture
def captured(monkeypatch):
    """Stands in for torch's capture: shapes of samples, and whether casts would have been kept."""
    calls = []

    def capture(module, samples):
        forward = module.forward
        calls.append([*(tuple(sample.shape) for sample in samples), torch.is_autocast_cache_enabled()])
        module.forward = lambda *given: (calls.append("replayed"), forward(*given))[1]

    monkeypatch.setattr(torch.cuda, "make_graphed_callables", capture)
    return calls


def test_every_shape_is_captured_once_with_cut_prompts_and_without_kept_casts(small_backbone, captured):
    backbone = load_backbone(backbone_spec(pretrained=str(small_backbone)))
    plain = ClipClassifier(backbone.model)
    graphed, tokens = Graphed(plain), backbone.tokenizer(["red", "a green door"])
    length = int(tokens.argmax(dim=1).max()) + 1
    assert length < tokens.shape[1]
    for size in (2, 2, 3, 2):
        images = torch.rand(size, 3, 16, 16)
        with torch.autocast("cpu", torch.bfloat16):
            found, expected = graphed(images, tokens), plain(images, tokens)
        assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
    sample = [(2, length), False]
    assert captured == [
        [(2, 3, 16, 16), *sample], "replayed", "replayed", [(3, 3, 16, 16), *sample], "replayed", "replayed"
    ]  # fmt: skip
    assert list(dict(graphed.named_parameters())) == [f"classifier.{name}" for name, _ in plain.named_parameters()]


def test_more_shapes_than_a_few_are_computed_as_ever(small_backbone, captured):
    backbone = load_backbone(backbone_spec(pretrained=str(small_backbone)))
    graphed, tokens = Graphed(ClipClassifier(backbone.model)), backbone.tokenizer(["red"])
    for size in range(1, MOST + 3):
        graphed(torch.rand(size, 3, 16, 16), tokens)
    assert captured.count("replayed") == MOST
    assert len(captured) == 2 * MOST


@pytest.mark.parametrize("other", [{"workers": 2, "batch_size": 32}, {"recompute": True}])
def test_what_cannot_be_captured_is_refused(other):
    with pytest.raises(ValidationError, match="graphs needs workers 1 and recompute off"):
        Training(graphs=True, **other)


def test_on_the_cpu_the_setting_changes_no_bit(small_backbone, task_data):
    deltas = [trained(small_backbone, task_data, graphs, "cpu", "condu") for graphs in (False, True)]
    assert all(torch.equal(tensor, deltas[1][name]) for name, tensor in deltas[0].items())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("method", ["condu", "condu-lora"])
def test_on_a_gpu_a_training_is_the_same_within_rounding(small_backbone, task_data, method):
    one, other = (trained(small_backbone, task_data, graphs, "cuda", method) for graphs in (False, True))
    for name, tensor in one.items():
        assert (other[name] - tensor).norm() <= 1e-3 * tensor.norm(), name


def trained(small_backbone, task_data, graphs, device, method):
    lesson = make_lesson(small_backbone, task_data, steps=12, graphs=graphs)
    backbone = lesson.backbone
    backbone.model.to(device)
    found = train_expert(
        get(method, lesson.config),
        lesson.task,
        stream(lesson),
        backbone=backbone,
        theta0=lesson.theta0,
        precision="fp32",
        worker=Worker(),
    )
    return found.delta
