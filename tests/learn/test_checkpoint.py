"""What a checkpoint holds, and whose trainings it is taken of."""

import pytest
import torch

from condu_ray.learn.checkpoint import Saving
from condu_ray.learn.loop import fine_tune
from condu_ray.learn.objective import ClipClassifier, Objective
from tests.learn.test_loop import make_lesson, stream

STEPS = 6


class Noisy(Objective):
    """Draws from torch's generator in every step, and keeps a sum that its loss depends on."""

    def __init__(self, lesson):
        super().__init__(lesson)
        self.sum = torch.zeros(())

    def loss(self, batch, image_BD, text_CD):
        self.sum = self.sum + torch.rand(())
        return self.sum * super().loss(batch, image_BD, text_CD)

    def state(self):
        return {"sum": self.sum}

    def restore(self, state):
        self.sum = state["sum"]


class Heir(Noisy):
    """Says nothing itself."""


def train(small_backbone, task_data, kind, *, earlier=None, seconds=0.0):
    """Returns the weights, the loss and the checkpoints."""
    torch.manual_seed(0 if earlier is None else 99)
    lesson = make_lesson(small_backbone, task_data, steps=STEPS, begin=earlier.step if earlier else 0)
    found = []

    def write(checkpoint):
        found.append(type(checkpoint)(checkpoint.step, {n: t.clone() for n, t in checkpoint.tensors.items()}))

    loss = fine_tune(
        ClipClassifier(lesson.backbone.model), stream(lesson), kind(lesson), earlier=earlier,
        saving=Saving(seconds, write),
    )  # fmt: skip
    return lesson.backbone.snapshot(), loss, found


@pytest.mark.parametrize("kind", [Objective, Noisy])
def test_a_training_goes_on_from_any_step_to_the_same_bits(small_backbone, task_data, kind):
    weights, loss, checkpoints = train(small_backbone, task_data, kind)
    assert [one.step for one in checkpoints] == list(range(1, STEPS))
    for one in checkpoints[::2]:
        again, same, later = train(small_backbone, task_data, kind, earlier=one)
        assert all(torch.equal(again[name], weights[name]) for name in weights)
        assert same == loss
        assert [other.step for other in later] == list(range(one.step + 1, STEPS))


def test_an_objective_that_does_not_say_itself_what_it_depends_on_has_none(small_backbone, task_data):
    assert not train(small_backbone, task_data, Heir)[2]


def test_what_is_not_due_is_not_taken(small_backbone, task_data):
    assert not train(small_backbone, task_data, Objective, seconds=3600)[2]


def test_a_checkpoint_of_another_training_is_refused(small_backbone, task_data):
    one = train(small_backbone, task_data, Objective)[2][0]
    other = type(one)(one.step, {n: t for n, t in one.tensors.items() if "visual.proj" not in n})
    with pytest.raises(RuntimeError, match="task walls: the checkpoint of step 1 is of another training"):
        train(small_backbone, task_data, Objective, earlier=other)
