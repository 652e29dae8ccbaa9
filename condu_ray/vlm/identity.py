"""A backbone's identity: one fingerprint of everything that changes a feature, whatever its files are called."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from operator import itemgetter
from typing import Any

from torch import nn

from condu_ray.merging import fingerprint
from condu_ray.settings import content_hash
from condu_ray.vlm.spec import BackboneSpec

VERSION = 2
"""Raised whenever the same backbone would compute other features."""
NOT_BUILT = ("timm_model_pretrained", "hf_model_pretrained", "hf_tokenizer_name", "tokenizer_mode", "tokenizer_kwargs")
"""Fields of a tower's configuration that do not change the tower; a tokenizer counts as what it is."""
PROBES = ("a photo of a Tabby cat.", "Caf\u00e9 &amp; Bar, 2 \uff21\uff22 \ufb01sh", "it's  x-ray_1!", "")
"""Texts whose tokens tell what no attribute of a foreign tokenizer says."""


def backbone_fingerprint(model: nn.Module, spec: BackboneSpec, config: Mapping[str, Any], tokenizer: Any) -> str:
    """Hashes weights (with their dtype), architecture as it was built, preprocessing and tokenizer.

    Args:
        model: with its weights.
        spec: how it was made: its preprocessing counts, no name or path.
        config: open_clip's model_cfg.
        tokenizer: the model's.

    Returns:
        64 hex digits: equal for equal content in other folders, under other names, or with defaults written out.
    """
    size = {"size": list(spec.image_size)}
    parts = [VERSION, fingerprint(model.state_dict()), structure(model), _configuration(config, spec.quick_gelu)]
    # A tokenizer's words, tens of thousands, hold no float: they are not gone through one by one.
    return content_hash([*_plain([*parts, spec.preprocess | size]), _tokenizer(tokenizer)])


def structure(model: nn.Module) -> list[list[str]]:
    """Returns the modules that a model consists of: name, class, and what the module says of itself."""
    return [[name, type(module).__name__, module.extra_repr()] for name, module in model.named_modules()]


def _configuration(config: Mapping[str, Any], quick_gelu: bool) -> list[Any]:
    from open_clip.coca_model import MultimodalCfg
    from open_clip.model import CLIPTextCfg, CLIPVisionCfg

    towers: list[Any] = []
    for name, kind in (("vision_cfg", CLIPVisionCfg), ("text_cfg", CLIPTextCfg), ("multimodal_cfg", MultimodalCfg)):
        if name in config:
            # Without what is a default anyway: a later open_clip with one field more builds the same tower.
            defaults = {field.name: field.default for field in fields(kind)}
            tower = {key: value for key, value in config[name].items() if key not in NOT_BUILT}
            towers.append({key: value for key, value in tower.items() if value != defaults.get(key)})
    return [config["embed_dim"], bool(config.get("quick_gelu", False)) or quick_gelu, towers]


def _tokenizer(tokenizer: Any) -> list[Any]:
    """What a tokenizer does: open_clip's own (`encoder`, `bpe_ranks`), or its wrapper of one of Hugging Face's."""
    inner = getattr(tokenizer, "tokenizer", tokenizer)
    own = isinstance(getattr(inner, "encoder", None), dict)
    words = inner.encoder if own else inner.get_vocab() if hasattr(inner, "get_vocab") else {}
    rest = inner.backend_tokenizer.to_str() if hasattr(inner, "backend_tokenizer") else ""
    merges = [" ".join(pair) for pair in getattr(inner, "bpe_ranks", {})]
    functions = [getattr(tokenizer, name, None) for name in ("clean_fn", "reduction_fn")]
    settings = [getattr(tokenizer, name, None) for name in ("context_length", "tokenizer_mode", "strip_sep_token")]
    said = [type(tokenizer).__name__, type(inner).__name__, settings, [_name(function) for function in functions]]
    tokens = [] if functions[1] is not None else tokenizer(list(PROBES)).tolist()  # a reduction draws by chance
    pattern = getattr(getattr(inner, "pat", None), "pattern", "")
    return [*said, sorted(words.items(), key=itemgetter(1)), merges, pattern, rest, tokens]


def _name(function: Any) -> str:
    """A function's name, with its arguments where some are bound."""
    inner = getattr(function, "func", function)
    return f"{getattr(inner, '__name__', inner)} {getattr(function, 'keywords', {})}"


def _plain(value: Any) -> Any:
    """The same with equal numbers and sequences written alike: 4.0 as 4, tuples as lists."""
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value
