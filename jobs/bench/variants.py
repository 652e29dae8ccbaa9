"""What may be done to a classifier before a measured training; each is a `change` of `steps.ours`."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor, nn

from condu_ray.learn.objective import ClipClassifier
from condu_ray.vlm.context import cut
from condu_ray.vlm.towers import train_mode
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


def _at_length(classifier: ClipClassifier, work: Work) -> int:
    length = cut(classifier.model, work.backbone.tokenizer(work.task.prompts())).shape[1]
    classifier._cut = lambda tokens: tokens[:, :length]  # type: ignore[assignment]
    return length


def graphed(work: Work) -> Callable[[ClipClassifier], nn.Module]:
    """Has both passes of the classifier captured as CUDA graphs, which the host starts at once."""

    def change(classifier: ClipClassifier) -> nn.Module:
        _at_length(classifier, work)
        height, width = work.backbone.spec.image_size
        images: Tensor = torch.rand(work.batch, 3, height, width, device=work.device)
        tokens = work.backbone.tokenizer(work.task.prompts()).to(work.device)
        train_mode(classifier)
        # Casts must be part of the graph: a cache of autocast would keep those of the weights of now.
        with torch.autocast(work.device.type, torch.bfloat16, cache_enabled=False):
            torch.cuda.make_graphed_callables(classifier, (images, tokens))  # in place
        return classifier

    return change
