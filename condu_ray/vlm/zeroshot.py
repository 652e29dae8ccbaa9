"""Zero-shot classification: class prompts become the weights of a linear classifier on image features."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional

from condu_ray.vlm.context import cut, encode_text

if TYPE_CHECKING:
    from open_clip import CLIP


@torch.no_grad()
def text_features(
    model: CLIP, tokenizer: Any, classes: Sequence[str], templates: Sequence[str], batch_size: int = 512
) -> Tensor:
    """Encodes classes by prompts, averaged over templates (CLIP's prompt ensembling).

    Args:
        model: a CLIP model.
        tokenizer: its tokenizer.
        classes: C class names.
        templates: prompts with one `{}` each.
        batch_size: prompts a forward pass.

    Returns:
        [C, D] float32, L2-normalised.
    """
    return functional.normalize(text_sums(model, tokenizer, classes, templates, batch_size), dim=-1)


@torch.no_grad()
def text_sums(
    model: CLIP, tokenizer: Any, classes: Sequence[str], templates: Sequence[str], batch_size: int = 512
) -> Tensor:
    """The sum over templates of each class's L2-normalised features; arguments as of `text_features`.

    Returns:
        [C, D] float32.
    """
    device = next(model.parameters()).device
    total = None
    for template in templates:
        prompts = [template.replace("{}", name) for name in classes]  # a class name is no format
        parts = [
            wide(encode_text(model, cut(model, tokenizer(prompts[start : start + batch_size])).to(device)))
            for start in range(0, len(prompts), batch_size)
        ]
        features = torch.cat(parts)
        total = features if total is None else total + features
    assert total is not None, "a task has at least one template"
    return total


@torch.no_grad()
def image_features(model: CLIP, images_BCHW: Tensor) -> Tensor:
    """Encodes normalised images: [B, D] float32, L2-normalised."""
    return wide(model.encode_image(images_BCHW, normalize=True))


def logits(model: CLIP, image_BD: Tensor, text_CD: Tensor) -> Tensor:
    """exp(logit_scale) * cosine similarity: [B, C] float32."""
    return wide(model.logit_scale.exp()) * image_BD @ text_CD.T


def wide(tensor: Tensor) -> Tensor:
    """Returns a tensor in float32, or in float64 where it is that already."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
