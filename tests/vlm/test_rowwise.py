"""One pass for images that want different experts, against the weights of each put in place."""

import pytest
import torch
from open_clip.model import CLIP, CustomTextCLIP

from condu_ray.merging.codes import low_rank
from condu_ray.vlm.rowwise import PREFIX, LowRankExpert, encode, supported
from condu_ray.vlm.zeroshot import image_features

VISION = {"image_size": 16, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8}
TEXT = {"context_length": 8, "vocab_size": 50, "width": 16, "heads": 2, "layers": 1}
IMAGES = torch.randn(9, 3, 16, 16, generator=torch.Generator().manual_seed(0))
WANTED = torch.tensor([2, 0, 1, 2, 2, 3, 0, 1, 3])  # 3: theta0


def as_products(delta):
    """Any delta, whatever its rank."""
    return LowRankExpert({name: (one.reshape(len(one), -1), torch.eye(one[0].numel())) for name, one in delta.items()})


def make(**changes):
    torch.manual_seed(1)
    return CLIP(16, VISION | changes, TEXT).eval()


def noise(model, seed, size=0.2):
    generator = torch.Generator().manual_seed(seed)
    named = {name: one for name, one in model.named_parameters() if name != "logit_scale"}
    return {name: size * torch.randn(one.shape, generator=generator) for name, one in named.items()}


@torch.no_grad()
def by_swapping(model, deltas):
    """Each image alone, by theta0 + its delta."""
    named, rows = dict(model.named_parameters()), []
    before = {name: one.clone() for name, one in named.items()}
    for image, which in zip(IMAGES, WANTED.tolist(), strict=True):
        for name, tensor in (deltas[which] or {}).items():
            named[name].copy_(before[name] + tensor)
        rows.append(image_features(model, image[None]))
        for name, tensor in before.items():
            named[name].copy_(tensor)
    return torch.cat(rows)


@pytest.mark.parametrize(
    "changes",
    [{}, {"ls_init_value": 0.5}, {"final_ln_after_pool": True, "pool_type": "avg"}, {"no_ln_pre": True}],
    ids=["plain", "layer scale", "average pooling", "no first norm"],
)
def test_every_image_has_its_own_expert_within_rounding(changes):
    model = make(**changes)
    assert supported(model)
    codes = [low_rank.encode(noise(model, seed), 8.0, signs=False) for seed in range(2)]
    experts = [LowRankExpert(low_rank.products(code, PREFIX)) for code in codes]
    of_images = {name: tensor for name, tensor in noise(model, 5).items() if name.startswith(PREFIX)}
    expected = by_swapping(model, [*map(low_rank.decode, codes), noise(model, 5), None])
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    found = encode(model, IMAGES, [*experts, as_products(of_images), None], WANTED)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=2e-6)
    assert all(before[name].equal(tensor) for name, tensor in model.state_dict().items())
    plain = image_features(model, IMAGES)
    apart = (found - plain).norm(dim=1)
    assert (apart[WANTED != 3] > 0.1).all()
    assert (apart[WANTED == 3] < 1e-5).all()


@pytest.mark.parametrize("name", ["conv1.weight", "class_embedding", "positional_embedding", "proj", "ln_pre.weight",
                                  "transformer.resblocks.1.attn.in_proj_weight", "transformer.resblocks.0.ln_2.bias",
                                  "transformer.resblocks.1.attn.in_proj_bias", "transformer.resblocks.0.mlp.c_fc.bias",
                                  "transformer.resblocks.0.attn.out_proj.weight"])  # fmt: skip
def test_no_parameter_is_forgotten(name):
    model = make()
    delta = {PREFIX + name: noise(model, 3)[PREFIX + name]}
    code = low_rank.encode(delta, 30.0, signs=False)
    forms = as_products(delta), LowRankExpert(low_rank.products(code))
    expected = by_swapping(model, [delta, low_rank.decode(code), delta, None])
    found = encode(model, IMAGES, [*forms, forms[0], None], WANTED)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=2e-6)
    assert (found - image_features(model, IMAGES))[WANTED != 3].norm(dim=1).min() > 1e-4


def test_a_code_with_signs_of_the_rest_has_no_such_form():
    delta = {"visual.w": torch.randn(40, 50), "b": torch.randn(50)}
    with_signs = low_rank.encode(delta, 1.6)
    assert low_rank.products(with_signs) is None
    assert low_rank.products(with_signs, "text.") == {}
    code = low_rank.encode(delta | {"visual.z": torch.zeros(4, 5)}, 3.0, signs=False)
    found = low_rank.products(code)
    assert set(found) == {"visual.w", "b"}
    for name, tensor in low_rank.decode(code).items():
        if name in found:
            torch.testing.assert_close((found[name][0] @ found[name][1].T).reshape(tensor.shape), tensor)


def test_other_towers_are_left_to_swapping():
    assert not supported(CLIP(16, {"layers": (1, 1, 1, 1), "width": 8, "image_size": 32}, TEXT))
    assert not supported(make(attentional_pool=True))
    assert not supported(make(patch_dropout=0.5))
    assert not supported(torch.nn.Linear(2, 2))
    assert supported(CustomTextCLIP(16, VISION, TEXT))


@pytest.mark.parametrize(
    "change",
    [
        lambda block: setattr(block, "ln_1", torch.nn.RMSNorm(32)),
        lambda block: setattr(block, "ln_2", torch.nn.RMSNorm(32)),
        lambda block: setattr(block.mlp, "c_fc", torch.nn.Identity()),
        lambda block: setattr(block.mlp, "c_proj", torch.nn.Identity()),
        lambda block: block.mlp.add_module("more", torch.nn.Identity()),
        lambda block: setattr(block.attn, "add_zero_attn", True),
        lambda block: setattr(block.attn, "bias_k", torch.nn.Parameter(torch.zeros(1, 1, 32))),
        lambda block: setattr(block.attn, "_qkv_same_embed_dim", False),
        lambda block: setattr(block, "attn", torch.nn.Identity()),
        lambda block: setattr(block, "ln_1_kv", torch.nn.LayerNorm(32)),
    ],
)
def test_a_block_of_other_parts_is_left_to_swapping(change):
    """They would be computed as the plain ones, without a word."""
    model = make()
    change(model.visual.transformer.resblocks[1])
    assert not supported(model)


def test_a_first_or_last_norm_of_another_kind_is_left_to_swapping():
    for name in ("ln_pre", "ln_post"):
        model = make()
        setattr(model.visual, name, torch.nn.RMSNorm(32))
        assert not supported(model)
