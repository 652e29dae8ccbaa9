"""One forward pass of an image tower for images that want different experts: no weight is swapped.

A low-rank expert is a LoRA on theta0 (Hu et al. 2021, arXiv:2106.09685): x W0^T is computed for all images at once, and
(x right) left^T for the images of each expert. What is no matrix (biases, norms, the class token) is taken by image
too. Serving many adapters in one batch is S-LoRA's (Sheng et al. 2023, arXiv:2311.03285); here every matrix of the
tower is adapted, the packed ones of attention and the patch embedding among them.

Names: ``B`` images, ``L`` tokens, ``W`` width, ``R`` and ``C`` rows and columns of a matrix, ``K`` rank.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from condu_ray.vlm.zeroshot import wide

if TYPE_CHECKING:
    from open_clip import CLIP

PREFIX = "visual."


@dataclass(frozen=True)
class LowRankExpert:
    """A delta of the image tower; parameters that are in neither are theta0's.

    Attributes:
        factors: name to `left` [R, K] and `right` [C, K] of a tensor whose delta is `left @ right.T`, reshaped: its
            first dimension is the rows.
    """

    factors: Mapping[str, tuple[Tensor, Tensor]]

    def to(self, device: torch.device) -> LowRankExpert:
        """Returns the same on a device."""
        return LowRankExpert(
            {name: (left.to(device), right.to(device)) for name, (left, right) in self.factors.items()}
        )

    def delta(self, name: str, shape: torch.Size) -> Tensor | None:
        """Returns a parameter's delta, or None where it is theta0's."""
        if name not in self.factors:
            return None
        left, right = self.factors[name]
        return (left @ right.T).reshape(shape)


def supported(model: nn.Module) -> bool:
    """Whether a model's image tower is one of open_clip's plain transformers, which :func:`encode` knows."""
    from open_clip.model import CLIP, CustomTextCLIP
    from open_clip.transformer import LayerNorm, LayerNormFp32, ResidualAttentionBlock, VisionTransformer

    tower: Any = getattr(model, "visual", None)
    if not isinstance(model, CLIP | CustomTextCLIP) or type(tower) is not VisionTransformer:
        return False
    plain = tower.attn_pool is None and not tower.output_tokens and isinstance(tower.patch_dropout, nn.Identity)
    norms = [tower.ln_pre, tower.ln_post]
    for block in tower.transformer.resblocks:
        plain &= type(block) is ResidualAttentionBlock and not hasattr(block, "ln_1_kv")
        plain &= type(getattr(block, "attn", None)) is nn.MultiheadAttention and block.attn._qkv_same_embed_dim
        if plain:
            norms += [block.ln_1, block.ln_2]
            plain &= block.attn.bias_k is None and not block.attn.add_zero_attn and len(block.mlp) == 3
            plain &= all(isinstance(one, nn.Linear) for one in (block.mlp[0], block.mlp[2]))
    return bool(plain) and all(type(norm) in (nn.Identity, nn.LayerNorm, LayerNorm, LayerNormFp32) for norm in norms)


@torch.no_grad()
def encode(model: CLIP, images_BCHW: Tensor, experts: Sequence[LowRankExpert | None], expert_B: Tensor) -> Tensor:
    """Encodes normalised images, each by its own expert.

    Args:
        model: a model that is `supported`, with theta0's weights.
        images_BCHW: on the model's device.
        experts: on that device; None: theta0.
        expert_B: int64, which of them each image wants.

    Returns:
        [B, D] float32, L2-normalised.
    """
    order_B = expert_B.argsort(stable=True)
    chosen, counts = expert_B[order_B].unique_consecutive(return_counts=True)
    stops = counts.cumsum(0).tolist()
    groups = [
        (slice(stop - count, stop), experts[which])
        for which, count, stop in zip(chosen.tolist(), counts.tolist(), stops, strict=True)
    ]
    order_B = order_B.to(images_BCHW.device)
    found_BD = _Pass(model.visual, groups).tower(images_BCHW[order_B])
    return wide(functional.normalize(found_BD, dim=-1))[order_B.argsort()]


class _Pass:
    """A forward pass over images in the order of their experts.

    Args:
        tower: open_clip's VisionTransformer.
        groups: which images each expert has.
    """

    def __init__(self, tower: Any, groups: Sequence[tuple[slice, LowRankExpert | None]]) -> None:
        self._tower = tower
        self._groups = [(rows, expert) for rows, expert in groups if expert is not None]

    def tower(self, images_BCHW: Tensor) -> Tensor:
        """As open_clip's `VisionTransformer.forward` has it."""
        tower = self._tower
        x_BLW = self._patches(images_BCHW)
        token = tower.class_embedding.to(x_BLW.dtype).expand(len(x_BLW), 1, -1)
        x_BLW = torch.cat([token, x_BLW], dim=1) + tower.positional_embedding.to(x_BLW.dtype)
        for rows, expert in self._groups:
            if (token := expert.delta(f"{PREFIX}class_embedding", tower.class_embedding.shape)) is not None:
                x_BLW[rows, 0] += token
            if (place := expert.delta(f"{PREFIX}positional_embedding", tower.positional_embedding.shape)) is not None:
                x_BLW[rows] += place
        x_BLW = self._norm(tower.ln_pre, "ln_pre", x_BLW)
        for number, block in enumerate(tower.transformer.resblocks):
            x_BLW = self._block(block, f"transformer.resblocks.{number}", x_BLW)
        if tower.final_ln_after_pool:
            pooled_BW = self._norm(tower.ln_post, "ln_post", tower._global_pool(x_BLW)[0])
        else:
            pooled_BW = tower._global_pool(self._norm(tower.ln_post, "ln_post", x_BLW))[0]
        if tower.proj is None:
            return pooled_BW
        found_BD = pooled_BW @ tower.proj
        for rows, expert in self._groups:
            name = f"{PREFIX}proj"
            if name in expert.factors:
                left_WK, right_DK = expert.factors[name]
                found_BD[rows] += (pooled_BW[rows] @ left_WK) @ right_DK.T
        return found_BD

    def _patches(self, images_BCHW: Tensor) -> Tensor:
        conv = self._tower.conv1
        x_BWhw = conv(images_BCHW)
        for rows, expert in self._groups:
            name = f"{PREFIX}conv1.weight"
            if name in expert.factors:
                left_WK, right_CK = expert.factors[name]
                filters = right_CK.T.reshape(-1, *conv.weight.shape[1:])
                small = functional.conv2d(images_BCHW[rows], filters, stride=conv.stride)
                x_BWhw[rows] += functional.conv2d(small, left_WK[:, :, None, None])
        return x_BWhw.flatten(2).transpose(1, 2)

    def _block(self, block: Any, name: str, x_BLW: Tensor) -> Tensor:
        a_BLW = self._attention(block.attn, f"{name}.attn", self._norm(block.ln_1, f"{name}.ln_1", x_BLW))
        x_BLW = x_BLW + self._scaled(block.ls_1, f"{name}.ls_1", a_BLW)
        wide_BLH = self._linear(block.mlp[0], f"{name}.mlp.c_fc", self._norm(block.ln_2, f"{name}.ln_2", x_BLW))
        m_BLW = self._linear(block.mlp[2], f"{name}.mlp.c_proj", block.mlp[1](wide_BLH))
        return x_BLW + self._scaled(block.ls_2, f"{name}.ls_2", m_BLW)

    def _attention(self, attention: nn.MultiheadAttention, name: str, x_BLW: Tensor) -> Tensor:
        packed = self._product(attention.in_proj_weight, attention.in_proj_bias, f"{name}.in_proj_", x_BLW)
        heads = attention.num_heads
        q, k, v = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in packed.chunk(3, dim=-1))
        mixed = functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return self._linear(attention.out_proj, f"{name}.out_proj", mixed)

    def _linear(self, layer: nn.Linear, name: str, x_BLC: Tensor) -> Tensor:
        return self._product(layer.weight, layer.bias, f"{name}.", x_BLC)

    def _product(self, weight_RC: Tensor, bias_R: Tensor | None, name: str, x_BLC: Tensor) -> Tensor:
        found_BLR = functional.linear(x_BLC, weight_RC, bias_R)
        for rows, expert in self._groups:
            weight, bias = f"{PREFIX}{name}weight", f"{PREFIX}{name}bias"
            if weight in expert.factors:
                left_RK, right_CK = expert.factors[weight]
                found_BLR[rows] += functional.linear(functional.linear(x_BLC[rows], right_CK.T), left_RK)
            if (shift := expert.delta(bias, torch.Size([len(weight_RC)]))) is not None:
                found_BLR[rows] += shift
        return found_BLR

    def _norm(self, norm: Any, name: str, x: Tensor) -> Tensor:
        found: Tensor = norm(x)
        for rows, expert in self._groups if not isinstance(norm, nn.Identity) else ():
            deltas = [expert.delta(f"{PREFIX}{name}.{kind}", norm.weight.shape) for kind in ("weight", "bias")]
            if any(delta is not None for delta in deltas):
                scale, shift = (
                    one if delta is None else one + delta
                    for one, delta in zip((norm.weight, norm.bias), deltas, strict=True)
                )
                found[rows] = functional.layer_norm(x[rows], norm.normalized_shape, scale, shift, norm.eps)
        return found

    def _scaled(self, scale: Any, name: str, x_BLW: Tensor) -> Tensor:
        if isinstance(scale, nn.Identity):
            return x_BLW
        found_BLW = x_BLW * scale.gamma
        for rows, expert in self._groups:
            if (delta := expert.delta(f"{PREFIX}{name}.gamma", scale.gamma.shape)) is not None:
                found_BLW[rows] += x_BLW[rows] * delta
        return found_BLW
