"""Objectives of fine-tuning."""

from __future__ import annotations

from open_clip import CLIP
from torch import Tensor, nn
from torch.nn import functional


class ClipClassifier(nn.Module):
    """A CLIP model as a classifier whose weights are its own text features, both encoders in one forward pass.

    One module with one forward, so that DistributedDataParallel sees every parameter that is used.
    """

    def __init__(self, model: CLIP) -> None:
        super().__init__()
        self.model: CLIP = model

    def forward(self, images_BCHW: Tensor, tokens_CL: Tensor) -> Tensor:
        """Returns logits [B, C] float32: exp(logit_scale) * cos(image, text)."""
        image_BD = self.model.encode_image(images_BCHW, normalize=True)
        text_CD = self.model.encode_text(tokens_CL, normalize=True)
        return self.model.logit_scale.exp() * image_BD.float() @ text_CD.float().T


def classification_loss(logits_BC: Tensor, label_B: Tensor, label_smoothing: float) -> Tensor:
    """Cross entropy with label smoothing; a scalar."""
    return functional.cross_entropy(logits_BC, label_B, label_smoothing=label_smoothing)
