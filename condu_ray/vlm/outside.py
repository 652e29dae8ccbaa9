"""Models that were fine-tuned elsewhere, as deltas to theta0, once it is plain that they come from it."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from condu_ray.merging.delta import Delta
from condu_ray.vlm.checkpoint import load_weights
from condu_ray.vlm.model import FROZEN, Backbone, BackboneError
from condu_ray.vlm.peft_adapter import CONFIG as ADAPTER
from condu_ray.vlm.peft_adapter import adapter_delta

FAR, LARGE = 0.5, 0.2
"""Norm of a tower's delta over that of its theta0: two models that were pretrained apart differ by about 1.4, while
fine-tuning moves by some hundredths. Above the first a checkpoint is refused, above the second it is remarked."""
ROUNDING = 2e-3
"""Relative difference that storing in half precision may make of what training left alone."""


@dataclass(frozen=True)
class Outside:
    """What was fine-tuned elsewhere.

    Attributes:
        delta: weights minus theta0, float32 on the CPU, of every trainable parameter.
        relative: norm of the delta over that of theta0, by tower (`image`, `text`).
        notes: what a user should know of it, a line each.
    """

    delta: Delta
    relative: Mapping[str, float]
    notes: tuple[str, ...]


def outside_delta(backbone: Backbone, checkpoint: Path) -> Outside:
    """Reads a checkpoint, or an adapter's folder, against a backbone at theta0.

    Args:
        backbone: at theta0, on the CPU.
        checkpoint: safetensors or what torch.save wrote of an open_clip or OpenAI state dict; or a folder of PEFT's.

    Raises:
        BackboneError: it is not read, of another architecture, or was not fine-tuned from this theta0.
    """
    if checkpoint.is_dir():
        if not (checkpoint / ADAPTER).is_file():
            inside = sorted(
                path.name for path in checkpoint.iterdir() if path.suffix in (".safetensors", ".bin", ".pt")
            )
            which = f" in it, such as {checkpoint / inside[0]}" if inside else ""
            raise BackboneError(
                f"{checkpoint}: is a folder without {ADAPTER}; give a file of weights{which}, or PEFT's folder"
            )
        adapted, notes = adapter_delta(checkpoint, backbone.spec.name)
        delta = _adapted(backbone, adapted, checkpoint)
    else:
        delta, notes = _difference(backbone, checkpoint)
    for name, tensor in delta.items():
        if not tensor.isfinite().all():
            raise BackboneError(f"{checkpoint}: tensor {name} holds NaN or infinity")
    relative = _relative(backbone.snapshot(), delta)
    if max(relative.values()) == 0:
        raise BackboneError(f"{checkpoint}: is theta0 itself ({backbone.spec.name}): there is nothing to merge")
    for tower, size in relative.items():
        if size > FAR:
            raise BackboneError(
                f"{checkpoint}: its {tower} tower is {size:.2f} times theta0's norm away from {backbone.spec.name}: it "
                "was fine-tuned from another model, or is none; give the run whose --pretrained it began with"
            )
        if size > LARGE:
            notes.append(f"its {tower} tower is {size:.2f} times theta0's norm away, which is far for fine-tuning")
    return Outside(delta, relative, tuple(notes))


def _difference(backbone: Backbone, path: Path) -> tuple[Delta, list[str]]:
    """Returns a file's weights minus theta0; refuses what changed though no delta has it."""
    model, before = copy.deepcopy(backbone.model), backbone.model.state_dict()
    notes = load_weights(model, path, backbone.spec.name)
    if resized := [note for note in notes if "was resized" in note]:
        raise BackboneError(f"{resized[0]}: it was fine-tuned at another image size or context length")
    after, trainable = model.state_dict(), backbone.trainable
    for name, tensor in after.items():
        if name in trainable or torch.equal(tensor, before[name]):
            continue
        apart = float((tensor.double() - before[name].double()).norm())
        if apart <= ROUNDING * float(before[name].double().norm()):
            continue
        if name in FROZEN:
            now, then = (float(one) for one in (tensor, before[name]))
            notes.append(f"{name} is {now:.3f} in it and {then:.3f} in theta0, which is used: no delta has it")
        elif name in dict(model.named_parameters()):
            notes.append(f"{name} changed, on which no feature depends: it is left out")
        else:
            raise BackboneError(
                f"{path}: {name} differs from theta0's and is no parameter (statistics of BatchNorm?), so that no "
                "delta has it; fine-tune with it in evaluation mode, or give the run whose --pretrained it began with"
            )
    return {name: _moved(after[name].float(), before[name].float()) for name in trainable}, notes


@torch.no_grad()
def _moved(after: Tensor, before: Tensor) -> Tensor:
    """Returns a tensor's difference; what half precision alone has changed, in which it was stored, is none."""
    found = after - before
    for dtype in (torch.float16, torch.bfloat16):
        if torch.equal(after.to(dtype).float(), after):
            found.masked_fill_(before.to(dtype).float() == after, 0)
    return found


def _adapted(backbone: Backbone, found: Delta, path: Path) -> Delta:
    """Returns an adapter's delta with zeros for all that it leaves alone."""
    own = {name: tuple(parameter.shape) for name, parameter in backbone.trainable.items()}
    custom = {name.removeprefix("text."): name for name in own if name.startswith("text.")}
    placed = {name if name in own else custom.get(name, name): tensor for name, tensor in found.items()}
    for name, tensor in placed.items():
        if name not in own:
            raise BackboneError(
                f"{path}: adapts {name}, which {backbone.spec.name} has not; is it another architecture's?"
            )
        if tuple(tensor.shape) != own[name]:
            raise BackboneError(f"{path}: adapts {name} as {list(tensor.shape)}, and it is {list(own[name])}")
    return {name: placed.get(name, torch.zeros(shape)) for name, shape in own.items()}


def _relative(theta0: Mapping[str, Tensor], delta: Delta) -> dict[str, float]:
    found = {}
    for tower, inside in (("image", True), ("text", False)):
        names = [name for name in delta if name.startswith("visual.") == inside]
        moved, whole = (sum(float(one[name].double().square().sum()) for name in names) for one in (delta, theta0))
        found[tower] = (moved / whole) ** 0.5 if whole else 0.0
    return found
