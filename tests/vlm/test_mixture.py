"""The mixture: who is asked, over which classes, and that probabilities add up."""

import pytest
import torch

from condu_ray.vlm.calibration import calibration_error, fit_temperature, logistic
from condu_ray.vlm.mixture import Answers, Mixture, asked


def test_experts_are_asked_until_they_add_up():
    chance = torch.tensor([[0.6, 0.395, 0.004, 0.001], [0.25, 0.25, 0.25, 0.25], [0.0, 0.995, 0.005, 0.0]]).double()
    left = asked(chance, 0.99)
    assert left[0].tolist() == pytest.approx([0.6 / 0.995, 0.395 / 0.995, 0, 0])
    assert torch.equal(left[1], chance[1])
    assert left[2].tolist() == [0, 1, 0, 0]
    assert torch.equal(asked(chance, 1.0), chance / chance.sum(1, keepdim=True))


IDS = torch.tensor([0, 1, 2, 1, 3, 4])
OWNERS = ["x", "x", "y", "y", "y", "new"]


def test_an_expert_answers_for_its_own_classes_under_its_own_prompt():
    who = Answers(IDS, OWNERS, {"x": {0, 1}, "y": {1, 2, 3}, "z": set(), "w": {1}})
    assert who.columns("x").tolist() == [0, 1]
    assert who.columns("y").tolist() == [2, 3, 4]
    assert who.columns("w").tolist() == [1]  # another task's prompt, where it has none of its own
    assert who.columns("z").tolist() == [0, 1, 2, 4, 5]  # none is its own: all of them, each class once
    assert who.unknown_columns().tolist() == [5]
    assert who.any_known
    assert not Answers(IDS, OWNERS, {"z": set()}).any_known


def test_a_shared_class_gets_both_shares_and_all_adds_up_to_one():
    who = Answers(IDS, OWNERS, {"x": {0, 1}, "y": {1, 2, 3}})
    mixed, every = Mixture(2, IDS), torch.ones(2, dtype=torch.bool)
    logits = {"x": torch.randn(2, 6), "y": torch.randn(2, 6), "new": torch.randn(2, 6)}
    for name, share in (("x", [0.5, 0.2]), ("y", [0.3, 0.2])):
        mixed.add(logits[name], who.columns(name), torch.tensor(share).double(), every)
    mixed.add(logits["new"], who.unknown_columns(), torch.tensor([0.2, 0.6]).double(), every)
    assert torch.allclose(mixed.chance.sum(1), torch.ones(2).double())
    x, y = logits["x"][0, [0, 1]].double().softmax(0), logits["y"][0, [2, 3, 4]].double().softmax(0)
    expected = [0.5 * x[0], 0.5 * x[1] + 0.3 * y[1], 0.3 * y[0], 0.3 * y[2], 0.2]
    assert mixed.chance[0].tolist() == pytest.approx([float(one) for one in expected])
    assert mixed.predicted().tolist() == mixed.chance.argmax(1).tolist()
    assert mixed.predicted()[1] == 4


def test_temperature_of_a_softmax_is_found():
    scores = torch.randn(20_000, 4, generator=torch.Generator().manual_seed(0)).double() * 3
    labels = torch.multinomial(torch.softmax(scores / 2.5, dim=1), 1, generator=torch.Generator().manual_seed(1))[:, 0]
    assert fit_temperature(scores, labels) == pytest.approx(2.5, rel=0.05)
    assert fit_temperature(100 * scores, labels) == pytest.approx(250, rel=0.05)
    assert fit_temperature(scores[:0], labels[:0]) == 1.0
    before = calibration_error(*confidence(scores, labels, 1.0))
    assert calibration_error(*confidence(scores, labels, 2.5)) < 0.02 < before


def confidence(scores, labels, temperature):
    chance, best = torch.softmax(scores / temperature, dim=1).max(1)
    return chance, best == labels


def test_a_few_right_answers_make_nobody_certain():
    scores = torch.eye(3).double().repeat(3, 1)
    chance = torch.softmax(scores / fit_temperature(scores, scores.argmax(1)), dim=1).amax()
    assert 0.8 < float(chance) < 0.95


def test_calibration_error_by_hand():
    assert calibration_error(torch.tensor([0.9, 0.9, 0.1]), torch.tensor([True, False, False])) == pytest.approx(
        (abs(1.8 - 1) + 0.1) / 3
    )


def test_logistic_finds_the_weights_or_believes_beforehand():
    rows = torch.randn(20_000, 2, generator=torch.Generator().manual_seed(0)).double()
    chance = torch.sigmoid(rows @ torch.tensor([1.0, 2.0]).double() - 0.5)
    labels = (torch.rand(20_000, generator=torch.Generator().manual_seed(1)) < chance).double()
    weight, prior = torch.full((20_000,), 1 / 20_000).double(), torch.tensor([0.3, 0.3, 0.0]).double()
    assert logistic(rows, labels, weight, prior, 1e-6).tolist() == pytest.approx([1.0, 2.0, -0.5], abs=0.1)
    assert logistic(-rows[:, :1], labels, weight, prior[1:], 1e-6)[0] == 0  # it speaks for what it is evidence of
    assert logistic(rows, labels, weight, prior, 1e6).tolist() == pytest.approx(prior.tolist(), abs=1e-4)
