"""Files of weights: which are refused, which names are put right, and what is said of those that do not fit."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from condu_ray.vlm.weights import BackboneError, WeightsFile, pickled, read_weights

FLOATS = ("F64", "F32", "F16", "BF16")
"""What a weight may be stored in, as safetensors calls it."""
WRAPPERS = ("module.", "model.", "clip.", "clip_model.", "student.", "state_dict.")
"""What training loops put before every name (DistributedDataParallel, Lightning and others)."""
NO_WEIGHTS = ("input_resolution", "context_length", "vocab_size", "position_ids", "attn_mask")
"""Last parts of names that some checkpoints hold beside their weights; nothing is lost with them."""
SHARD = re.compile(r"-\d+-of-0*([1-9]\d+|[2-9])\.\w+$")
"""How Hugging Face names a part of what is too large for one file."""
SHOWN = 2
"""Names that a message gives of a kind."""

HUGGING_FACE = (
    (r"^vision_model\.embeddings\.class_embedding$", "visual.class_embedding"),
    (r"^vision_model\.embeddings\.patch_embedding\.", "visual.conv1."),
    (r"^vision_model\.embeddings\.position_embedding\.weight$", "visual.positional_embedding"),
    (r"^vision_model\.pre_layrnorm\.", "visual.ln_pre."),
    (r"^vision_model\.post_layernorm\.", "visual.ln_post."),
    (r"^vision_model\.encoder\.layers\.", "visual.transformer.resblocks."),
    (r"^visual_projection\.weight$", "visual.proj"),
    (r"^text_model\.embeddings\.token_embedding\.", "token_embedding."),
    (r"^text_model\.embeddings\.position_embedding\.weight$", "positional_embedding"),
    (r"^text_model\.final_layer_norm\.", "ln_final."),
    (r"^text_model\.encoder\.layers\.", "transformer.resblocks."),
    (r"^text_projection\.weight$", "text_projection"),
    (r"\.self_attn\.", ".attn."),
    (r"\.layer_norm([12])\.", r".ln_\1."),
    (r"\.mlp\.fc1\.", ".mlp.c_fc."),
    (r"\.mlp\.fc2\.", ".mlp.c_proj."),
)
"""Hugging Face's CLIPModel in open_clip's names; query, key and value are one tensor there, projections transposed."""


def load_weights(model: nn.Module, path: Path, name: str) -> list[str]:
    """Loads a file of weights into a model, strictly: every tensor of the model has to be there.

    Names may be open_clip's own, in any of the forms that open_clip reads, wrapped by a training loop, or those of
    Hugging Face's CLIPModel.

    Args:
        model: as open_clip built it.
        path: a safetensors file, or a state dict or checkpoint of torch.
        name: the model's, for messages.

    Returns:
        What was done to it that a user should know, a line each.

    Raises:
        BackboneError: it is damaged, quantised, or of another architecture; the message says what it looks like.
    """
    own, file = model.state_dict(), read_weights(path)
    stored = file.stored
    _refuse_quantised(path, stored, own)
    shapes = {key: shape for key, (_, shape) in stored.items()}
    for renamed, what in _readings(shapes):
        hugging_face = any(new.startswith("text_model.") for new in renamed.values())
        if not hugging_face and not _fits({new: shapes[old] for old, new in renamed.items()}, own):
            continue
        held = file.load()
        tensors = {new: held[old] for old, new in renamed.items()}
        if hugging_face:
            tensors = from_hugging_face(tensors)
            what.append("Hugging Face's names were turned into open_clip's")
        if _fits({key: tuple(tensor.shape) for key, tensor in tensors.items()}, own):
            model.load_state_dict({key: tensor.reshape(own[key].shape) for key, tensor in tensors.items()})
            return [*file.notes, *([f"{path}: {', '.join(what)}"] if what else [])]
    return [*file.notes, *_as_open_clip_reads(model, file, name, shapes)]


def _refuse_quantised(path: Path, stored: Mapping[str, tuple[str, tuple[int, ...]]], own: Mapping[str, Tensor]) -> None:
    counts = {key.rsplit(".", 1)[-1] for key, tensor in own.items() if not tensor.is_floating_point()}
    odd = {
        key: kind
        for key, (kind, shape) in stored.items()
        if kind not in FLOATS and shape and key.rsplit(".", 1)[-1] not in counts | set(NO_WEIGHTS)
    }
    if odd:
        key, kind = next(iter(odd.items()))
        raise BackboneError(
            f"{path}: {len(odd)} of {len(stored)} tensors are quantised ({_names([key])} is {kind}); take the weights "
            f"as they were before, in one of {', '.join(FLOATS)}"
        )


def _readings(names: Collection[str]) -> Iterator[tuple[dict[str, str], list[str]]]:
    """Yields what a file's names may be read as, {stored: model's}, each with what was done to them."""
    yield {name: name for name in names}, []
    found, done = {name: name for name in names if name.rsplit(".", 1)[-1] not in NO_WEIGHTS}, []
    yield found, []
    while True:
        if any("_orig_mod." in new for new in found.values()):  # by torch.compile, of the whole or of a part
            gone, found = "_orig_mod.", {old: new.replace("_orig_mod.", "") for old, new in found.items()}
        else:
            wrapped = (part for part in WRAPPERS if all(new.startswith(part) for new in found.values()))
            gone = next(wrapped, "")
            found = {old: new.removeprefix(gone) for old, new in found.items()}
        if not gone:
            return
        done.append(f"{gone} was taken off its names")
        yield found, list(done)


def _fits(shapes: Mapping[str, tuple[int, ...]], own: Mapping[str, Tensor]) -> bool:
    """Whether these are the model's tensors, all of them; the scale is a number or a vector of one."""
    return shapes.keys() == own.keys() and all(
        shape == own[name].shape or (name.startswith("logit_") and torch.Size(shape).numel() == own[name].numel() == 1)
        for name, shape in shapes.items()
    )


def from_hugging_face(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns the weights of Hugging Face's CLIPModel under open_clip's names, in open_clip's layout.

    Args:
        tensors: `text_model.*`, `vision_model.*`, the projections and `logit_scale`; other names stay as they are.
    """
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        new = name
        for pattern, replacement in HUGGING_FACE:
            new = re.sub(pattern, replacement, new)
        if ".q_proj." in new:
            keys = [name.replace(".q_proj.", f".{letter}_proj.") for letter in "qkv"]
            found[new.replace("q_proj.", "in_proj_")] = torch.cat([tensors[key] for key in keys if key in tensors])
        elif not re.search(r"\.[kv]_proj\.", new):
            found[new] = tensor.T if new in ("visual.proj", "text_projection") else tensor
    return found


def _as_open_clip_reads(
    model: nn.Module, file: WeightsFile, name: str, shapes: Mapping[str, tuple[int, ...]]
) -> list[str]:
    """Leaves it to open_clip, which knows older forms of its own and resizes position embeddings."""
    from open_clip.factory import load_checkpoint

    path, own = file.path, {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}
    try:
        with tempfile.TemporaryDirectory() as folder:
            read = path
            if path.suffix != ".safetensors" or pickled(path):  # open_clip goes by the name's end
                read = Path(folder) / "weights.safetensors"
                save_file({key: tensor.clone().contiguous() for key, tensor in file.load().items()}, read)
            load_checkpoint(model, str(read))
    except Exception as error:  # what it raises on a foreign file is of any class
        raise BackboneError(_looks_like(path, name, shapes, own)) from error
    read_as = {key: _open_clips_name(key, own) for key in shapes if "positional_embedding" in key}
    return [
        f"{path}: {key} {list(shapes[key])} was resized to the model's {list(own[new])}"
        for key, new in read_as.items()
        if new in own and shapes[key] != own[new]
    ]


def _open_clips_name(key: str, own: Collection[str]) -> str:
    """Returns what open_clip takes a tensor of a file for, which it strips and moves into a text tower of its own."""
    name = key.removeprefix("module.")
    return next((new for new in (name, f"text.{name}") if new in own), key)


def _looks_like(
    path: Path, name: str, shapes: Mapping[str, tuple[int, ...]], own: Mapping[str, tuple[int, ...]]
) -> str:
    missing, extra = [key for key in own if key not in shapes], [key for key in shapes if key not in own]
    other = [key for key, shape in shapes.items() if key in own and shape != own[key]]
    if shard := SHARD.search(path.name):
        return (
            f"{path}: is one of the {int(shard[1])} files that a model was cut into, with {len(shapes)} tensors, where "
            f"{name} has {len(own)}; load it by the program that cut it, and save its state dict as one file"
        )
    found = [f"{len(missing)} of {len(own)} tensors are missing ({_names(missing)})"] if missing else []
    found += [f"{len(extra)} are none of the model's ({_names(extra)})"] if extra else []
    if other:
        key = other[0]
        found.append(f"{len(other)} have another shape ({_names([key])} {list(shapes[key])}, not {list(own[key])})")
    marks = {
        "lora_": "adapters of another program; merge them into their weights first",
        "text_model.": "a model of Hugging Face's of another kind or size",
        "text.": "a model with a text tower of its own (open_clip's CustomTextCLIP: SigLIP, MobileCLIP, CoCa, ...)",
        "visual.trunk.": "a model with an image tower of timm's",
        "visual.layer1.": "a ResNet of CLIP's",
        "visual.transformer.": "a Vision Transformer of another kind or size",
    }
    looks = next((what for mark, what in marks.items() if any(mark in key for key in extra)), "another architecture")
    return f"{path}: cannot be loaded as {name}: {'; '.join(found)}. It looks like {looks}; name its --model"


def _names(keys: list[str]) -> str:
    """The first of some names, each cut to a length that a line can hold."""
    shown = [key if len(key) <= 80 else f"{key[:77]}..." for key in keys[:SHOWN]]
    return ", ".join(shown) + (", ..." if len(keys) > SHOWN else "")
