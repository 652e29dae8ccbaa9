"""A step's passes as CUDA graphs: hundreds of kernels that the host starts by one call.

On a fast GPU a step of a ViT-B/16 in bf16 takes the host longer to start than the GPU to compute (jobs/bench/gpu.py).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from condu_ray.learn.objective import ClipClassifier
from condu_ray.vlm.context import Cut

MOST = 4
"""Shapes of inputs that are captured, each with memory of its own; others are computed as ever."""

Shapes = tuple[torch.Size, torch.Size]


class Graphed(nn.Module):
    """A classifier whose forward and backward passes are captured at the first call with inputs of a shape.

    Some passes are made before the capture, whose gradients nobody sees. Parameters may be written to in place at any
    time; they must not be replaced.

    Args:
        classifier: on a GPU, of a process that trains alone.
    """

    def __init__(self, classifier: ClipClassifier) -> None:
        super().__init__()
        self.classifier = classifier
        self._cut = Cut(classifier.model)
        self._captured: dict[Shapes, ClipClassifier] = {}

    def forward(self, images_BCHW: Tensor, tokens_CL: Tensor) -> tuple[Tensor, Tensor]:
        """Returns what the classifier does."""
        tokens_CL = self._cut(tokens_CL)
        shapes = images_BCHW.shape, tokens_CL.shape
        if shapes not in self._captured and len(self._captured) < MOST:
            self._captured[shapes] = self._capture(images_BCHW, tokens_CL)
        found: tuple[Tensor, Tensor] = self._captured.get(shapes, self.classifier)(images_BCHW, tokens_CL)
        return found

    def _capture(self, images_BCHW: Tensor, tokens_CL: Tensor) -> ClipClassifier:
        own = ClipClassifier(self.classifier.model)
        kind = images_BCHW.device.type
        # Casts have to be part of the graph: autocast's cache would keep those of the parameters of now.
        low = torch.autocast(
            kind, torch.bfloat16, enabled=torch.is_autocast_enabled(kind), cache_enabled=False
        )  # fmt: skip
        with low:
            torch.cuda.make_graphed_callables(own, (images_BCHW.clone(), tokens_CL.clone()))  # its forward, in place
        return own
