"""Class prototypes from the pretrained model's features (ConDU, section "Prototypes")."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

log = logging.getLogger(__name__)


def class_prototypes(
    sums_CD: Tensor, counts_C: Tensor, text_CD: Tensor, kind: str = "both", classes: Sequence[str] = ()
) -> Tensor:
    """P_k = normalise((mean image feature of class k + mean text feature of its prompts) / 2).

    Args:
        sums_CD: sum of the L2-normalised image features of each class, float64.
        counts_C: training images of each class.
        text_CD: text feature of each class's prompts, float32, normalised.
        kind: `both`, or `image` or `text` alone (the paper's ablation).
        classes: names, for the warning about a class without an image.

    Returns:
        [C, D] float32, L2-normalised; a class with no image uses its text feature alone.
    """
    empty_C = counts_C == 0
    if kind != "text" and empty_C.any():
        names = [classes[i] if classes else str(i) for i in empty_C.nonzero().flatten().tolist()]
        log.warning("no training image of %s: the prototype is the text feature alone", ", ".join(names))
    image_CD = (sums_CD.double() / counts_C.clamp(min=1).unsqueeze(1)).float()
    if kind == "text":
        mixed_CD = text_CD
    elif kind == "image":
        mixed_CD = image_CD
    else:
        mixed_CD = (image_CD + text_CD) / 2
    return functional.normalize(torch.where(empty_C.unsqueeze(1), text_CD, mixed_CD), dim=-1)
