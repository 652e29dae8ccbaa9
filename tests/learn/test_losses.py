"""Losses are read late, and for all that a training that lost its numbers stops, with the step that it happened at."""

from itertools import count

import pytest
import torch

from condu_ray.learn import loop
from condu_ray.learn.agreement import Agreement
from condu_ray.learn.losses import DivergedError, Losses
from condu_ray.learn.objective import ClipClassifier, Objective
from tests.learn.test_loop import make_lesson, stream

ALONE = Agreement({}, rank=0, world=1)
READS = ("item", "tolist", "numpy", "__float__", "__bool__", "__int__")


class Several:
    """Two workers, of whom the other one's losses are given."""

    rank, several = 1, True

    def __init__(self, other):
        self._other, self._step = other, 0

    def losses(self, loss_K):
        other = self._other[self._step : self._step + len(loss_K)]
        self._step += len(loss_K)
        return [{0: one, 1: own} for one, own in zip(other, loss_K.tolist(), strict=True)]


def given(losses, values):
    for value in values:
        losses.add(torch.tensor(value))
    losses.read()


@pytest.mark.parametrize("every", [1, 3, 4, 50])
def test_values_are_all_there_in_order_and_read_at_the_first_and_every_few_steps(every):
    losses, known = Losses(ALONE, "walls", 1.0, every), []
    for step in range(1, 11):
        losses.add(torch.tensor(float(step), requires_grad=True) * 2)
        known.append(losses.latest)
    late = [1 + (step - 1) // every * every for step in range(1, 11)]
    assert known == [2.0 * step for step in late]
    losses.read()
    losses.read()
    assert losses.values == [2.0 * step for step in range(1, 11)]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("step", [1, 2, 5, 9])
def test_the_first_lost_number_is_named_by_its_step(bad, step):
    losses = Losses(ALONE, "walls", 0.5, 4)
    with pytest.raises(DivergedError, match=rf"task walls: the loss became {bad} at step {step}; lower .* \(0.5\)"):
        given(losses, [bad if number >= step else 1.0 for number in range(1, 10)])
    assert len(losses.values) == step - 1


def test_a_workers_lost_number_stops_the_others():
    losses = Losses(Several([1.0, 1.0, float("nan"), 1.0, 1.0]), "walls", 0.5, 4)
    with pytest.raises(DivergedError, match=r"became nan at step 3 on rank 0 of 2; .* memory and GPU behind rank 0"):
        given(losses, [1.0] * 5)


class Astray(Objective):
    """Loses its numbers at a step."""

    at = 0

    def loss(self, batch, image_BD, text_CD):
        return super().loss(batch, image_BD, text_CD) * (float("nan") if batch.step == self.at - 1 else 1.0)


def trained(small_backbone, task_data, every, monkeypatch, at=0):
    monkeypatch.setattr(loop, "Losses", lambda agreement, task, peak, _: Losses(agreement, task, peak, every))
    monkeypatch.setattr(Astray, "at", at)
    lesson, progress = make_lesson(small_backbone, task_data, steps=15), []
    lesson.backbone.model.train()
    classifier = ClipClassifier(lesson.backbone.model)
    return loop.fine_tune(classifier, stream(lesson), Astray(lesson), progress.append), lesson, progress


def test_a_training_read_late_is_the_same_to_the_bit(small_backbone, task_data, monkeypatch):
    one, at_once, told = trained(small_backbone, task_data, 1, monkeypatch)
    other, late, told_late = trained(small_backbone, task_data, 6, monkeypatch)
    assert one == other
    weights, expected = late.backbone.snapshot(), at_once.backbone.snapshot()
    assert all(torch.equal(weights[name], expected[name]) for name in expected)
    assert [progress.step for progress in told_late] == [progress.step for progress in told] == list(range(1, 16))
    shown = [1, 1, 1, 1, 1, 1, 7, 7, 7, 7, 7, 7, 13, 13, 13]
    assert [progress.loss for progress in told_late] == [told[step - 1].loss for step in shown]


@pytest.mark.parametrize("at", [1, 4, 15])
def test_a_training_read_late_ends_with_the_same_words(small_backbone, task_data, monkeypatch, at):
    said = []
    for every in (1, 6):
        with pytest.raises(DivergedError) as caught:
            trained(small_backbone, task_data, every, monkeypatch, at)
        said.append(str(caught.value))
    assert said[0] == said[1]
    assert f"at step {at};" in said[0]


def test_nothing_else_of_a_step_is_read(small_backbone, task_data, monkeypatch):
    """Every read of a tensor would wait for a GPU: 1, 7, 13 and the rest of 15 steps are four reads."""
    lesson = make_lesson(small_backbone, task_data, steps=15)
    objective, classifier = Objective(lesson), ClipClassifier(lesson.backbone.model)
    rows = list(stream(lesson))
    classifier(*objective.inputs(loop.Batch(0, lesson.images(rows[0]["image"]), torch.zeros(12))))  # lengths are known
    monkeypatch.setattr(loop, "Losses", lambda agreement, task, peak, _: Losses(agreement, task, peak, 6))
    reads = count()
    for name in READS:
        read = getattr(torch.Tensor, name)
        monkeypatch.setattr(torch.Tensor, name, lambda *given, read=read: (next(reads), read(*given))[1])
    loop.fine_tune(classifier, iter(rows), objective)
    assert next(reads) == 4
