"""LoRA adapters in the form of PEFT's `save_pretrained`, as weight deltas: scale * B A, under open_clip's names.

Names and scales are PEFT's (github.com/huggingface/peft, tuners/lora): `base_model.model.<module>.lora_A.weight`
[r, in] and `.lora_B.weight` [out, r]; the scale is lora_alpha / r, or lora_alpha / sqrt(r) with `use_rslora`.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from condu_ray.vlm.checkpoint import from_hugging_face
from condu_ray.vlm.weights import BackboneError, read_weights

CONFIG, FILES = "adapter_config.json", ("adapter_model.safetensors", "adapter_model.bin")
UNREAD = {
    "use_dora": "DoRA", "fan_in_fan_out": "transposed weights", "modules_to_save": "whole modules beside it",
    "alora_invocation_tokens": "tokens that switch it on (aLoRA)",
}  # fmt: skip
"""Settings by which an adapter is more than scale * B A."""
MOVED = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""What `init_lora_weights` begins with where PEFT takes the fresh factors' product out of the weights beside them."""
KNOWN = (0, 21, 2)
"""The last release of PEFT of which it is known what it does with torch's MultiheadAttention: it adds the delta of its
out-projection twice, in each forward pass and where it merges (huggingface/peft#3774), as 0.15.2 and 0.17.1 did."""
OUT_PROJECTION = ".base_layer.out_proj"
"""How PEFT's own MultiheadAttention calls it; a linear layer of that name is adapted once."""
_FACTOR = re.compile(r"(?:base_model\.model\.)?(?P<module>.+)\.lora_(?P<part>[AB])(?:\.\w+)?\.weight")


def adapter_delta(folder: Path, theta0: str) -> tuple[dict[str, Tensor], list[str]]:
    """Reads an adapter's folder.

    Args:
        folder: with `adapter_config.json` and `adapter_model.safetensors`.
        theta0: what messages call the model that it is to be of.

    Returns:
        The weight delta, float32, by open_clip's parameter names: of an adapter of open_clip's modules as they are, of
        Hugging Face's CLIPModel translated (query, key and value as the one tensor that they are in open_clip). And
        what is worth knowing of it, a line each.

    Raises:
        BackboneError: it is no LoRA, or more than that; the message names the key.
    """
    said, path = _config(folder), adapter_file(folder)
    factors: dict[str, dict[str, Tensor]] = {}
    for key, tensor in read_weights(path).load().items():
        found = _FACTOR.fullmatch(key)
        if found is None:
            raise BackboneError(f"{path}: {key!r} is no factor of LoRA on a linear layer; merge it in its own program")
        factors.setdefault(found["module"], {})[found["part"]] = tensor.float()
    deltas: dict[str, Tensor] = {}
    twice = _adds_twice(said, [module for module in factors if module.endswith(OUT_PROJECTION)], folder)
    for wrapped, pair in factors.items():
        module = wrapped.replace(".base_layer", "")
        if pair.keys() != {"A", "B"} or pair["A"].ndim != 2 or pair["B"].ndim != 2:
            raise BackboneError(f"{path}: {module} has not two matrices, lora_A and lora_B")
        if pair["A"].shape[0] != pair["B"].shape[1]:
            shapes = f"{list(pair['A'].shape)} and {list(pair['B'].shape)}"
            raise BackboneError(f"{path}: {module}: lora_A and lora_B of {shapes} have no rank in common")
        whole = wrapped.removesuffix(OUT_PROJECTION)  # which PEFT adapts with one alpha
        scale = _scale(said, whole, pair["A"].shape[0]) * (2 if wrapped in twice else 1)
        deltas[f"{module}.weight"] = scale * (pair["B"] @ pair["A"])
    notes = [
        f"PEFT trained {module} with its delta added twice, as all out-projections of torch's MultiheadAttention "
        "(huggingface/peft#3774), and merges it so; so it is here"
        for module in twice[:1]
    ]
    if (base := said.get("base_model_name_or_path") or theta0) != theta0:  # factors fit any weights of these shapes
        notes.append(f"was trained on {base}, as its {CONFIG} says; nothing else tells whether that is {theta0}")
    return _open_clips(deltas), notes


def adapter_file(folder: Path) -> Path:
    """Returns the file of an adapter's factors: that which PEFT reads, where there are both.

    Raises:
        BackboneError: there is none.
    """
    path = next((folder / name for name in FILES if (folder / name).is_file()), None)
    if path is None:
        raise BackboneError(f"{folder}: has no {FILES[0]} beside its {CONFIG}; save it with PEFT's save_pretrained")
    return path


def _adds_twice(said: Mapping[str, Any], modules: list[str], folder: Path) -> list[str]:
    """Returns the modules whose delta PEFT adds twice; none of a folder that another program wrote in PEFT's form.

    Raises:
        BackboneError: it was written by a release of which nobody knows whether it does.
    """
    if not modules or "init_lora_weights" not in said:  # which PEFT itself always writes
        return []
    version = str(said.get("peft_version") or "0")  # older ones do not say
    if tuple(int(part) for part in re.findall(r"\d+", version)[:3]) > KNOWN:
        raise BackboneError(
            f"{folder}: PEFT {version} adapted {modules[0]}, whose delta releases up to {'.'.join(map(str, KNOWN))} "
            "add twice, and of later ones nothing is known here; merge it by PEFT's merge_and_unload, and give the "
            "weights"
        )
    return modules


def _config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG
    try:
        said: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        kind, alpha, rank = said["peft_type"], said["lora_alpha"], said["r"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BackboneError(f"{path}: missing, or no configuration of PEFT's LoRA ({error!r})") from error
    if kind != "LORA" or not all(isinstance(one, int | float) and one > 0 for one in (alpha, rank)):
        raise BackboneError(f"{path}: is {kind} with lora_alpha {alpha} and r {rank}; LoRA alone is read")
    if more := [what for name, what in UNREAD.items() if said.get(name)]:
        raise BackboneError(f"{path}: has {' and '.join(more)}; merge it into its weights, and give these")
    init = said.get("init_lora_weights")
    if isinstance(init, str) and init.lower().startswith(MOVED):
        raise BackboneError(
            f"{path}: began with init_lora_weights {init}, which changes the weights beside the factors, so that B A "
            "is not what was learned; save it with PEFT's path_initial_model_for_weight_conversion, or merge it into "
            "its weights and give these"
        )
    return said


def _scale(said: Mapping[str, Any], module: str, rank: int) -> float:
    """Returns what B A is multiplied by, for a module whose alpha may be its own."""
    patterns = said.get("alpha_pattern") or {}
    own = [value for pattern, value in patterns.items() if re.fullmatch(rf"(?:.*\.)?(?:{pattern})", module)]
    alpha = float(own[0] if own else said["lora_alpha"])
    return alpha / math.sqrt(rank) if said.get("use_rslora") else alpha / rank


def _open_clips(deltas: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns deltas under open_clip's names."""
    found = dict(deltas)
    for name, tensor in deltas.items():
        if attention := re.fullmatch(r"(.*\.self_attn\.)[qkv]_proj\.weight", name):
            for letter in "qkv":  # what was not adapted did not change
                found.setdefault(f"{attention[1]}{letter}_proj.weight", torch.zeros_like(tensor))
    if any(name.startswith(("text_model.", "vision_model.", "text_projection", "visual_projection")) for name in found):
        found = from_hugging_face({name: found[name] for name in found})
    # PEFT wraps torch's MultiheadAttention as one module, whose own weight is query, key and value.
    return {re.sub(r"\.attn\.weight$", ".attn.in_proj_weight", name): tensor for name, tensor in found.items()}
