"""Rehearsal: earlier tasks' exemplars alone, and nothing at all where there are none."""

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from condu_ray.learn.exemplars import EXEMPLARS, herding
from condu_ray.learn.objective import Batch, ClipClassifier, Objective, classification_loss
from condu_ray.learn.teacher import both_ways
from condu_ray.methods import get
from condu_ray.vlm.preprocess import Preprocessor


def forward(lesson, objective, batch):
    images, tokens = objective.inputs(batch)
    return images, tokens, *ClipClassifier(lesson.backbone.model)(images, tokens)


def one_batch(lesson):
    pixels, labels = next(lesson.training_images())
    return Batch(0, lesson.images(pixels), torch.from_numpy(labels))


def test_a_step_rehearses_one_earlier_task_with_its_own_prompts(school, kept):
    lesson = school.lesson("rehearsal", school.configured(), exemplars=kept)
    objective, batch, seen = get("rehearsal", lesson.config).objective(lesson), one_batch(lesson), set()
    allowed = {kept.task: lesson.images(kept.pixels) for kept in lesson.exemplars}
    prompts = {kept.task: lesson.tokens(list(kept.prompts)) for kept in lesson.exemplars}
    for _ in range(12):
        images, tokens = objective.inputs(batch)
        assert torch.equal(images[: len(batch.labels)], batch.images)
        assert torch.equal(tokens[: len(objective.tokens_CL)], objective.tokens_CL)
        rehearsed, own = images[len(batch.labels) :], tokens[len(objective.tokens_CL) :]
        (task,) = [name for name in prompts if prompts[name].shape == own.shape and torch.equal(prompts[name], own)]
        rows = [next(i for i, known in enumerate(allowed[task]) if torch.equal(known, image)) for image in rehearsed]
        assert len(set(rows)) == len(rows) == {"doors": 6, "cars": 8}[task]  # a batch, or all that there are
        seen.add(task)
    assert seen == {"doors", "cars"}


def test_the_loss_is_the_sum_of_three_terms(school, kept):
    config = school.configured(distillation={"weight": 0.5, "temperature": 3.0})
    plain = school.lesson("rehearsal", config, exemplars=kept)
    moved = {
        name: 0.1 * torch.randn(t.shape, generator=torch.Generator().manual_seed(1)) for name, t in plain.theta0.items()
    }
    lesson = school.lesson("rehearsal", config, exemplars=kept[:1], weights=moved)
    objective, batch = get("rehearsal", config).objective(lesson), one_batch(lesson)
    start = ClipClassifier(objective.teacher.model)
    school.train(lesson, objective)
    images, _, image_BD, text_CD = forward(lesson, objective, batch)
    rehearsed, labels = images[7:], []
    known = lesson.images(kept[0].pixels)
    for image in rehearsed:
        labels.append(int(kept[0].labels[next(i for i, other in enumerate(known) if torch.equal(image, other))]))
    with torch.no_grad():
        teacher_BD, words_CD = start(rehearsed, lesson.tokens(list(kept[0].prompts)))
    scale, smoothing = objective.scale, lesson.settings.label_smoothing
    expected = (
        classification_loss(scale * image_BD[:7] @ text_CD[:3].T, batch.labels, smoothing)
        + classification_loss(scale * image_BD[7:] @ text_CD[3:].T, torch.tensor(labels), smoothing)
        + 0.5 * both_ways(scale * teacher_BD @ words_CD.T, scale * image_BD[7:] @ words_CD.T, 3.0)
    )
    assert objective.loss(batch, image_BD, text_CD).item() == pytest.approx(expected.item(), rel=1e-5)
    named = dict(objective.teacher.model.named_parameters())
    assert all(torch.equal(named[name], lesson.theta0[name] + moved[name]) for name in moved)  # theta_(t-1)


@pytest.mark.parametrize("method", ["rehearsal", "icarl"])
def test_without_exemplars_it_is_the_plain_objective_bit_for_bit(school, method):
    found = []
    for make in (lambda lesson: get(method, lesson.config).objective(lesson), Objective):
        lesson = school.lesson(method, school.configured(), position=0)
        found.append(school.train(lesson, make(lesson)))
    assert found[0][1] == found[1][1]
    assert all(torch.equal(found[0][0][name], found[1][0][name]) for name in found[0][0])


def test_seed_position_and_worker_draw_others(school, kept):
    def drawn(rank=0, position=1, seed=0):
        lesson = school.lesson(
            "rehearsal", school.configured(seed=seed), exemplars=kept[1:], rank=rank, position=position
        )
        objective = get("rehearsal", lesson.config).objective(lesson)
        return objective.inputs(one_batch(lesson))[0]

    assert torch.equal(drawn(), drawn())
    for change in ({"rank": 1}, {"position": 2}, {"seed": 1}):
        assert not torch.equal(drawn(), drawn(**change))


@pytest.mark.parametrize("per_class", [2, 100])
def test_what_is_stored_is_herded_by_the_trained_model(school, tmp_path, per_class):
    lesson = school.lesson("rehearsal", school.configured(replay={"per_class": per_class}), position=0)
    objective = get("rehearsal", lesson.config).objective(lesson)
    school.train(lesson, objective)
    ((name, write),) = objective.files().items()
    assert name == EXEMPLARS
    write(tmp_path / name)
    stored, source = pq.read_table(tmp_path / name), pq.read_table(lesson.task.train)
    assert stored["label"].to_pylist() == [label for label in range(3) for _ in range(min(per_class, 8))]
    preprocessor = Preprocessor(school.spec.preprocess)
    pixels = np.stack([preprocessor.pixels(encoded.as_py()) for encoded in source["image"]])
    with torch.no_grad():
        features = lesson.backbone.model.encode_image(lesson.images(pixels), normalize=True)
    rows = herding(features, torch.tensor(source["label"].to_pylist()), per_class)
    found = np.stack([preprocessor.pixels(encoded.as_py()) for encoded in stored["image"]])
    assert np.array_equal(found, pixels[rows])
