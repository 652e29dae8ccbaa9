"""iCaRL as ZSCL has it: one memory for all earlier data sets, theta0 teaches on it, and no label of it counts."""

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from condu_ray.learn.exemplars import EXEMPLARS, herding
from condu_ray.learn.objective import Batch, ClipClassifier, Objective
from condu_ray.learn.teacher import both_ways
from condu_ray.methods import get
from condu_ray.vlm.preprocess import Preprocessor


def one_batch(lesson):
    pixels, labels = next(lesson.training_images())
    return Batch(0, lesson.images(pixels), torch.from_numpy(labels))


@pytest.mark.parametrize(("memory", "shares"), [(10, (5, 5)), (1000, (6, 20)), (14, (6, 7))])
def test_each_earlier_task_has_its_share_of_the_memory(school, kept, memory, shares):
    lesson = school.lesson("icarl", school.configured(replay={"memory": memory}), exemplars=kept, position=2)
    objective, batch = get("icarl", lesson.config).objective(lesson), one_batch(lesson)
    known = torch.cat([lesson.images(one.pixels[:most]) for one, most in zip(kept, shares, strict=True)])
    seen = set()
    for _ in range(60):
        images, tokens = objective.inputs(batch)
        assert torch.equal(images[:7], batch.images)
        assert torch.equal(tokens, objective.tokens_CL)  # no other task's prompts
        rows = [next(i for i, other in enumerate(known) if torch.equal(image, other)) for image in images[7:]]
        assert len(set(rows)) == len(rows) == 8
        seen |= set(rows)
    assert seen == set(range(sum(shares)))


def test_theta0_teaches_over_the_tasks_own_prompts_and_no_exemplar_is_classified(school, kept):
    config = school.configured(distillation={"weight": 0.5, "temperature": 3.0})
    plain = school.lesson("icarl", config, exemplars=kept)
    moved = {
        name: 0.1 * torch.randn(t.shape, generator=torch.Generator().manual_seed(1)) for name, t in plain.theta0.items()
    }
    lesson = school.lesson("icarl", config, exemplars=kept, weights=moved)
    objective, batch = get("icarl", config).objective(lesson), one_batch(lesson)
    named = dict(objective.teacher.model.named_parameters())
    assert all(torch.equal(named[name], tensor) for name, tensor in lesson.theta0.items())
    images, tokens = objective.inputs(batch)
    image_BD, text_CD = ClipClassifier(lesson.backbone.model)(images, tokens)
    with torch.no_grad():
        teacher_BD, words_CD = ClipClassifier(objective.teacher.model)(images[7:], objective.tokens_CL)
    scale = objective.scale
    expected = Objective.loss(objective, batch, image_BD, text_CD) + 0.5 * both_ways(
        scale * teacher_BD @ words_CD.T, scale * image_BD[7:] @ words_CD.T, 3.0
    )
    assert objective.loss(batch, image_BD, text_CD).item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize(("memory", "position", "stored"), [(9, 0, 9), (9, 1, 4), (1000, 1, 24), (2, 6, 1)])
def test_what_is_stored_is_herded_over_the_whole_data_set(school, kept, tmp_path, memory, position, stored):
    config = school.configured(replay={"memory": memory})
    lesson = school.lesson("icarl", config, exemplars=kept[: min(position, 2)], position=position)
    objective = get("icarl", config).objective(lesson)
    school.train(lesson, objective)
    ((name, write),) = objective.files().items()
    assert name == EXEMPLARS
    write(tmp_path / name)
    found, source = pq.read_table(tmp_path / name), pq.read_table(lesson.task.train)
    preprocessor = Preprocessor(school.spec.preprocess)
    pixels = np.stack([preprocessor.pixels(encoded.as_py()) for encoded in source["image"]])
    with torch.no_grad():
        features = lesson.backbone.model.encode_image(lesson.images(pixels), normalize=True)
    rows = herding(features, torch.zeros(len(pixels), dtype=torch.int64), stored)
    assert len(rows) == stored == len(found)
    assert np.array_equal(np.stack([preprocessor.pixels(one.as_py()) for one in found["image"]]), pixels[rows])
    assert found["label"].to_pylist() == [source["label"][row].as_py() for row in rows.tolist()]
