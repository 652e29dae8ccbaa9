"""Deterministic algorithms; on a GPU attention's too, which torch has only where every operation has to have one.

Where it is only to warn of those that are not, the backward passes of its fast kernels add up in any order, without a
word. Three blocks of 128 keys are enough for other bits each time: a ViT-L/14 has 257, a ViT-B/16 197.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor, nn

from condu_ray.config import Training
from condu_ray.learn.draws import Draws

log = logging.getLogger(__name__)

KINDS = frozenset({"cuda"})
"""Kinds of devices where it makes a difference."""

WORDS = "does not have a deterministic implementation"
"""What torch says of an operation that has none."""

Around = Callable[[], AbstractContextManager[object]]


def deterministic(settings: Training) -> None:
    """Has torch take deterministic algorithms where it has them, or not; and its compiler, where that is used.

    `torch.use_deterministic_algorithms` says so to the compiler too, for which it loads it: 3 CPU seconds. New memory
    is not filled, as it would be for programs that read it before they write: that is 2 % of a small CLIP's step.

    Args:
        settings: of the training.
    """
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    if settings.compile:
        torch.use_deterministic_algorithms(settings.deterministic, warn_only=True)
    else:
        torch.set_deterministic_debug_mode("warn" if settings.deterministic else "default")


def strictly(clip: nn.Module, images_BCHW: Tensor, tokens_CL: Tensor, computing: Around) -> Around:
    """Returns what the backward passes of a training are to run in; tried on one whose gradients are thrown away.

    A model that has an operation without a deterministic algorithm is trained as ever, and that is said.

    Args:
        clip: a `ClipClassifier` in training mode, without gradients.
        images_BCHW: of a part of a batch.
        tokens_CL: of prompts.
        computing: what forward passes run in.

    Raises:
        RuntimeError: the pass fails for another reason.
    """
    if images_BCHW.device.type not in KINDS or not torch.are_deterministic_algorithms_enabled():
        return nullcontext
    try:
        with Draws(images_BCHW.device).again():
            with computing():
                image_BD, text_CD = clip(images_BCHW, tokens_CL.clone())  # a copy is not shared out to other workers
            with _strict():
                (image_BD.sum() + text_CD.sum()).backward()
    except RuntimeError as error:
        if WORDS not in str(error):
            raise
        log.warning("training is not to the same bits each time: %s", str(error).partition(",")[0])
        return nullcontext
    finally:
        clip.zero_grad(set_to_none=True)
    return _step


@contextmanager
def _step() -> Iterator[None]:
    try:
        with _strict():
            yield
    except RuntimeError as error:
        if WORDS not in str(error):
            raise
        what = str(error).partition(",")[0]
        raise RuntimeError(f"the loss: {what}; give --training.deterministic false, or another loss") from error


@contextmanager
def _strict() -> Iterator[None]:
    lenient = torch.is_deterministic_algorithms_warn_only_enabled()
    torch.set_deterministic_debug_mode("error")
    try:
        yield
    finally:
        torch.set_deterministic_debug_mode("warn" if lenient else "error")
