"""A model's two towers as training sees them: which parameters features depend on, and what stays as it is."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from open_clip import CLIP


def train_mode(module: nn.Module) -> None:
    """Puts a model into training mode, but for what keeps statistics of the images that it sees (BatchNorm).

    A delta is one of parameters: with moving statistics, what is served would not be what was trained, and the next
    task would begin at this one's. Such layers normalise by theta0's statistics, as they do when the model is measured;
    their scales and shifts are trained. Dropout and stochastic depth are as the model has them.
    """
    module.train()
    for layer in module.modules():
        if any(name.startswith("running_") for name, _ in layer.named_buffers(recurse=False)):
            layer.training = False  # not `eval()`, which would reach a dropout inside


@contextmanager
def recomputing(model: CLIP, wanted: bool) -> Iterator[None]:
    """Has transformers compute their activations again in the backward pass inside, where that is wanted.

    open_clip's ModifiedResNet, and towers of timm without it, keep theirs.
    """
    if not wanted:
        yield
        return
    model.set_grad_checkpointing(True)
    try:
        yield
    finally:
        model.set_grad_checkpointing(False)
        for module in model.modules():  # open_clip's wrapper of Hugging Face's towers turns it on, whatever it is told
            if callable(off := getattr(module, "gradient_checkpointing_disable", None)):
                off()


def used_parameters(model: CLIP, image_size: tuple[int, int], tokens_CL: Tensor) -> set[str]:
    """Returns the names of the parameters that image and text features depend on, as autograd's graph has them.

    The others (CoCa's decoder, for instance) never get a gradient: several workers cannot train them, and in a delta
    they are dead positions. Parameters that the architecture holds fixed (sine and cosine positions) are none either.
    It costs the forward pass of one image; there is no backward pass.

    Args:
        model: on the CPU, in evaluation mode.
        image_size: height and width of its input, in pixels.
        tokens_CL: tokens of any text.

    Raises:
        Exception: of any class that the model raises where it does not take such images or tokens; ValueError where
            their features are of unequal length.
    """
    with torch.enable_grad():
        features = model.encode_image(torch.zeros(1, 3, *image_size)), model.encode_text(tokens_CL)
    if features[0].shape != features[1].shape:
        raise ValueError(f"image features are {list(features[0].shape)}, text features {list(features[1].shape)}")
    leaves = _leaves(features)
    return {name for name, parameter in model.named_parameters() if id(parameter) in leaves}


def _leaves(tensors: Iterable[Tensor]) -> set[int]:
    """Ids of the tensors that a backward pass would give a gradient."""
    found, seen = set(), set()
    open_nodes = [tensor.grad_fn for tensor in tensors if tensor.grad_fn is not None]
    while open_nodes:
        node = open_nodes.pop()
        if node in seen:
            continue
        seen.add(node)
        if (variable := getattr(node, "variable", None)) is not None:
            found.add(id(variable))
        open_nodes += [inner for inner, _ in node.next_functions if inner is not None]
    return found
