"""The package against twins of the public code's formulas, on a small random CLIP in float64, to 1e-8."""

from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from condu_ray.benchmark import load_task
from condu_ray.learn.evaluate import Evaluator
from condu_ray.learn.features import Weights
from condu_ray.learn.lesson import Exemplars
from condu_ray.learn.loop import fine_tune
from condu_ray.learn.objective import Batch, ClipClassifier
from condu_ray.methods import get
from condu_ray.options import Inference
from condu_ray.vlm import lora, router
from condu_ray.vlm.inputs import normalise
from condu_ray.vlm.model import load_backbone
from condu_ray.vlm.preprocess import Preprocessor
from condu_ray.vlm.prototypes import class_prototypes
from condu_ray.vlm.zeroshot import text_sums
from tests.methods import twins

TOLERANCE = 1e-8


def close(found, expected):
    assert found.dtype == expected.dtype == torch.float64
    return bool((found - expected).abs().max() < TOLERANCE)


def noise(like, seed=1, scale=0.1):
    generator = torch.Generator().manual_seed(seed)
    return {name: scale * torch.randn(tensor.shape, generator=generator) for name, tensor in like.items()}


@pytest.fixture
def wide(school):
    """Makes a lesson whose model, at other weights than theta0, is float64; with the weights by name."""

    def make(name, config, **changes):
        plain = school.lesson(name, config)
        full = get(name, config).adapter == "full"
        lesson = school.lesson(name, config, weights=noise(plain.theta0) if full else None, **changes)
        lesson.backbone.model.double()
        theta0 = {key: tensor.double() for key, tensor in lesson.theta0.items()}
        lesson = replace(lesson, theta0=theta0)
        start = {key: p.detach().clone() for key, p in lesson.backbone.model.named_parameters()} if full else theta0
        return lesson, start

    return make


def pixels_of(lesson):
    return next(lesson.training_images())


def one_batch(lesson):
    pixels, labels = pixels_of(lesson)
    return Batch(0, lesson.images(pixels), torch.from_numpy(labels))


def gradients(loss, parameters):
    found = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
    return {
        name: torch.zeros_like(parameter) if grad is None else grad
        for (name, parameter), grad in zip(parameters.items(), found, strict=True)
    }


def check_objective(name, lesson, start, expected, away=None):
    """Compares an objective's loss and all its gradients with a twin's, a function of weights that want gradients.

    `away` is what the weights have moved by since training began.
    """
    objective, batch = get(name, lesson.config).objective(lesson), one_batch(lesson)
    leaves = {key: start[key].clone() for key in lesson.parameters}
    with torch.no_grad():
        for key, moved in (away or {}).items():
            lesson.parameters[key].add_(moved)
            leaves[key].add_(moved)
    leaves = {key: tensor.requires_grad_() for key, tensor in leaves.items()}
    images, tokens = objective.inputs(batch)
    loss = objective.loss(batch, *ClipClassifier(lesson.backbone.model)(images, tokens))
    twin = expected(start | leaves, batch, images[len(batch.labels) :], objective.scale)
    assert close(loss.detach(), twin.detach())
    ours, theirs = gradients(loss, dict(lesson.parameters)), gradients(twin, leaves)
    assert max(float(grad.abs().max()) for grad in theirs.values()) > 1e-3
    assert all(close(ours[key], theirs[key]) for key in ours)


def test_clip_itself(wide, school):
    lesson, start = wide("sequential", school.configured())
    batch, tokens = one_batch(lesson), lesson.tokens(lesson.task.prompts())
    images, texts = ClipClassifier(lesson.backbone.model)(batch.images, tokens)
    assert close(images.detach(), twins.encode_image(start, batch.images))
    assert close(texts.detach(), twins.encode_text(start, tokens))


def test_a_step_of_condu_lora(wide, school):
    rank, rate = 4, 2e-3
    config = school.configured(
        training={"steps": 1, "warmup": 0.0, "label_smoothing": 0.2},
        lora={"rank": rank, "scale": rank**-0.5, "std": 0.01, "lr": rate},
    )
    lesson, start = wide("condu-lora", config)
    pixels, labels = pixels_of(lesson)
    batch, tokens = one_batch(lesson), lesson.tokens(lesson.task.prompts())
    before = {key: p.detach().clone().requires_grad_() for key, p in lesson.parameters.items()}
    names = list(dict.fromkeys(key.rpartition(".lora_")[0] for key in before))
    assert len(names) == 4  # c_fc and c_proj of both encoders' one block
    factors = {name: (before[f"{name}.lora_A"].T, before[f"{name}.lora_B"].T) for name in names}
    scale = lesson.backbone.model.logit_scale.detach().exp()
    weights = {k: v.detach() for k, v in start.items()}
    twin = twins.classification(weights, batch.images, batch.labels, tokens, scale, 0.2, factors)
    expected = gradients(twin, before)

    objective = get("condu-lora", config).objective(lesson)
    loss = objective.loss(batch, *ClipClassifier(lesson.backbone.model)(*objective.inputs(batch)))
    assert close(loss.detach(), twin.detach())
    found = gradients(loss, dict(lesson.parameters))
    assert all(close(found[key], expected[key]) for key in before)

    told = []
    stream = iter([{"image": pixels, "label": labels}])
    classifier = ClipClassifier(lesson.backbone.model)
    fine_tune(classifier, stream, objective, lambda progress: told.append(progress.loss))
    assert told == [pytest.approx(twin.item(), abs=TOLERANCE)]
    for key, parameter in lesson.parameters.items():
        assert close(parameter.detach(), twins.adamw_first_step(before[key].detach(), expected[key], rate))
        assert 0.9 * rate < (parameter - before[key]).abs().max() <= rate  # Adam's first step: nearly the sign


def test_what_lora_adds_to_a_weight(wide, school):
    rank = 4
    config = school.configured(lora={"rank": rank, "scale": rank**-0.5})
    lesson, _ = wide("condu-lora", config)
    for name, delta in lora.materialise(
        {key: p.detach() for key, p in lesson.parameters.items()}, get("condu-lora", config).lora.scale
    ).items():
        a, b = (lesson.parameters[f"{name}.lora_{end}"].detach() for end in "AB")
        assert torch.allclose(delta.double(), (a.T @ b.T).T / rank**0.5, atol=1e-7)  # deltas are kept in float32
        place, _, last = name.rpartition(".")
        layer = lesson.backbone.model.get_submodule(place)
        assert close(getattr(layer, last).detach(), lesson.theta0[name] + (a.T @ b.T).T / rank**0.5)


@pytest.mark.parametrize("second", [True, False])
def test_lwf(wide, school, second):
    config = school.configured(distillation={"second_batch": second})
    lesson, start = wide("lwf", config)
    own = lesson.tokens(lesson.task.prompts())

    def expected(weights, batch, added, scale):
        assert len(added) == (8 if second else 0)
        loss = twins.classification(weights, batch.images, batch.labels, own, scale, 0.2)
        return loss + twins.distilled(weights, start, added if second else batch.images, own, scale, 2.0)

    # The teacher is where training starts; only away from there the distillation has a gradient.
    check_objective("lwf", lesson, start, expected, noise({key: start[key] for key in lesson.parameters}, 4, 0.05))


def test_zscl(wide, school):
    config = school.configured(distillation={"l2": 0.5})
    lesson, start = wide("zscl", config)
    theta0 = start | dict(lesson.theta0)
    own, captions = lesson.tokens(lesson.task.prompts()), lesson.tokens(list(lesson.captions))

    def expected(weights, batch, added, scale):
        assert len(added) == 8
        return (
            twins.classification(weights, batch.images, batch.labels, own, scale, 0.2)
            + twins.distilled(weights, theta0, added, captions, scale, 2.0)
            + 0.5 * twins.squared_distance(weights, {name: start[name] for name in lesson.parameters})
        )

    check_objective("zscl", lesson, start, expected, noise({key: start[key] for key in lesson.parameters}, 4, 0.05))


@pytest.mark.parametrize(("steps", "every"), [(6, 2), (7, 3), (10, 10)])
def test_zscls_ensemble(wide, school, steps, every):
    config = school.configured(distillation={"ensemble_every": every}, training={"steps": steps})
    lesson, start = wide("zscl", config)
    objective, passed = get("zscl", config).objective(lesson), []
    for step in range(steps):
        with torch.no_grad():
            for name, parameter in lesson.parameters.items():
                parameter.add_(noise({name: parameter}, seed=step, scale=0.02)[name])
        passed.append({name: p.detach().clone() for name, p in lesson.parameters.items()})
        objective.after_step(step, None)
    objective.finish()
    passed.append(passed[-1])  # the public loop's last iteration, at the rate 0
    expected = twins.ensemble({name: start[name] for name in lesson.parameters}, passed, every)
    assert all(close(p.detach(), expected[name]) for name, p in lesson.parameters.items())


def test_icarl(wide, school, task_data):
    config = school.configured(replay={"memory": 12})
    task, preprocessor = load_task(task_data / "cars"), Preprocessor(school.spec.preprocess)
    table = pq.read_table(task.test).slice(0, 20)
    pixels = np.stack([preprocessor.pixels(encoded.as_py()) for encoded in table["image"]])
    kept = Exemplars("cars", tuple(task.prompts()), pixels, np.asarray(table["label"], dtype=np.int64))
    lesson, start = wide("icarl", config, exemplars=(kept,))
    theta0, own = start | dict(lesson.theta0), lesson.tokens(lesson.task.prompts())

    def expected(weights, batch, added, scale):
        memory = lesson.images(pixels[:12])
        assert all((memory == image).flatten(1).all(dim=1).any() for image in added)
        assert len(added) == 8
        loss = twins.classification(weights, batch.images, batch.labels, own, scale, 0.2)
        return loss + twins.distilled(weights, theta0, added, own, scale, 2.0)

    check_objective("icarl", lesson, start, expected)


@pytest.fixture
def known(school, task_data):
    """Tasks with two templates, three experts' weights, and all features in float64 by the twins."""
    backbone = load_backbone(school.spec)
    theta0 = backbone.snapshot()
    tasks = [
        replace(load_task(task_data / name), templates=("a {} thing.", "one {}, seen twice."))
        for name in ("walls", "doors", "cars")
    ]
    deltas = {task.name: noise(theta0, seed=3 + place, scale=0.1) for place, task in enumerate(tasks)}
    models = [theta0, *({name: theta0[name] + delta[name] for name in theta0} for delta in deltas.values())]
    models = [{name: tensor.double() for name, tensor in model.items()} for model in models]

    def images(task, split):
        preprocessor = Preprocessor(school.spec.preprocess)
        table = pq.read_table(task.folder / f"{split}.parquet")
        pixels = np.stack([preprocessor.pixels(encoded.as_py()) for encoded in table["image"]])
        normalised = normalise(torch.from_numpy(pixels), school.spec.preprocess).double()
        return normalised, torch.tensor(table["label"].to_pylist())

    def texts(model, task):
        prompts = [[template.replace("{}", name) for name in task.classes] for template in task.templates]
        return [twins.encode_text(model, backbone.tokenizer(some)) for some in prompts]

    return backbone, tasks, deltas, models, images, texts


def test_prototypes_with_the_plain_mean_of_texts(known):
    backbone, tasks, _, models, images, texts = known
    for task in tasks:
        pixels, labels = images(task, "train")
        features = twins.encode_image(models[0], pixels)
        sums = torch.zeros(len(task.classes), features.shape[1], dtype=torch.float64).index_add_(0, labels, features)
        text = text_sums(backbone.model, backbone.tokenizer, task.classes, task.templates) / len(task.templates)
        found = class_prototypes(sums, torch.bincount(labels), text)
        expected = twins.prototypes(features, labels, texts(models[0], task))
        assert torch.allclose(found.double(), expected, atol=1e-6)  # prototypes are kept in float32
        unit = class_prototypes(sums, torch.bincount(labels), torch.nn.functional.normalize(text, dim=-1))
        assert not torch.allclose(unit.double(), expected, atol=1e-5)


@pytest.mark.parametrize("most", [2, 3, 5])
def test_routing_over_the_tested_sets_own_classes(known, most):
    backbone, tasks, deltas, models, images, texts = known
    own = [
        twins.prototypes(twins.encode_image(models[0], images(task, "train")[0]), images(task, "train")[1], found)
        for task in tasks
        for found in [texts(models[0], task)]
    ]
    evaluator = Evaluator(backbone, batch_size=7)
    scale = float(backbone.model.logit_scale.detach().exp())
    options = Inference(aggregation="mean", top_k=most, pretrained_weight="equal", prototype_text="mean")
    for task in tasks:
        pixels, labels = images(task, "test")
        features = [twins.encode_image(model, pixels) for model in models]
        weights = [twins.unit(torch.stack(texts(model, task)).mean(dim=0)) for model in models]
        logits = torch.stack([scale * image @ text.T for image, text in zip(features, weights, strict=True)])
        expected = twins.aggregated(features[0], own, logits, most)
        index, weight = router.candidates(
            router.similarities(features[0], own), top_k=most, include_pretrained=True, aggregation="mean"
        )
        image = torch.arange(len(labels))[:, None]
        found = (weight[:, :, None] * logits[index + 1, image]).sum(dim=1)
        assert close(found, expected)
        measured = evaluator.aggregated(
            task,
            {name: Weights(name, lambda delta=delta: delta) for name, delta in deltas.items()},
            {task.name: proto.float() for task, proto in zip(tasks, own, strict=True)},
            options,
        )
        assert measured.correct == int((expected.argmax(dim=1) == labels).sum())
