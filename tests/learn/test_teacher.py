"""Distillation against its formula, and the frozen copy that teaches."""

from types import SimpleNamespace

import pytest
import torch

from condu_ray.learn.teacher import Teacher, both_ways, distillation_loss
from condu_ray.vlm.model import backbone_spec, load_backbone


def logits(seed, rows=5, columns=7):
    return 4 * torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def by_hand(teacher, student, temperature):
    """T^2 * mean over rows of -sum_c p_c log q_c, value by value."""
    total = 0.0
    for p, q in zip(teacher.tolist(), student.tolist(), strict=True):
        p, q = (torch.tensor(row, dtype=torch.float64).div(temperature).exp() for row in (p, q))
        total -= sum(float(a / p.sum()) * float((b / q.sum()).log()) for a, b in zip(p, q, strict=True))
    return temperature**2 * total / len(teacher)


@pytest.mark.parametrize("temperature", [1.0, 2.0, 5.0])
def test_the_formulas(temperature):
    teacher, student = logits(0), logits(1)
    assert float(distillation_loss(teacher, student, temperature)) == pytest.approx(
        by_hand(teacher, student, temperature)
    )
    assert float(both_ways(teacher, student, temperature)) == pytest.approx(
        by_hand(teacher, student, temperature) + by_hand(teacher.T, student.T, temperature)
    )


def test_a_student_that_equals_its_teacher_is_at_the_minimum():
    teacher = logits(0)
    student = teacher.clone().requires_grad_()
    both_ways(teacher, student, 2.0).backward()
    assert student.grad.abs().max() < 1e-12
    entropy = -sum(
        (table.softmax(dim=1) * table.log_softmax(dim=1)).sum() / len(table) for table in (teacher / 2, teacher.T / 2)
    )
    least = float(both_ways(teacher, teacher, 2.0))
    assert least == pytest.approx(4 * float(entropy))
    assert all(float(both_ways(teacher, teacher + 0.1 * logits(seed), 2.0)) > least for seed in range(1, 9))


@pytest.fixture
def lesson(small_backbone):
    backbone = load_backbone(backbone_spec(pretrained=str(small_backbone)))
    return SimpleNamespace(backbone=backbone, theta0=backbone.snapshot())


def move(backbone):
    with torch.no_grad():
        for parameter in backbone.trainable.values():
            parameter.add_(0.1)


@pytest.mark.parametrize("given", [False, True])
def test_a_teacher_keeps_the_weights_that_it_was_made_with(lesson, given):
    images, tokens = torch.rand(3, 3, 16, 16), lesson.backbone.tokenizer([f"a {word}" for word in "abcdefg"])
    with torch.no_grad():
        expected = lesson.backbone.model.encode_image(images, normalize=True)
        words = lesson.backbone.model.encode_text(tokens, normalize=True)
    if given:
        move(lesson.backbone)
    teacher = Teacher(lesson, lesson.theta0 if given else None)
    move(lesson.backbone)
    assert torch.equal(teacher.images(images), expected)
    assert torch.allclose(teacher.texts(tokens, batch_size=3), words, atol=1e-6)
    assert not teacher.images(images).requires_grad
    assert not any(parameter.requires_grad for parameter in teacher.model.parameters())
    assert all(parameter.requires_grad for parameter in lesson.backbone.trainable.values())  # the student still learns
    with torch.no_grad():
        moved = lesson.backbone.model.encode_image(images, normalize=True)
    assert not torch.allclose(moved, expected, atol=1e-3)
