"""How much of its context a text tower has to read: prompts cut after the longest, where that changes no feature.

A causal tower that pools at the end token never looks behind it: the tokens after the longest prompt of a batch are
encoded for nothing, at CLIP's 77 positions most of them. open_clip (3.3) encodes them all the same: `CLIP.encode_text`
takes no shorter tokens, and `TextTransformer` cuts its positions but not its mask.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional

if TYPE_CHECKING:
    from open_clip import CLIP

KEPT = 32
"""Tensors of tokens whose lengths a :class:`Cut` remembers."""


def encode_text(model: CLIP, tokens_CL: Tensor) -> Tensor:
    """Returns a model's L2-normalised text features [C, D] in its dtype.

    Args:
        model: any model of open_clip.
        tokens_CL: int64, at full context, or as :func:`cut` returns them.
    """
    tower = _tower(model)
    length = tokens_CL.shape[1]
    if tower is None or length >= len(tower.positional_embedding):
        return model.encode_text(tokens_CL, normalize=True)
    # As open_clip's CLIP.encode_text and TextTransformer.forward have it, on the first positions alone.
    dtype = tower.transformer.get_cast_dtype()
    x_CLW = tower.token_embedding(tokens_CL).to(dtype) + tower.positional_embedding[:length].to(dtype)
    x_CLW = tower.ln_final(tower.transformer(x_CLW, attn_mask=tower.attn_mask[:length, :length]))
    pooled_CW = x_CLW[torch.arange(len(x_CLW), device=x_CLW.device), _ends(tower, tokens_CL)]
    if isinstance(tower.text_projection, nn.Linear):
        pooled_CW = tower.text_projection(pooled_CW)
    elif tower.text_projection is not None:
        pooled_CW = pooled_CW @ tower.text_projection
    return functional.normalize(pooled_CW, dim=-1)


def cut(model: nn.Module, tokens_CL: Tensor) -> Tensor:
    """Returns tokens without what is behind the longest prompt's end; as they are where a tower may look there.

    Args:
        model: any model of open_clip.
        tokens_CL: int64 at full context; on a GPU, their length is waited for.
    """
    return tokens_CL[:, : _length(model, tokens_CL)]


class Cut:
    """:func:`cut` for one model, which remembers the lengths of tokens that it has seen: no step waits for a GPU."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._seen: dict[int, tuple[Tensor, int, int]] = {}

    def __call__(self, tokens_CL: Tensor) -> Tensor:
        """Returns what :func:`cut` does."""
        found = self._seen.get(id(tokens_CL))
        if found is None or found[1] != tokens_CL._version:  # it was written to since
            # The tensor itself is kept, so that its id is nobody else's.
            found = self._seen[id(tokens_CL)] = tokens_CL, tokens_CL._version, _length(self._model, tokens_CL)
            while len(self._seen) > KEPT:
                del self._seen[next(iter(self._seen))]
        return tokens_CL[:, : found[2]]


def _length(model: nn.Module, tokens_CL: Tensor) -> int:
    """Positions that the features of these tokens depend on."""
    tower, whole = _tower(model), tokens_CL.shape[1]
    if tower is None or not len(tokens_CL) or whole != len(tower.positional_embedding) or not _causal(tower.attn_mask):
        return whole
    return int(_ends(tower, tokens_CL).max()) + 1


def _tower(model: nn.Module) -> Any:
    """Returns what holds the text tower's modules where it is one of open_clip's that pools at the end token, or None.

    A subclass may read its text in another way, and so does a tower with a class token (CoCa) or one of Hugging Face's.
    """
    from open_clip.model import CLIP, CustomTextCLIP
    from open_clip.transformer import TextTransformer

    tower: Any = model
    if type(model) is CustomTextCLIP and type(model.text) is TextTransformer:
        tower = model.text
        if tower.cls_emb is not None or tower.use_pad_mask or tower.output_tokens:
            return None
    elif type(model) is not CLIP:
        return None
    return tower if _pooling(tower)[0] in ("argmax", "eos") and tower.attn_mask is not None else None


def _causal(mask_LL: Tensor) -> bool:
    """Whether an additive mask lets every position see itself and those before it, and no other."""
    return torch.equal(mask_LL, torch.full_like(mask_LL, float("-inf")).triu(1))


def _ends(tower: Any, tokens_CL: Tensor) -> Tensor:
    """Returns where each prompt is pooled, int64 [C], as open_clip's `text_global_pool` has it."""
    pool, end = _pooling(tower)
    return (tokens_CL.eq(end).int() if pool == "eos" else tokens_CL).argmax(dim=-1)


def _pooling(tower: Any) -> tuple[str, int]:
    """Returns how a tower pools, and its end token."""
    own = not hasattr(tower, "pool_type")  # CLIP takes its text tower's modules for its own
    return (tower.text_pool_type, tower.text_eos_id) if own else (tower.pool_type, tower.eos_id)
