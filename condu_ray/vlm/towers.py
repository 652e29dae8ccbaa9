"""A model's two towers as training sees them: which parameters features depend on, and what stays as it is."""

from __future__ import annotations

import os
import shutil
import socket
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


BLOCK_CHANNELS = 16
"""Input channels that the CPU's kernels of 1x1 convolutions take at a time: 8 with AVX2, 16 with AVX-512."""


def keep_in_bounds(model: nn.Module) -> None:
    """Has strided 1x1 convolutions of few channels take their images channel by channel on a CPU.

    Pixels lie in memory as files have them, channels last, and so does the model's input. Of such input the gradient of
    a first 1x1 convolution with a stride (the stems of FastViT, MobileCLIP's tower, have one) is computed wrongly, or
    writes past its memory (oneDNN 3.13, github.com/uxlfoundation/oneDNN/issues/6035).
    """
    for layer in model.modules():
        if not isinstance(layer, nn.Conv2d) or set(layer.kernel_size) != {1} or set(layer.stride) == {1}:
            continue
        if layer.in_channels // layer.groups < BLOCK_CHANNELS:
            layer.register_forward_pre_hook(_channel_by_channel)


def _channel_by_channel(layer: nn.Module, inputs: tuple[Tensor]) -> Tensor:
    (images,) = inputs
    # Not `contiguous()`, which leaves an only channel's stride as it is, from which torch tells the order.
    return images.clone(memory_format=torch.contiguous_format) if images.device.type == "cpu" else images


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


@contextmanager
def compiling(model: nn.Module, wanted: bool, backend: str = "inductor") -> Iterator[None]:
    """Has torch compile a model's repeated blocks inside, where that is wanted: one block's code serves its like.

    Block by block, not whole: it starts in a fraction of the time, and prompts of any length go through the same code.
    What was compiled is kept by torch, so that the next time in the same process begins at once.

    Args:
        model: any model; blocks are the children of lists and sequences whose children are all of one class, and have
            children themselves.
        wanted: whether to.
        backend: torch.compile's.

    Raises:
        RuntimeError: there is no C++ compiler, without which inductor cannot work.
    """
    if not wanted:
        yield
        return
    compiler = os.environ.get("CXX", "g++")
    if backend == "inductor" and shutil.which(compiler) is None:
        raise RuntimeError(
            f"--training.compile true needs a C++ compiler, and {socket.gethostname()} has no {compiler}: install g++ "
            "there, set CXX to one, or leave the setting out"
        )
    blocks = list(_blocks(model))
    for block in blocks:
        block.compile(backend=backend)
    try:
        yield
    finally:
        for block in blocks:
            block._compiled_call_impl = None  # what `compile` sets; torch has no way back of its own


def _blocks(model: nn.Module) -> Iterator[nn.Module]:
    """Yields the repeated blocks of a model's towers, the outermost ones."""
    for child in model.children():
        inner = list(child.children())
        alike = isinstance(child, nn.ModuleList | nn.Sequential) and len({type(one) for one in inner}) == 1
        if alike and any(True for _ in inner[0].children()):
            yield from inner
        else:
            yield from _blocks(child)


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
