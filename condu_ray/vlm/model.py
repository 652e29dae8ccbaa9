"""Backbones: any open_clip model by name and tag or file, a folder in open_clip's form, or the embedded tiny CLIP.

open_clip takes longer to import than torch (it brings torchvision, timm and torch's compiler), so only what makes a
model or its transforms does: processes that merge, wait or steer start in half the time without.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from condu_ray.merging import fingerprint

if TYPE_CHECKING:
    from open_clip import CLIP

EMBEDDED = Path(__file__).parent / "tiny_clip"
"""The backbone shipped with the package."""

CONFIG, WEIGHTS, MERGES = "open_clip_config.json", "open_clip_model.safetensors", "bpe_simple_vocab.txt.gz"
FROZEN = ("logit_scale", "logit_bias")
"""Parameters that are never trained, and so are in no delta."""


class BackboneError(ValueError):
    """A backbone that cannot be loaded; the message names the model, tag or file."""


@dataclass(frozen=True)
class BackboneSpec:
    """Where a backbone comes from; small, so that workers get it and load for themselves.

    Attributes:
        model: open_clip architecture name, or `local-dir:` and a folder.
        pretrained: open_clip tag, checkpoint file, or None with a folder.
        preprocess: open_clip's PreprocessCfg as a plain dict.
        tokenizer: keyword arguments of open_clip.get_tokenizer.
    """

    model: str
    pretrained: str | None
    preprocess: dict[str, Any]
    tokenizer: dict[str, Any]

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of the input in pixels."""
        size = self.preprocess["size"]
        return (size, size) if isinstance(size, int) else (size[0], size[1])


@dataclass(frozen=True)
class Backbone:
    """A loaded model in fp32 with its tokenizer; `fingerprint` hashes all of its weights."""

    spec: BackboneSpec
    model: CLIP
    tokenizer: Any
    fingerprint: str

    @property
    def trainable(self) -> dict[str, nn.Parameter]:
        """Floating-point parameters by name, without the frozen ones: the positions of a delta."""
        named = self.model.named_parameters()
        return {name: p for name, p in named if p.is_floating_point() and name not in FROZEN}

    def snapshot(self) -> dict[str, Tensor]:
        """Returns a CPU copy of the trainable parameters: theta0, when called before training."""
        return {name: p.detach().cpu().clone() for name, p in self.trainable.items()}


def _folder_spec(folder: Path) -> BackboneSpec:
    from open_clip.transform import PreprocessCfg, merge_preprocess_dict

    path = folder / CONFIG
    if not (folder / WEIGHTS).is_file():
        raise BackboneError(f"{folder}: {WEIGHTS} is missing; a backbone folder holds it beside {CONFIG}")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        vision, preprocess = config["model_cfg"]["vision_cfg"], dict(config.get("preprocess_cfg", {}))
        preprocess.setdefault("size", vision["image_size"])
        merged = merge_preprocess_dict(PreprocessCfg(), preprocess)
    except FileNotFoundError as error:
        raise BackboneError(f"{path}: no such file") from error
    except (ValueError, KeyError, TypeError) as error:
        raise BackboneError(f"{path}: not an open_clip configuration ({error!r})") from error
    tokenizer = {"bpe_path": str(folder / MERGES)} if (folder / MERGES).is_file() else {}
    return BackboneSpec(f"local-dir:{folder}", None, merged, tokenizer)


def backbone_spec(model: str = "tiny-clip", pretrained: str | None = None) -> BackboneSpec:
    """Finds what `--model` and `--pretrained` name, without loading weights.

    Args:
        model: `tiny-clip` (embedded), an open_clip architecture, or a folder in open_clip's form.
        pretrained: an open_clip tag, a checkpoint file, or a folder in open_clip's form (which wins over `model`).

    Raises:
        BackboneError: nothing of that name; nearest names are given.
    """
    import open_clip
    from open_clip.transform import PreprocessCfg, merge_preprocess_dict

    if pretrained is not None and Path(pretrained).is_dir():
        return _folder_spec(Path(pretrained).absolute())
    if Path(model).is_dir() and pretrained is None:
        return _folder_spec(Path(model).absolute())
    if model == "tiny-clip":
        if pretrained is not None:
            raise BackboneError(f"--pretrained {pretrained}: no such folder (the embedded tiny-clip takes no tag)")
        return _folder_spec(EMBEDDED)
    config = open_clip.get_model_config(model)
    if config is None:
        close = difflib.get_close_matches(model, ["tiny-clip", *open_clip.list_models()], n=3)
        raise BackboneError(
            f"--model {model}: no such open_clip model or folder; nearest: {', '.join(close) or 'none'}"
        )
    tags = open_clip.list_pretrained_tags_by_model(model)
    if pretrained is None:
        raise BackboneError(f"--model {model} needs --pretrained: a checkpoint file or one of {', '.join(tags)}")
    preprocess: dict[str, Any] = {"size": config["vision_cfg"]["image_size"]}
    if pretrained.lower() in [tag.lower() for tag in tags]:
        preprocess = dict(open_clip.get_pretrained_cfg(model, pretrained)) | preprocess
    elif Path(pretrained).is_file():
        pretrained = str(Path(pretrained).absolute())
    else:
        close = difflib.get_close_matches(pretrained, tags, n=1)
        hint = f"did you mean {close[0]}?" if close else f"tags: {', '.join(tags)}"
        raise BackboneError(f"--pretrained {pretrained}: neither a file, a folder nor a tag of {model} ({hint})")
    return BackboneSpec(model, pretrained, merge_preprocess_dict(PreprocessCfg(), preprocess), {})


def load_backbone(spec: BackboneSpec) -> Backbone:
    """Loads a backbone in fp32 on the CPU, in evaluation mode.

    Raises:
        BackboneError: the weights cannot be read, do not fit the architecture, or are not finite.
    """
    import open_clip

    try:
        model = open_clip.create_model(spec.model, pretrained=spec.pretrained, precision="fp32", device="cpu")
        tokenizer = open_clip.get_tokenizer(spec.model, **spec.tokenizer)
    except Exception as error:
        raise BackboneError(f"backbone {spec.model} {spec.pretrained or ''}: cannot be loaded: {error}") from error
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and name.rsplit(".", 1)[-1] != "attn_mask" and not tensor.isfinite().all():
            raise BackboneError(f"backbone {spec.model}: tensor {name} holds NaN or infinity")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name not in FROZEN)
    return Backbone(spec, model.eval(), tokenizer, fingerprint(model.state_dict()))


def set_weights(backbone: Backbone, theta0: Mapping[str, Tensor], delta: Mapping[str, Tensor] | None) -> None:
    """Sets the trainable parameters to theta0 + delta, in place (delta None: theta0)."""
    with torch.no_grad():
        for name, parameter in backbone.trainable.items():
            parameter.copy_(theta0[name])
            if delta is not None and name in delta:
                parameter.add_(delta[name].to(parameter.device, parameter.dtype))
