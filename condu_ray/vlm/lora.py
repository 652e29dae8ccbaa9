"""LoRA adapters on open_clip models: weight = W0 + scale * B @ A (Hu et al. 2021, LoRA, arXiv:2106.09685, eq. 3).

Why `torch.nn.utils.parametrize`: open_clip has no LoRA; peft replaces modules, which renames what deltas are keyed by.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from condu_ray.vlm.model import Backbone

TARGETS = {
    "mlp": ("mlp.c_fc.weight", "mlp.c_proj.weight"),
    "attention": ("attn.in_proj_weight", "attn.out_proj.weight"),
}
"""What each target adapts in every transformer block; `attn.in_proj_weight` packs query, key and value."""
BLOCKS = {"image": "visual.transformer.resblocks", "text": "transformer.resblocks"}
"""Where each encoder has its blocks; CustomTextCLIP has the text encoder's under `text.`."""
A, B = ".lora_A", ".lora_B"
"""What a factor's key has after the name of the parameter that it adapts."""


class LoraError(ValueError):
    """Adapters that cannot be attached or set; the message names the argument, the module or the tensor."""


class LowRank(nn.Module):
    """The parametrisation of one weight [out, in]: adds scale * B @ A, of A [rank, in] and B [out, rank]."""

    def __init__(self, a: Tensor, b: Tensor, scale: float) -> None:
        super().__init__()
        self.lora_A, self.lora_B, self.scale = nn.Parameter(a), nn.Parameter(b), scale

    def forward(self, weight: Tensor) -> Tensor:
        """Returns the adapted weight in `weight`'s dtype; under autocast only the product has the lower one."""
        return torch.add(weight, self.lora_B @ self.lora_A, alpha=self.scale)


@dataclass(frozen=True)
class _Before:
    """What :meth:`Lora.detach` brings back: gradients wanted by parameter, order of parameters by module."""

    requires_grad: dict[str, bool]
    order: dict[str, list[str]]


class Lora:
    """Adapters that :func:`attach` put on a backbone; leaving it as a context detaches them.

    While attached, the backbone's parameters have other names, so `trainable`, `snapshot` and `set_weights` are for
    before and after, and the model can be deep-copied but not pickled. The factors stay readable after `detach`.
    A weight is computed each time that it is read: once a forward pass, `attn.in_proj_weight` 3 times in training.
    """

    def __init__(self, backbone: Backbone, adapters: dict[str, LowRank], scale: float) -> None:
        self.scale = scale
        self._model: nn.Module = backbone.model
        self._adapters = adapters
        self._attached = True
        places = {name.rpartition(".")[0] for name in adapters}
        self._before = _Before(
            {name: p.requires_grad for name, p in self._model.named_parameters()},
            {place: list(self._model.get_submodule(place)._parameters) for place in places},
        )
        self._model.requires_grad_(False)
        for name, adapter in adapters.items():
            place, _, tensor = name.rpartition(".")
            parametrize.register_parametrization(self._model.get_submodule(place), tensor, adapter)

    def parameters(self) -> dict[str, nn.Parameter]:
        """Returns the live factors, the only parameters that are trained: `<parameter name>.lora_A` and `.lora_B`.

        The order is that of the adapted parameters in `Backbone.trainable`, A before B.
        """
        pairs = self._adapters.items()
        return {name + end: p for name, pair in pairs for end, p in ((A, pair.lora_A), (B, pair.lora_B))}

    def factors(self) -> dict[str, Tensor]:
        """Returns CPU float32 copies of the factors, under :meth:`parameters`' keys and in its order."""
        return {key: p.detach().to("cpu", torch.float32, copy=True) for key, p in self.parameters().items()}

    def load(self, factors: Mapping[str, Tensor]) -> None:
        """Sets the factors in place, from any device and floating dtype; nothing is set where one is refused.

        Raises:
            LoraError: a key is missing or unexpected, or a tensor has another shape.
        """
        own = self.parameters()
        if missing := [key for key in own if key not in factors]:
            raise LoraError(f"{len(missing)} LoRA factors are missing, the first is {missing[0]!r}")
        if extra := [key for key in factors if key not in own]:
            raise LoraError(
                f"{len(extra)} LoRA factors are unexpected, the first is {extra[0]!r}; attach with the same targets"
            )
        for key, parameter in own.items():
            if factors[key].shape != parameter.shape:
                shape, wanted = tuple(factors[key].shape), tuple(parameter.shape)
                raise LoraError(f"LoRA factor {key!r} has shape {shape}, not {wanted}; attach with the same rank")
        with torch.no_grad():
            for key, parameter in own.items():
                parameter.copy_(factors[key])

    def detach(self) -> None:
        """Takes the adapters off: W0, names, their order, classes and requires_grad are as before; again: nothing."""
        if not self._attached:
            return
        for name in self._adapters:
            place, _, tensor = name.rpartition(".")
            parametrize.remove_parametrizations(self._model.get_submodule(place), tensor, leave_parametrized=False)
        # The removal registers a parameter anew, behind its bias; names in another order are another model to some.
        for place, order in self._before.order.items():
            parameters = self._model.get_submodule(place)._parameters
            for tensor in order:
                parameters[tensor] = parameters.pop(tensor)
        for name, parameter in self._model.named_parameters():
            parameter.requires_grad_(self._before.requires_grad[name])
        self._attached = False

    def __enter__(self) -> Lora:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.detach()


def attach(
    backbone: Backbone,
    *,
    rank: int,
    scale: float = 1.0,
    targets: tuple[str, ...] = ("mlp",),
    init: Literal["normal", "zeros"] = "normal",
    std: float = 0.01,
    seed: int,
) -> Lora:
    """Puts adapters on every transformer block of both encoders and freezes all else.

    W0 is what the backbone holds now: `set_weights` comes first. ConDU's public code has rank 64, the default target,
    init, std and scale; PAM's paper rank 32.

    Args:
        backbone: an open_clip model whose encoders are both transformers of open_clip's own, on any device.
        rank: columns of B and rows of A, 1 to the smaller side of every adapted weight.
        scale: factor of B @ A (alpha / rank in other libraries).
        targets: names in `TARGETS`, at least one; their order does not count.
        init: `normal`: A and B from N(0, std^2); `zeros`: A so, B zero, so that the model starts as it was.
        std: standard deviation of the factors, above 0.
        seed: of the factors, which depend on no other random state and not on the device.

    Raises:
        LoraError: an unknown target or init, a rank out of range, an encoder without such modules (timm, ResNet and
            Hugging Face towers), or adapters that are there already. The backbone is untouched then.
    """
    if init not in ("normal", "zeros"):
        raise LoraError(f"LoRA init {init!r} is unknown; there are normal and zeros")
    if not std > 0:
        raise LoraError(f"LoRA std must be above 0, not {std}")
    weights = _weights(backbone, targets)
    for name, weight in weights.items():
        if not 1 <= rank <= min(weight.shape):
            shape = tuple(weight.shape)
            raise LoraError(f"LoRA rank {rank} does not fit {name} {shape}; it must be in 1 to {min(shape)}")
    generator = torch.Generator().manual_seed(seed)
    adapters = {}
    for name, weight in weights.items():
        rows, columns = weight.shape
        a = torch.randn(rank, columns, generator=generator) * std
        b = torch.randn(rows, rank, generator=generator) * std if init == "normal" else torch.zeros(rows, rank)
        adapters[name] = LowRank(a.to(weight), b.to(weight), scale)
    return Lora(backbone, adapters, scale)


def _weights(backbone: Backbone, targets: tuple[str, ...]) -> dict[str, nn.Parameter]:
    """Returns the parameters to adapt, in `trainable`'s order."""
    if isinstance(targets, str) or not targets:
        raise LoraError(f"LoRA targets must be a tuple of at least one of {', '.join(TARGETS)}, not {targets!r}")
    for target in targets:
        if target not in TARGETS:
            raise LoraError(f"LoRA target {target!r} is unknown; there are {', '.join(TARGETS)}")
    trainable = backbone.trainable
    if any(parametrize.is_parametrized(module) for module in backbone.model.modules()):
        raise LoraError(f"backbone {backbone.spec.model} has adapters (or other parametrisations); detach them first")
    found: set[str] = set()
    for encoder, blocks in BLOCKS.items():
        for end in (end for target in targets for end in TARGETS[target]):
            prefix = r"(text\.)?" if encoder == "text" else ""
            names = {name for name in trainable if re.fullmatch(rf"{prefix}{re.escape(blocks)}\.\d+\.{end}", name)}
            if not names:
                raise LoraError(
                    f"backbone {backbone.spec.model}: its {encoder} encoder has no {blocks}.*.{end}; "
                    "LoRA needs open_clip's own transformers (no timm, ResNet or Hugging Face towers)"
                )
            found |= names
    return {name: parameter for name, parameter in trainable.items() if name in found}


def materialise(factors: Mapping[str, Tensor], scale: float) -> dict[str, Tensor]:
    """Delta of adapters: {parameter name: scale * B @ A} (Hu et al. 2021, eq. 3), only the adapted tensors.

    Args:
        factors: what :meth:`Lora.factors` returns: `<parameter name>.lora_A` [rank, in] and `.lora_B` [out, rank] of
            any floating dtype, a pair on one device.
        scale: factor of the products.

    Returns:
        New float32 tensors [out, in] in the factors' order, on their devices.

    Raises:
        LoraError: a key that is no factor's, a factor without its other one, or ranks that differ.
    """
    if stray := next((key for key in factors if not key.endswith((A, B))), None):
        raise LoraError(f"{stray!r} is no LoRA factor: its key must end in {A} or {B}")
    delta = {}
    for name in dict.fromkeys(key.removesuffix(A).removesuffix(B) for key in factors):
        for key in (name + A, name + B):
            if key not in factors:
                raise LoraError(f"LoRA factor {key!r} is missing; its other one is there")
        a, b = factors[name + A].detach().float(), factors[name + B].detach().float()
        if a.ndim != 2 or b.ndim != 2 or len(a) != b.shape[1]:
            raise LoraError(f"LoRA factors of {name!r} do not fit: A {tuple(a.shape)}, B {tuple(b.shape)}")
        delta[name] = scale * (b @ a)
    return delta
