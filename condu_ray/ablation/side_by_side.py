"""Many trainings of one backbone side by side: their parameters stacked, and a step of all of them at once.

For studies of small models, where a step alone is too little work for a GPU. It is `learn.loop.fine_tune` of each
training by itself, to rounding (tests/ablation/test_side_by_side.py compares): the same batches, loss, optimizer and
schedule, for AdamW works position by position.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from condu_ray.benchmark import Task
from condu_ray.config import Experiment, Training
from condu_ray.learn.loop import learning_rate
from condu_ray.learn.objective import classification_loss
from condu_ray.learn.optimiser import adamw
from condu_ray.learn.retry import local_stream
from condu_ray.merging.delta import Delta
from condu_ray.options import Lora
from condu_ray.vlm import lora
from condu_ray.vlm.context import cut, encode_text
from condu_ray.vlm.inputs import normalise
from condu_ray.vlm.model import Backbone, set_weights
from condu_ray.vlm.towers import train_mode

AfterStep = Callable[[int, dict[str, nn.Parameter], torch.optim.Optimizer], None]
"""Called after each optimizer step with its 0-based number, the stacked parameters and the optimizer."""


class _Both(nn.Module):
    """Images and prompts in one forward pass, of prompts that are cut already."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.model = backbone.model

    def forward(self, images_BCHW: Tensor, tokens_CL: Tensor) -> tuple[Tensor, Tensor]:
        return self.model.encode_image(images_BCHW, normalize=True), encode_text(self.model, tokens_CL)


@dataclass(frozen=True)
class Stream:
    """A task's batches, decoded: `pixels` uint8 [S, B, H, W, 3], `labels` int64 [S, B]; prompts' `tokens` [C, L]."""

    pixels: Tensor
    labels: Tensor
    tokens: Tensor


def stream(config: Experiment, task: Task, backbone: Backbone, device: str) -> Stream:
    """Reads the batches of one expert, the same ones that a lane's worker is given."""
    batches = list(local_stream(config, task, backbone.spec.preprocess))
    pixels = torch.from_numpy(np.stack([batch["image"] for batch in batches])).to(device)
    labels = torch.from_numpy(np.stack([batch["label"] for batch in batches])).to(device)
    return Stream(pixels, labels, cut(backbone.model, backbone.tokenizer(task.prompts()).to(device)))


class SideBySide:
    """One backbone of which many copies are trained at once; its own weights stay theta0.

    Args:
        backbone: at theta0; moved to the device.
        training: hyperparameters, `lr` the peak rate of all.
        adapter: form of LoRA factors, which are trained then; None: the whole model is.
        device: `cpu` or `cuda`.
        seed: of fresh factors.
    """

    def __init__(self, backbone: Backbone, training: Training, adapter: Lora | None, device: str, seed: int) -> None:
        self._training, self._adapter, self.device = training, adapter, torch.device(device)
        self._backbone, self._both = backbone, _Both(backbone)
        self._both.to(self.device)
        self._like = next(backbone.model.parameters()).detach()[:0]  # device and dtype
        self.theta0 = {name: tensor.to(self._like) for name, tensor in backbone.snapshot().items()}
        self._fresh: dict[str, Tensor] = {}
        if adapter is not None:
            with lora.attach(backbone, **adapter.form, seed=seed) as attached:
                self._fresh = {name: tensor.to(self._like) for name, tensor in attached.factors().items()}
        self._scale = backbone.model.logit_scale.detach().exp().to(self.device)

    def train(
        self,
        streams: Sequence[Stream],
        starts: Sequence[Delta | None],
        after_step: AfterStep = lambda step, parameters, optimizer: None,
    ) -> list[dict[str, Tensor] | None]:
        """Trains one expert a stream.

        Args:
            streams: M streams, of `training.steps` batches or more each.
            starts: what each training starts from: factors or a weight delta, as the adapter is; None: fresh factors,
                or theta0.
            after_step: called after every step.

        Returns:
            M experts, factors or weight deltas, float32 on the device; None for one that lost its numbers.
        """
        set_weights(self._backbone, self.theta0, None)
        settings, parameters = self._training, self._stacked(starts)
        longest = max(one.tokens.shape[1] for one in streams)
        most = max(len(one.tokens) for one in streams)
        tokens_MCL = torch.stack([_padded(one.tokens, most, longest) for one in streams])
        forward = vmap(self._forward, in_dims=(0, 0, 0))
        optimizer = adamw(parameters.values(), settings, settings.lr)
        train_mode(self._both)
        for step in range(settings.steps):
            pixels = torch.stack([one.pixels[step] for one in streams])
            flat = normalise(pixels.flatten(0, 1), self._backbone.spec.preprocess).to(self._like)
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step, settings.steps, settings.warmup, settings.lr)
            optimizer.zero_grad(set_to_none=True)
            with sdpa_kernel([SDPBackend.MATH]):
                image_MBD, text_MCD = forward(
                    self._weights(parameters), flat.unflatten(0, pixels.shape[:2]), tokens_MCL
                )
                logits_MBC = self._scale * image_MBD @ text_MCD.mT
                losses = [
                    classification_loss(logits[:, : len(one.tokens)], one.labels[step], settings.label_smoothing)
                    for logits, one in zip(logits_MBC.unbind(), streams, strict=True)
                ]
                torch.stack(losses).sum().backward()
            optimizer.step()
            after_step(step, parameters, optimizer)
        self._both.eval()
        return [self._expert(parameters, number) for number in range(len(streams))]

    def _forward(self, weights: Mapping[str, Tensor], images: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        named = {f"model.{name}": tensor for name, tensor in weights.items()}
        found: tuple[Tensor, Tensor] = functional_call(self._both, named, (images, tokens))
        return found

    def _stacked(self, starts: Sequence[Delta | None]) -> dict[str, nn.Parameter]:
        """The parameters of all trainings: {name: [M, ...]}."""
        if self._adapter is not None:
            whole = [start or self._fresh for start in starts]
        else:
            whole = [
                {name: tensor + start[name].to(self._like) if start else tensor for name, tensor in self.theta0.items()}
                for start in starts
            ]
        return {name: nn.Parameter(torch.stack([one[name].to(self._like) for one in whole])) for name in whole[0]}

    def _weights(self, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
        if self._adapter is None:
            return dict(parameters)
        return {
            name: torch.add(self.theta0[name], b @ a, alpha=self._adapter.scale)
            for name, (a, b) in pairs(parameters).items()
        }

    def _expert(self, parameters: Mapping[str, Tensor], number: int) -> dict[str, Tensor] | None:
        found = {name: parameter.detach()[number].clone() for name, parameter in parameters.items()}
        if self._adapter is None:
            found = {name: tensor - self.theta0[name] for name, tensor in found.items()}
        return found if all(tensor.isfinite().all() for tensor in found.values()) else None


def pairs(factors: Mapping[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
    """Returns A and B of each adapted parameter, by its name."""
    names = dict.fromkeys(name.removesuffix(lora.A) for name in factors if name.endswith(lora.A))
    return {name: (factors[name + lora.A], factors[name + lora.B]) for name in names}


def _padded(tokens_CL: Tensor, classes: int, length: int) -> Tensor:
    """Repeats the last prompt for classes that a task has not; longer prompts of others add nothing to shorter ones."""
    wide = nn.functional.pad(tokens_CL, (0, length - tokens_CL.shape[1]))
    return torch.cat([wide, wide[-1:].expand(classes - len(wide), -1)])
