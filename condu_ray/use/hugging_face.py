"""A CLIP of open_clip's as Hugging Face's `CLIPModel` has it: other names, q, k and v apart, projections transposed."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from condu_ray.store.artifacts import save_tensors
from condu_ray.use.model_folder import model_config
from condu_ray.use.served import UseError
from condu_ray.vlm.model import Backbone, activations

PLAIN = {
    "logit_scale": "logit_scale",
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "ln_final.weight": "text_model.final_layer_norm.weight",
    "ln_final.bias": "text_model.final_layer_norm.bias",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.ln_pre.weight": "vision_model.pre_layrnorm.weight",  # their spelling
    "visual.ln_pre.bias": "vision_model.pre_layrnorm.bias",
    "visual.ln_post.weight": "vision_model.post_layernorm.weight",
    "visual.ln_post.bias": "vision_model.post_layernorm.bias",
}
TRANSPOSED = {"text_projection": "text_projection.weight", "visual.proj": "visual_projection.weight"}
BLOCK = re.compile(r"(visual\.)?transformer\.resblocks\.(\d+)\.(.+)")
INNER = {
    "ln_1": "layer_norm1", "ln_2": "layer_norm2", "mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2",
    "attn.out_proj": "self_attn.out_proj",
}  # fmt: skip
EPS = 1e-5
ACTIVATIONS = {"QuickGELU": "quick_gelu", "GELU": "gelu"}


def clip_tensors(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Returns the tensors of a CLIP under the names of `CLIPModel`.

    Args:
        state: open_clip's state dict.

    Raises:
        UseError: a tensor has no counterpart there.
    """
    found: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if name in PLAIN:
            found[PLAIN[name]] = tensor
        elif name in TRANSPOSED:
            found[TRANSPOSED[name]] = tensor.T
        else:
            found |= _block(name, tensor)
    if missing := [name for name in (*PLAIN, *TRANSPOSED) if name not in state]:
        raise UseError(f"--format hf: the model has no {missing[0]}, which Hugging Face's CLIPModel has")
    return found


def _block(name: str, tensor: Tensor) -> dict[str, Tensor]:
    match = BLOCK.fullmatch(name)
    rest = match[3] if match else ""
    place = f"{'vision' if match and match[1] else 'text'}_model.encoder.layers.{match[2] if match else ''}"
    if rest in ("attn.in_proj_weight", "attn.in_proj_bias"):
        end = rest.removeprefix("attn.in_proj_")
        parts = zip("qkv", tensor.chunk(3), strict=True)
        return {f"{place}.self_attn.{letter}_proj.{end}": part for letter, part in parts}
    inner, _, end = rest.rpartition(".")
    if inner not in INNER or end not in ("weight", "bias"):
        raise UseError(
            f"--format hf: Hugging Face's CLIPModel has no counterpart of the tensor {name}; export it as open_clip"
        )
    return {f"{place}.{INNER[inner]}.{end}": tensor}


def write_clip(backbone: Backbone, folder: Path) -> None:
    """Writes what `CLIPModel`, `CLIPImageProcessor` and `CLIPTokenizer` load with `from_pretrained`.

    Raises:
        UseError: the architecture, its tokenizer or its preprocessing has no counterpart there.
        WriteError: the disk is full or fails.
    """
    tensors, words = clip_tensors(backbone.model.state_dict()), _tokenizer(backbone)  # these say whether it is a CLIP
    files = {"config.json": _config(backbone), "preprocessor_config.json": _preprocessor(backbone), **words}
    # Releases of transformers before 5 read no file whose header does not say so.
    save_tensors(folder / "model.safetensors", tensors, {"format": "pt"})
    for name, content in files.items():
        text = content if isinstance(content, str) else json.dumps(content, indent=1, ensure_ascii=False)
        (folder / name).write_text(text, encoding="utf-8")


def _config(backbone: Backbone) -> dict[str, Any]:
    model, said = backbone.model, model_config(backbone)["model_cfg"]
    vision, text = said["vision_cfg"], said["text_cfg"]
    used = [name for name in activations(model) if name in ACTIVATIONS]
    if len(used) != 1 or set(activations(model)) != set(used):
        raise UseError(f"--format hf: activations {', '.join(activations(model))}: CLIPModel has QuickGELU or GELU")
    if problem := _forward(model):
        raise UseError(f"--format hf: {problem}, as CLIPModel does not; export it as open_clip")
    state, size = model.state_dict(), backbone.spec.image_size
    patch = int(state["visual.conv1.weight"].shape[-1]) if "visual.conv1.weight" in state else 0
    if not patch or size[0] != size[1]:
        raise UseError("--format hf: CLIPModel has a Vision Transformer on square pictures; export it as open_clip")
    words, width = state["token_embedding.weight"].shape
    shared = {"hidden_act": ACTIVATIONS[used[0]], "layer_norm_eps": EPS, "projection_dim": said["embed_dim"]}
    wide = int(state["visual.conv1.weight"].shape[0])
    return {
        "architectures": ["CLIPModel"], "model_type": "clip", "projection_dim": said["embed_dim"],
        "torch_dtype": "float32", "logit_scale_init_value": float(model.logit_scale.detach()),
        "text_config": {
            "model_type": "clip_text_model", "hidden_size": width, "vocab_size": words,
            "intermediate_size": int(state["transformer.resblocks.0.mlp.c_fc.weight"].shape[0]),
            "num_attention_heads": text["heads"], "num_hidden_layers": text["layers"],
            "max_position_embeddings": int(state["positional_embedding"].shape[0]),
            # open_clip reads a text's feature at its largest token, which is the one that ends it.
            "bos_token_id": words - 2, "eos_token_id": words - 1, "pad_token_id": 0, **shared,
        },
        "vision_config": {
            "model_type": "clip_vision_model", "hidden_size": wide, "image_size": size[0], "patch_size": patch,
            "num_channels": 3, "num_attention_heads": wide // vision.get("head_width", 64),
            "num_hidden_layers": vision["layers"],
            "intermediate_size": int(state["visual.transformer.resblocks.0.mlp.c_fc.weight"].shape[0]), **shared,
        },
    }  # fmt: skip


def _forward(model: Any) -> str:
    """What a model does that no tensor tells of, and that CLIPModel would do in another way; empty: nothing."""
    visual = model.visual
    eps = [one.eps for one in model.modules() if isinstance(one, nn.LayerNorm) and one.eps != EPS]
    found = {
        f"pictures are pooled by {visual.pool_type!r}": visual.pool_type != "tok",
        f"texts are pooled by {model.text_pool_type!r}": model.text_pool_type != "argmax",
        "each token of a text sees those after it": model.attn_mask is None,
        f"a LayerNorm has eps {max(eps, default=EPS):g}": bool(eps),
        "GELU is approximated": any(isinstance(one, nn.GELU) and one.approximate != "none" for one in model.modules()),
    }
    return next((what for what, is_so in found.items() if is_so), "")


def _preprocessor(backbone: Backbone) -> dict[str, Any]:
    said, size = backbone.spec.preprocess, backbone.spec.image_size[0]
    if said["resize_mode"] != "shortest" or said["interpolation"] not in ("bicubic", "bilinear"):
        raise UseError(
            f"--format hf: pictures resized by {said['resize_mode']}, {said['interpolation']}: this is not what "
            "CLIPImageProcessor does; export it as open_clip"
        )
    return {
        "image_processor_type": "CLIPImageProcessor", "do_convert_rgb": True, "do_resize": True,
        "size": {"shortest_edge": size}, "resample": 3 if said["interpolation"] == "bicubic" else 2,
        "do_center_crop": True, "crop_size": {"height": size, "width": size}, "do_rescale": True,
        "rescale_factor": 1 / 255, "do_normalize": True, "image_mean": list(said["mean"]),
        "image_std": list(said["std"]),
    }  # fmt: skip


def _tokenizer(backbone: Backbone) -> dict[str, Any]:
    """CLIPTokenizer's files of open_clip's own tokenizer, which is the same byte-pair encoding."""
    from open_clip.tokenizer import SimpleTokenizer

    own = backbone.tokenizer
    if not isinstance(own, SimpleTokenizer):
        raise UseError(f"--format hf: a {type(own).__name__} is not the tokenizer of CLIPModel; export it as open_clip")
    if own.reduction_fn is not None or own.clean_fn("A  b-c.") != "a b-c.":
        raise UseError(
            "--format hf: the backbone's tokenizer cleans or shortens texts (text_cfg.tokenizer_kwargs) as "
            "CLIPTokenizer does not; export it as open_clip"
        )
    begin, end = (own.decoder[token] for token in (own.sot_token_id, own.eot_token_id))
    if own.eot_token_id != len(own.encoder) - 1:
        raise UseError(
            f"--format hf: the backbone's tokenizer has tokens after {end} (additional_special_tokens), by which "
            "open_clip pools a text elsewhere than CLIPModel; export it as open_clip"
        )
    merges = "\n".join(["#version: 0.2", *(" ".join(pair) for pair in own.bpe_ranks)]) + "\n"
    return {
        "vocab.json": own.encoder,
        "merges.txt": merges,
        "tokenizer_config.json": {
            "tokenizer_class": "CLIPTokenizer",
            "model_max_length": int(own.context_length),
            "do_lower_case": True,
            "bos_token": begin,
            "eos_token": end,
            "unk_token": end,
            "pad_token": end,
        },
        "special_tokens_map.json": {"bos_token": begin, "eos_token": end, "unk_token": end, "pad_token": end},
    }
