import logging
from functools import partial

import pytest
import torch

from condu_ray.config import Training
from condu_ray.learn import strictness as module
from condu_ray.learn.loop import fine_tune
from condu_ray.learn.objective import ClipClassifier, Objective
from tests.learn.test_loop import make_lesson, stream

WORDS = "my_kernel does not have a deterministic implementation, but you set use_deterministic_algorithms"


class Attention(torch.autograd.Function):
    """Notes in its backward pass whether torch asks for deterministic algorithms; raises there on demand."""

    @staticmethod
    def forward(ctx, values, seen, words):
        ctx.seen, ctx.words = seen, words
        return values.clone()

    @staticmethod
    def backward(ctx, gradient):
        ctx.seen.append(not torch.is_deterministic_algorithms_warn_only_enabled())
        if ctx.words and ctx.seen[-1]:
            raise RuntimeError(ctx.words)
        return gradient, None, None


@pytest.fixture(autouse=True)
def as_in_a_lane(monkeypatch):
    """A CPU that is taken for a GPU, in a worker that has asked for deterministic algorithms as lanes do."""
    monkeypatch.setattr(module, "KINDS", {"cpu"})
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


def trained(small_backbone, task_data, words="", dropout=0.0, objective=Objective, **training):
    lesson, seen = make_lesson(small_backbone, task_data, steps=3, **training), []
    model = lesson.backbone.model

    def hook(layer, given, found):
        return Attention.apply(torch.nn.functional.dropout(found, dropout, layer.training), seen, words)

    model.ln_final.register_forward_hook(hook)
    torch.manual_seed(0)
    fine_tune(ClipClassifier(model), stream(lesson), objective(lesson))
    return seen, lesson.backbone.snapshot()


@pytest.mark.parametrize("accumulate", [1, 3])
def test_steps_are_strict_and_have_the_bits_that_they_have_without(small_backbone, task_data, monkeypatch, accumulate):
    train = partial(trained, small_backbone, task_data, dropout=0.2, accumulate=accumulate)
    seen, found = train()
    assert seen == [True] * 4  # one before the steps
    assert torch.is_deterministic_algorithms_warn_only_enabled()
    monkeypatch.setattr(module, "KINDS", set())
    seen, expected = train()
    assert seen == [False] * 3
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_a_model_that_cannot_be_strict_is_trained_and_that_is_said(small_backbone, task_data, caplog):
    with caplog.at_level(logging.WARNING):
        seen, _ = trained(small_backbone, task_data, WORDS)
    assert seen == [True, False, False, False]
    assert "not to the same bits each time: my_kernel does not have a deterministic implementation" in caplog.text


def test_a_loss_that_cannot_be_strict_says_what_to_do(small_backbone, task_data):
    class Loss(Objective):
        def loss(self, batch, image_BD, text_CD):
            return Attention.apply(super().loss(batch, image_BD, text_CD), [], WORDS)

    with pytest.raises(RuntimeError, match=r"the loss: my_kernel .*; give --training.deterministic false"):
        trained(small_backbone, task_data, objective=Loss)
    assert torch.is_deterministic_algorithms_warn_only_enabled()


def test_another_error_is_no_matter_of_strictness(small_backbone, task_data):
    with pytest.raises(RuntimeError, match="out of memory"):
        trained(small_backbone, task_data, "out of memory")


def test_who_does_not_ask_for_deterministic_algorithms_has_no_pass_more(small_backbone, task_data):
    torch.use_deterministic_algorithms(False)
    seen, _ = trained(small_backbone, task_data)
    assert len(seen) == 3
    assert not torch.are_deterministic_algorithms_enabled()


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("wanted", [False, True])
def test_torch_is_asked_for_what_the_settings_say(monkeypatch, wanted, compiled):
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
    module.deterministic(Training(deterministic=wanted, compile=compiled))
    assert not torch.utils.deterministic.fill_uninitialized_memory
    assert torch.are_deterministic_algorithms_enabled() is wanted
    assert torch.is_deterministic_algorithms_warn_only_enabled() or not wanted
    if compiled:
        assert torch._inductor.config.deterministic is wanted
