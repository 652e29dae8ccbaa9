"""Prompts are cut after the longest where that changes no feature, and nowhere else."""

import copy

import open_clip
import pytest
import torch
from open_clip.coca_model import CoCa
from open_clip.model import CLIP, CustomTextCLIP
from open_clip.transformer import TextTransformer
from torch import nn

from condu_ray.learn.objective import ClipClassifier
from condu_ray.vlm.context import KEPT, Cut, _tower, cut, encode_text
from condu_ray.vlm.lora import LowRank
from condu_ray.vlm.zeroshot import text_features

CONTEXT, WORDS, END = 20, 60, 59
VIT = {"image_size": 16, "layers": 1, "width": 32, "head_width": 16, "patch_size": 8}
TEXT = {"context_length": CONTEXT, "vocab_size": WORDS, "width": 32, "heads": 2, "layers": 3}
BIASED = TEXT | {"proj_bias": True}
CUTS = {
    "CLIP": (CLIP, TEXT, {}),
    "CLIP with QuickGELU and layer scales": (CLIP, TEXT | {"ls_init_value": 0.5}, {"quick_gelu": True}),
    "CLIP that pools at the first end": (CLIP, TEXT | {"pool_type": "eos", "eos_id": END}, {}),
    "CLIP without a projection": (CLIP, TEXT | {"proj_type": "none"}, {}),
    "custom text": (CustomTextCLIP, BIASED, {}),
    "custom text that pools at the first end": (CustomTextCLIP, TEXT | {"pool_type": "eos", "eos_id": END}, {}),
    "custom text of other blocks": (CustomTextCLIP, TEXT | {"qk_norm": True, "scale_attn": True}, {}),
}
WHOLE = {
    "no causal mask": (CLIP, TEXT | {"no_causal_mask": True}),
    "the first token": (CLIP, TEXT | {"pool_type": "first"}),
    "the last token": (CLIP, TEXT | {"pool_type": "last"}),
    "custom text without a causal mask": (CustomTextCLIP, TEXT | {"no_causal_mask": True}),
    "custom text, the last token": (CustomTextCLIP, BIASED | {"pool_type": "last"}),
    "custom text, a class token": (CustomTextCLIP, TEXT | {"embed_cls": True}),
}


def made(kind, text, rest=None):
    torch.manual_seed(0)
    model = kind(embed_dim=32, vision_cfg=VIT, text_cfg=text, **(rest or {})).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "positional_embedding" in name:
                parameter.normal_(std=0.5)  # so that a wrong position shows
    return model


def prompts(lengths=(4, 9, 6), context=CONTEXT):
    """Tokens of so many, begin and end among them, padded with 0."""
    generator = torch.Generator().manual_seed(1)
    tokens = torch.zeros(len(lengths), context, dtype=torch.long)
    for row, length in zip(tokens, lengths, strict=True):
        row[1 : length - 1] = torch.randint(1, END - 1, (length - 2,), generator=generator)
        row[0], row[length - 1] = END - 1, END
    return tokens


def gradients(model, features_CD):
    weight = torch.linspace(-1, 1, features_CD.numel()).view_as(features_CD)
    found = torch.autograd.grad((features_CD * weight).sum(), list(model.parameters()), allow_unused=True)
    return [torch.zeros(1) if grad is None else grad for grad in found]


@pytest.fixture
def read(request):
    """Returns the lengths that a model's text transformer is given from now on."""

    def hooked(model):
        lengths = []
        tower = getattr(model, "text", model)
        tower.transformer.register_forward_pre_hook(lambda module, given: lengths.append(given[0].shape[1]))
        return lengths

    return hooked


@pytest.mark.parametrize("name", CUTS)
def test_features_and_gradients_are_those_of_the_whole_context(name, read):
    model, tokens = made(*CUTS[name]), prompts()
    lengths = read(model)
    short = cut(model, tokens)
    assert short.shape == (3, 9)
    found, whole = encode_text(model, short), model.encode_text(tokens, normalize=True)
    assert lengths == [9, CONTEXT]
    torch.testing.assert_close(found, whole, rtol=0, atol=1e-6)
    for one, other in zip(gradients(model, found), gradients(model, whole), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=2e-6)
    others = encode_text(model, cut(model, prompts((12, 9, 6))))  # a row does not depend on how long the others are
    torch.testing.assert_close(others[2], encode_text(model, prompts((12, 9, 6))[2:, :6])[0], rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", WHOLE)
def test_a_tower_that_may_look_behind_the_end_gets_every_token(name):
    model, tokens = made(*WHOLE[name]), prompts()
    assert torch.equal(cut(model, tokens), tokens)
    assert torch.equal(Cut(model)(tokens), tokens)
    assert torch.equal(encode_text(model, tokens), model.encode_text(tokens, normalize=True))


def test_why_they_get_every_token():
    """The features of every one of these towers change with what is behind the end."""
    tokens = prompts()
    changed = tokens.clone()
    changed[:, 9:] = 3
    for name, (kind, text) in WHOLE.items():
        with torch.no_grad():
            one, other = (made(kind, text).encode_text(given, normalize=True) for given in (tokens, changed))
        assert torch.allclose(one, other) == (name == "the first token")  # which sees itself alone


class Reversed(TextTransformer):
    def forward(self, text):
        return super().forward(text.flip(1))


class Other(CLIP):
    def encode_text(self, text, normalize=False):
        return super().encode_text(text.flip(1), normalize)


def coca():
    text = TEXT | {"embed_cls": True, "output_tokens": True}
    vision = VIT | {"attentional_pool": True, "attn_pooler_heads": 2, "attn_pooler_queries": 8, "output_tokens": True}
    torch.manual_seed(0)
    return CoCa(embed_dim=32, multimodal_cfg=TEXT | {"attn_pooler_heads": 2}, text_cfg=text, vision_cfg=vision).eval()


def subclassed():
    model = made(CustomTextCLIP, TEXT)
    model.text.__class__ = Reversed
    return model


def masked():
    model = made(CLIP, TEXT)
    model.attn_mask[0, 3] = 0  # the first position sees a later one
    return model


@pytest.mark.parametrize("make", [coca, subclassed, masked, lambda: made(Other, TEXT)])
def test_a_tower_that_is_not_known_gets_every_token(make):
    model, tokens = make(), prompts()
    assert torch.equal(cut(model, tokens), tokens)
    assert torch.equal(encode_text(model, tokens), model.encode_text(tokens, normalize=True))


def test_prompts_as_long_as_the_context_are_encoded_by_the_model_itself(read):
    model, tokens = made(CLIP, TEXT), prompts((4, CONTEXT))
    lengths = read(model)
    assert torch.equal(encode_text(model, cut(model, tokens)), model.encode_text(tokens, normalize=True))
    assert lengths == [CONTEXT] * 2
    assert cut(model, tokens[:0]).shape == (0, CONTEXT)


def test_lengths_are_remembered_and_noticed_when_they_change(monkeypatch):
    model, tokens = made(CLIP, TEXT), prompts()
    cutting, looked = Cut(model), []
    monkeypatch.setattr("condu_ray.vlm.context._length", lambda model, tokens: looked.append(0) or len(looked))
    assert [cutting(tokens).shape[1] for _ in range(3)] == [1, 1, 1]
    tokens[0] = prompts((11,))[0]
    assert [cutting(tokens).shape[1] for _ in range(2)] == [2, 2]
    for _ in range(3 * KEPT):
        cutting(prompts())
    assert len(looked) == 2 + 3 * KEPT
    assert len(cutting._seen) == KEPT


def test_whoever_encodes_prompts_cuts_them(read):
    model, tokens = made(CLIP, TEXT), prompts()
    lengths = read(model)
    ClipClassifier(model)(torch.zeros(1, 3, 16, 16), tokens)
    table = {"a b": 5, "a c": 8, "the b": 3, "the c": 4}
    tokenizer = lambda texts: torch.cat([prompts((table[text],)) for text in texts])  # noqa: E731
    found = text_features(model, tokenizer, ["b", "c"], ["a {}", "the {}"])
    assert lengths == [9, 8, 4]
    parts = [model.encode_text(tokenizer(texts), normalize=True) for texts in (["a b", "a c"], ["the b", "the c"])]
    torch.testing.assert_close(found, nn.functional.normalize(sum(parts), dim=-1), rtol=0, atol=1e-6)


def test_adapters_and_checkpointing_see_cut_prompts_too():
    model, tokens = made(CLIP, TEXT), prompts()
    block = model.transformer.resblocks[1].mlp.c_fc
    adapter = LowRank(torch.randn(2, 32), torch.randn(128, 2), 0.1)
    nn.utils.parametrize.register_parametrization(block, "weight", adapter)
    expected = model.encode_text(tokens, normalize=True)
    model.set_grad_checkpointing()
    found = encode_text(model, cut(model, tokens))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    for one, other in zip(gradients(adapter, found), gradients(adapter, expected), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=2e-6)


def test_every_architecture_of_open_clip_is_known_or_left_alone():
    """What is cut of open_clip's own configurations: a causal tower that pools at the end, by its configuration."""
    for name in ("ViT-B-16", "ViT-B-32-quickgelu", "ViT-H-14", "RN50", "ViT-B-16-SigLIP", "coca_ViT-B-32"):
        config = copy.deepcopy(open_clip.get_model_config(name))
        text = config["text_cfg"] = config["text_cfg"] | {"layers": 1, "vocab_size": WORDS, "width": 64, "heads": 1}
        text.pop("hf_tokenizer_name", None)
        causal = not text.get("no_causal_mask") and text.get("pool_type", "argmax") == "argmax"
        with torch.device("meta"):
            kind = CoCa if "multimodal_cfg" in config else CustomTextCLIP if config.get("custom_text") else CLIP
            config.pop("custom_text", None)
            model = kind(**config)
        assert (_tower(model) is not None) == (causal and not text.get("embed_cls")), name
