"""Backbones: any open_clip model by name and tag or file, a folder in open_clip's form, or the embedded tiny CLIP.

open_clip takes longer to import than torch (it brings torchvision, timm and torch's compiler), so only what makes a
model or its transforms does: processes that merge, wait or steer start in half the time without.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from condu_ray.merging import fingerprint
from condu_ray.names import nearest

if TYPE_CHECKING:
    from open_clip import CLIP

EMBEDDED = Path(__file__).parent / "tiny_clip"
"""The backbone shipped with the package."""

CONFIG, WEIGHTS, MERGES = "open_clip_config.json", "open_clip_model.safetensors", "bpe_simple_vocab.txt.gz"
MAX_SIDE = 8000
"""Largest side of a model's input, in pixels."""
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


def _check_weights(path: Path) -> None:
    """Refuses a file of weights that is no safetensors file: any other form may run code when it is opened.

    Raises:
        BackboneError: it is a pickle, cut short, or something else.
    """
    convert = "load it where it can be trusted, and write it with safetensors.torch.save_file(model.state_dict(), ...)"
    try:
        with path.open("rb") as file:
            start = file.read(2)
        # A torch checkpoint is a zip archive of pickles; before torch 1.6 it was a bare pickle (protocol 2 or later).
        if start == b"PK" or (start[:1] == b"\x80" and start[1:] <= b"\x05"):
            raise BackboneError(f"{path}: is a pickled checkpoint, which runs code when it is opened; {convert}")
        with safe_open(path, framework="pt") as tensors:
            if not tensors.keys():
                raise BackboneError(f"{path}: holds no tensor; copy it anew")
    except OSError as error:
        raise BackboneError(f"{path}: cannot be read ({error.strerror or error}); look at the disk") from error
    except SafetensorError as error:
        raise BackboneError(f"{path}: cannot be loaded: cut short or no safetensors ({error}); copy it anew") from error


def _folder_spec(folder: Path) -> BackboneSpec:
    from open_clip.transform import PreprocessCfg, merge_preprocess_dict

    path = folder / CONFIG
    if not (folder / WEIGHTS).is_file():
        raise BackboneError(f"{folder}: {WEIGHTS} is missing; a backbone folder holds it beside {CONFIG}")
    _check_weights(folder / WEIGHTS)
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        vision, preprocess = config["model_cfg"]["vision_cfg"], dict(config.get("preprocess_cfg", {}))
        preprocess.setdefault("size", vision["image_size"])
        merged = merge_preprocess_dict(PreprocessCfg(), preprocess)
        size = merged["size"]
        sides = size if isinstance(size, list | tuple) else (size, size)
        if len(sides) != 2 or not all(type(side) is int and 0 < side <= MAX_SIDE for side in sides):
            raise ValueError(f"image size {size!r}: write whole pixels, 1 to {MAX_SIDE}, or a pair of them")
    except FileNotFoundError as error:
        raise BackboneError(f"{path}: no such file; a backbone folder holds it beside {WEIGHTS}") from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError, AssertionError, RecursionError) as error:
        raise BackboneError(
            f"{path}: not an open_clip configuration ({error!r}); it holds model_cfg with vision_cfg and text_cfg"
        ) from error
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
        near = nearest(model, ["tiny-clip", *open_clip.list_models()], most=3)
        raise BackboneError(f"--model {model}: no such open_clip model or folder{near}")
    tags = open_clip.list_pretrained_tags_by_model(model)
    if pretrained is None:
        raise BackboneError(f"--model {model} needs --pretrained: a checkpoint file or one of {', '.join(tags)}")
    preprocess: dict[str, Any] = {"size": config["vision_cfg"]["image_size"]}
    if pretrained.lower() in [tag.lower() for tag in tags]:
        preprocess = dict(open_clip.get_pretrained_cfg(model, pretrained)) | preprocess
    elif Path(pretrained).is_file():
        pretrained = str(Path(pretrained).absolute())
        _check_weights(Path(pretrained))
        if not pretrained.endswith(".safetensors"):
            raise BackboneError(f"--pretrained {pretrained}: open_clip reads it as a pickle; name it *.safetensors")
    else:
        near = nearest(pretrained, tags, label="tags")
        raise BackboneError(f"--pretrained {pretrained}: neither a file, a folder nor a tag of {model}{near}")
    return BackboneSpec(model, pretrained, merge_preprocess_dict(PreprocessCfg(), preprocess), {})


def load_backbone(spec: BackboneSpec) -> Backbone:
    """Loads a backbone in fp32 on the CPU, in evaluation mode.

    Raises:
        BackboneError: the weights cannot be read, do not fit the architecture or its tokenizer, or are not finite.
    """
    import open_clip

    try:
        model = open_clip.create_model(spec.model, pretrained=spec.pretrained, precision="fp32", device="cpu")
        tokenizer = open_clip.get_tokenizer(spec.model, **spec.tokenizer)
    except Exception as error:
        raise BackboneError(
            f"backbone {spec.model} {spec.pretrained or ''}: cannot be loaded; its weights have to fit its "
            f"configuration: {error}"
        ) from error
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and name.rsplit(".", 1)[-1] != "attn_mask" and not tensor.isfinite().all():
            raise BackboneError(f"backbone {spec.model}: tensor {name} holds NaN or infinity; copy its weights anew")
    _check_vocabulary(spec, model, tokenizer)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name not in FROZEN)
    return Backbone(spec, model.eval(), tokenizer, fingerprint(model.state_dict()))


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
