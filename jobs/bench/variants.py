"""What may be done to a classifier before a measured training; each is a `change` of `steps.ours`."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import nn

from condu_ray.learn.objective import ClipClassifier
from condu_ray.vlm.context import cut
from jobs.bench.steps import Work


def at_whole_context(classifier: ClipClassifier) -> nn.Module:
    """Has prompts encoded at full context."""
    classifier._cut = lambda tokens: tokens  # type: ignore[assignment]
    return classifier


def at_eights(classifier: ClipClassifier) -> nn.Module:
    """Has prompts cut at a multiple of eight."""
    model = classifier.model
    length = functools.cache(lambda tokens: min(tokens.shape[1], -(-cut(model, tokens).shape[1] // 8) * 8))
    classifier._cut = lambda tokens: tokens[:, : length(tokens)]  # type: ignore[assignment]
    return classifier


def channels_last(classifier: ClipClassifier) -> nn.Module:
    """Has convolutions work on channels last."""
    return classifier.to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]


def checkpointed(classifier: ClipClassifier) -> nn.Module:
    """Has activations computed again in the backward pass."""
    classifier.model.set_grad_checkpointing(True)
    return classifier


def compiled(work: Work) -> Callable[[ClipClassifier], nn.Module]:
    """Has torch compile the classifier for the work's prompts."""

    def change(classifier: ClipClassifier) -> nn.Module:
        length = cut(classifier.model, work.backbone.tokenizer(work.task.prompts())).shape[1]
        classifier._cut = lambda tokens: tokens[:, :length]  # type: ignore[assignment]
        module: nn.Module = torch.compile(classifier)  # type: ignore[assignment]
        return module

    return change
