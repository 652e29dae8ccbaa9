import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from condu_ray.benchmark import load_task
from condu_ray.config import Inference
from condu_ray.learn import evaluate
from condu_ray.learn.evaluate import Evaluator
from condu_ray.vlm.model import backbone_spec, load_backbone, set_weights
from condu_ray.vlm.preprocess import Preprocessor, normalise


@pytest.fixture
def evaluator(small_backbone):
    return Evaluator(load_backbone(backbone_spec(pretrained=str(small_backbone))), batch_size=7)


@pytest.fixture
def task(task_data):
    return load_task(task_data / "walls")


def noise(theta0, seed, scale=0.3):
    generator = torch.Generator().manual_seed(seed)
    return {name: scale * torch.randn(tensor.shape, generator=generator) for name, tensor in theta0.items()}


def logits_by_hand(small_backbone, task, delta):
    """[N, C] straight from open_clip, image by image."""
    backbone = load_backbone(backbone_spec(pretrained=str(small_backbone)))
    set_weights(backbone, backbone.snapshot(), delta)
    table, preprocessor = pq.read_table(task.test), Preprocessor(backbone.spec.preprocess)
    rows = []
    with torch.no_grad():
        text = backbone.model.encode_text(backbone.tokenizer(task.prompts()), normalize=True)
        for encoded in table["image"]:
            pixels = torch.from_numpy(preprocessor.pixels(encoded.as_py()).copy())[None]
            image = backbone.model.encode_image(normalise(pixels, backbone.spec.preprocess), normalize=True)
            rows.append(backbone.model.logit_scale.exp() * image @ text.T)
    return torch.cat(rows), torch.tensor(table["label"].to_pylist())


@pytest.mark.parametrize("seed", [None, 1, 2])
def test_known_task_counts_as_by_hand(evaluator, task, small_backbone, seed):
    delta = None if seed is None else noise(evaluator.theta0, seed)
    scores, labels = logits_by_hand(small_backbone, task, delta)
    count = evaluator.known(task, delta)
    assert (count.correct, count.images) == (int((scores.argmax(1) == labels).sum()), len(labels))


def test_a_call_leaves_nothing_behind(evaluator, task):
    first = evaluator.known(task, None).correct
    evaluator.known(task, noise(evaluator.theta0, 1))
    assert evaluator.known(task, None).correct == first


@pytest.mark.parametrize("aggregation", ["mean", "weighted"])
@pytest.mark.parametrize("include", [True, False])
@pytest.mark.parametrize("top_k", [1, 2, 3])
def test_aggregation_is_the_weighted_sum_of_the_candidates_logits(
    evaluator, task, small_backbone, aggregation, include, top_k
):
    deltas = {name: noise(evaluator.theta0, seed) for seed, name in enumerate(("a", "b"))}
    generator = torch.Generator().manual_seed(9)
    prototypes = {
        name: torch.nn.functional.normalize(torch.randn(3, 16, generator=generator), dim=-1) for name in deltas
    }
    inference = Inference(aggregation=aggregation, include_pretrained=include, top_k=top_k)
    count = evaluator.aggregated(task, {n: lambda n=n: deltas[n] for n in deltas}, prototypes, inference)

    every = {name: logits_by_hand(small_backbone, task, delta)[0] for name, delta in {"0": None, **deltas}.items()}
    labels = logits_by_hand(small_backbone, task, None)[1]
    images = evaluator.base_features(task)
    correct = 0
    for row in range(len(labels)):
        similarity = {name: float((images[row] @ prototypes[name].T).max()) for name in deltas}
        chosen = sorted(deltas, key=lambda name: -similarity[name])[: top_k - include]
        similarity["0"] = max(similarity.values())
        chosen = (["0"] if include else []) + chosen
        weights = [max(0.0, similarity[name]) if aggregation == "weighted" else 1.0 for name in chosen]
        if not any(weights):
            weights = [1.0] * len(chosen)
        total = sum(weight * every[name][row] for weight, name in zip(weights, chosen, strict=True))
        correct += int(total.argmax() == labels[row])
    assert (count.correct, count.images) == (correct, len(labels))


def test_only_experts_that_some_image_wants_are_made(evaluator, task):
    base = evaluator.base_features(task).mean(dim=0, keepdim=True)
    near = torch.nn.functional.normalize(base, dim=-1)
    called = []
    experts = {name: lambda name=name: called.append(name) or noise(evaluator.theta0, 0) for name in ("near", "far")}
    inference = Inference(top_k=1, include_pretrained=False)
    evaluator.aggregated(task, experts, {"near": near, "far": -near}, inference)
    assert called == ["near"]


def test_max_images_takes_the_first(small_backbone, task):
    backbone = load_backbone(backbone_spec(pretrained=str(small_backbone)))
    evaluator = Evaluator(backbone, batch_size=4, max_images=10)
    scores, labels = logits_by_hand(small_backbone, task, None)
    count = evaluator.known(task, None)
    assert (count.correct, count.images) == (int((scores.argmax(1) == labels)[:10].sum()), 10)


def test_nothing_is_kept_beyond_the_limit_and_the_result_is_the_same(evaluator, task, monkeypatch):
    expected = evaluator.known(task, None).correct
    fresh = Evaluator(evaluator.backbone, batch_size=7)
    monkeypatch.setattr(evaluate, "CACHED_BYTES", 100)
    assert fresh.known(task, None).correct == expected
    assert np.sum([len(entry) for entry in fresh._pixels.values()]) == 0
