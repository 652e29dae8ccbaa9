"""Backbones: any open_clip model by name and tag or file, a folder in open_clip's form, or the embedded tiny CLIP.

open_clip takes half as long to import as torch (it brings torchvision and timm), and as long as torch with the
compiler that those would load (`library.py` leaves it out), so only what makes a model or its transforms does:
processes that merge, wait or steer start sooner without.
"""

from __future__ import annotations

import logging
import textwrap
import threading
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from condu_ray.vlm import hub
from condu_ray.vlm.checkpoint import load_weights
from condu_ray.vlm.identity import backbone_fingerprint
from condu_ray.vlm.spec import CONFIG, EMBEDDED, FOLDER, MERGES, WEIGHTS, BackboneSpec, backbone_spec
from condu_ray.vlm.texts import keep_few
from condu_ray.vlm.towers import keep_in_bounds, used_parameters
from condu_ray.vlm.weights import BackboneError

if TYPE_CHECKING:
    from open_clip import CLIP

__all__ = [
    "CONFIG",
    "EMBEDDED",
    "MERGES",
    "WEIGHTS",
    "Backbone",
    "BackboneError",
    "BackboneSpec",
    "backbone_spec",
    "build",
    "load_backbone",
    "set_weights",
]

FROZEN = ("logit_scale", "logit_bias")
"""Parameters that are never trained, and so are in no delta."""


@dataclass(frozen=True)
class Backbone:
    """A loaded model in fp32 with its tokenizer.

    Attributes:
        spec: where it comes from.
        model: in evaluation mode, on the CPU at first.
        tokenizer: texts to tokens, int64 [C, L].
        fingerprint: hashes all that changes a feature: weights, architecture, preprocessing, tokenizer.
        frozen: parameters that are not trained: `FROZEN`, those that no feature depends on, and those that the
            architecture holds fixed.
        notes: what a user should know of it, a line each: what was decided for it, and what open_clip warned of.
    """

    spec: BackboneSpec
    model: CLIP
    tokenizer: Any
    fingerprint: str
    frozen: frozenset[str] = frozenset(FROZEN)
    notes: tuple[str, ...] = ()

    @property
    def trainable(self) -> dict[str, nn.Parameter]:
        """Floating-point parameters by name, without the frozen ones: the positions of a delta."""
        named = self.model.named_parameters()
        return {name: p for name, p in named if p.is_floating_point() and name not in self.frozen}

    @property
    def described(self) -> str:
        """One line: its name, activations as built, preprocessing, fingerprint."""
        said = self.spec.preprocess
        mean, std = (" ".join(f"{value:.4g}" for value in said[name]) for name in ("mean", "std"))
        height, width = self.spec.image_size
        return (
            f"backbone {self.spec.name}: {' and '.join(activations(self.model)) or 'no activation'}; images "
            f"{height} x {width}, {said['interpolation']}, {said['resize_mode']}, mean {mean}, std {std}; "
            f"fingerprint {self.fingerprint[:12]}"
        )

    def snapshot(self) -> dict[str, Tensor]:
        """Returns a CPU copy of the trainable parameters: theta0, when called before training."""
        return {name: p.detach().cpu().clone() for name, p in self.trainable.items()}


def activations(model: nn.Module) -> list[str]:
    """Returns the classes of a model's activations, the most frequent first."""
    from open_clip.transformer import QuickGELU

    kinds = [type(module) for module in model.modules()]
    found = [kind for kind in kinds if "activation" in kind.__module__ or issubclass(kind, QuickGELU)]
    names = Counter(kind.__name__ for kind in found if not issubclass(kind, nn.MultiheadAttention))
    return [name for name, _ in names.most_common()]


def load_backbone(spec: BackboneSpec) -> Backbone:
    """Loads a backbone in fp32 on the CPU, in evaluation mode.

    Raises:
        BackboneError: the weights cannot be read, do not fit the architecture or its tokenizer, or are not finite; or
            the model does not take the images that its preprocessing makes.
    """
    from condu_ray.vlm.library import open_clip

    here = spec.here()
    config = open_clip.get_model_config(here.model)
    _check_packages(spec, config)
    model, tokenizer, notes = build(here)
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and name.rsplit(".", 1)[-1] != "attn_mask" and not tensor.isfinite().all():
            raise BackboneError(f"backbone {spec.model}: tensor {name} holds NaN or infinity; copy its weights anew")
    _check_vocabulary(spec, model, tokenizer)
    keep_in_bounds(model)
    try:
        used = used_parameters(model, spec.image_size, tokenizer(["a photo"]))
    except Exception as error:
        height, width = spec.image_size
        raise BackboneError(
            f"backbone {spec.name}: cannot compare an image of {height} x {width} pixels, as its preprocessing says, "
            f"with a text: {_short(error)}"
        ) from error
    frozen = frozenset({name for name, _ in model.named_parameters()} - used) | frozenset(FROZEN)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name not in frozen)
    fingerprint = backbone_fingerprint(model, spec, config, tokenizer)
    if spec.fingerprint and fingerprint != spec.fingerprint:
        raise BackboneError(
            f"{spec.staged}: is not what was staged there of {spec.name}; give --repair true, or remove the folder"
        )
    return Backbone(spec, model, tokenizer, fingerprint, frozen, notes)


def _check_packages(spec: BackboneSpec, config: Mapping[str, Any] | None) -> None:
    """Refuses a backbone with parts of Hugging Face's where their package is not, before its weights are fetched.

    Raises:
        BackboneError: names the package.
    """
    texts = (config or {}).get("text_cfg", {})
    wanted = [name for name in ("hf_tokenizer_name", "hf_model_name") if texts.get(name)]
    if wanted and find_spec("transformers") is None:
        what = {"hf_tokenizer_name": "tokenizer", "hf_model_name": "text tower"}[wanted[-1]]
        raise BackboneError(
            f"backbone {spec.name}: its {what} is Hugging Face's ({texts[wanted[-1]]}), which needs the package "
            "transformers; install transformers and sentencepiece beside condu_ray, on every node"
        )


def build(spec: BackboneSpec) -> tuple[CLIP, Any, tuple[str, ...]]:
    """Builds a model with its weights, and its tokenizer.

    Returns:
        The model in evaluation mode, the tokenizer, and notes: the spec's, what was done to a file of weights, and
        every warning of open_clip.

    Raises:
        BackboneError: the weights cannot be read or do not fit.
    """
    from condu_ray.vlm.library import open_clip

    local = spec.file
    said: list[str] = []
    words = spec.model
    if not spec.model.startswith(FOLDER):
        texts = (open_clip.get_model_config(spec.model) or {}).get("text_cfg", {})
        if spec.staged is not None and texts.get("hf_tokenizer_name"):
            words = f"{FOLDER}{spec.staged}"  # whose configuration is the same, and which has the tokenizer's files
        elif local is None or texts.get("hf_tokenizer_name"):
            hub.look()
    try:
        with _heard(said), _Undrawn() if local else nullcontext():
            model = open_clip.create_model(
                spec.model,
                pretrained=None if local else spec.pretrained,
                load_weights=local is None,
                force_quick_gelu=spec.quick_gelu,
                pretrained_text=False,  # a text tower's own weights would be fetched, and overwritten by the model's
                precision="fp32",
                device="cpu",
            )
            tokenizer = keep_few(open_clip.get_tokenizer(words, **spec.tokenizer))
            done = load_weights(model, local, spec.name) if local else []
    except BackboneError:
        raise
    except Exception as error:
        if away := hub.missing(error, f"backbone {spec.name}"):
            raise BackboneError(away) from error
        raise BackboneError(
            f"backbone {spec.model} {spec.pretrained or ''}: cannot be loaded; its weights have to fit its "
            f"configuration: {_short(error)}"
        ) from error
    expected = f"No pretrained weights loaded for model '{spec.model}'"  # they are loaded here, not by open_clip
    heard = [f"open_clip on {spec.name}: {text}" for text in dict.fromkeys(said) if not text.startswith(expected)]
    return model.eval(), tokenizer, (*spec.notes, *done, *heard)


class _Undrawn(TorchFunctionMode):
    """No weights are drawn inside, where a file has every one of the model's: that takes as long as reading them."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = kwargs or {}
        if func in (Tensor.normal_, Tensor.uniform_) or getattr(func, "__module__", "") == nn.init.__name__:
            return args[0] if args else given["tensor"]
        return (torch.zeros if func is torch.randn else func)(*args, **given)


@contextmanager
def _heard(said: list[str]) -> Iterator[None]:
    """Collects what is warned of inside, by Python's warnings or by the root logger, by which open_clip speaks."""
    here, root, silent = threading.get_ident(), logging.getLogger(), logging.NullHandler()

    def hear(record: logging.LogRecord) -> bool:
        if record.thread != here:
            return True
        if record.levelno >= logging.WARNING:
            said.append(record.getMessage())
        return False

    root.addHandler(silent)  # the first word of a root logger without any would give it one for good
    root.addFilter(hear)
    try:
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter("always")
            warnings.filterwarnings("ignore", category=DeprecationWarning)
            warnings.filterwarnings("ignore", category=PendingDeprecationWarning)
            yield
        said += [str(warning.message) for warning in found]
    finally:
        root.removeFilter(hear)
        root.removeHandler(silent)


def _short(error: Exception) -> str:
    return textwrap.shorten(str(error) or type(error).__name__, 400, placeholder=" ...")


def _check_vocabulary(spec: BackboneSpec, model: nn.Module, tokenizer: Any) -> None:
    """Refuses a tokenizer whose vocabulary is not the model's: its tokens would be out of range, or other words.

    Raises:
        BackboneError: names both sizes.
    """
    from open_clip.tokenizer import SimpleTokenizer

    tables = [module for name, module in model.named_modules() if name.endswith("token_embedding")]
    rows = tables[0].num_embeddings if tables and isinstance(tables[0], nn.Embedding) else None
    words = getattr(tokenizer, "vocab_size", None)
    # A SimpleTokenizer's last two tokens begin and end a text, so it has to be as large as the table.
    if rows is None or words is None or words == rows or (words < rows and not isinstance(tokenizer, SimpleTokenizer)):
        return
    where = spec.tokenizer.get("bpe_path", "its tokenizer")
    raise BackboneError(
        f"backbone {spec.model}: {where} has a vocabulary of {words} tokens, the model's token_embedding has {rows} "
        f"rows; give it the {MERGES} that it was trained with, and its size as text_cfg.vocab_size"
    )


def set_weights(backbone: Backbone, theta0: Mapping[str, Tensor], delta: Mapping[str, Tensor] | None) -> None:
    """Sets the trainable parameters to theta0 + delta, in place (delta None: theta0)."""
    with torch.no_grad():
        for name, parameter in backbone.trainable.items():
            parameter.copy_(theta0[name])
            if delta is not None and name in delta:
                parameter.add_(delta[name].to(parameter.device, parameter.dtype))
