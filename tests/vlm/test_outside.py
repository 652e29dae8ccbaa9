"""Models that were fine-tuned elsewhere, as deltas to theta0, in every form; what was not is refused by name."""

import json

import pytest
import torch
from safetensors.torch import save_file

from condu_ray.vlm.model import BackboneError, backbone_spec, load_backbone
from condu_ray.vlm.outside import outside_delta
from tests.vlm.test_checkpoint import to_hugging_face

BLOCK = "visual.transformer.resblocks.0"


@pytest.fixture
def backbone(small_backbone):
    return load_backbone(backbone_spec(pretrained=str(small_backbone)))


@pytest.fixture
def tuned(backbone):
    """A state dict some way from theta0."""
    generator = torch.Generator().manual_seed(1)
    moved = {name: tensor.clone() for name, tensor in backbone.model.state_dict().items()}
    for name in backbone.trainable:
        moved[name] += 0.02 * moved[name].std() * torch.randn(moved[name].shape, generator=generator)
    return moved


def save(state, path):
    torch.save(state, path)
    return path


@pytest.mark.parametrize("form", ["open_clip", "OpenAI", "several workers", "safetensors", "Hugging Face", "half"])
def test_a_checkpoint_in_any_form_is_the_same_delta(form, backbone, tuned, tmp_path):
    path = tmp_path / ("model.safetensors" if form == "safetensors" else "model.pt")
    extra = {name: torch.tensor(12) for name in ("input_resolution", "context_length", "vocab_size")}
    if form == "safetensors":
        save_file(tuned, path)
    else:
        save(
            {
                "open_clip": lambda: tuned,
                "OpenAI": lambda: tuned | extra,
                "several workers": lambda: {"state_dict": {f"module.{name}": one for name, one in tuned.items()}},
                "Hugging Face": lambda: to_hugging_face(tuned),
                "half": lambda: {name: tensor.half() for name, tensor in tuned.items()},
            }[form](),
            path,
        )
    found = outside_delta(backbone, path)
    theta0 = backbone.snapshot()
    assert found.delta.keys() == theta0.keys()
    for name, tensor in found.delta.items():
        wanted = tuned[name] - theta0[name]
        torch.testing.assert_close(tensor, wanted, rtol=0, atol=2e-3 if form == "half" else 0)
    assert 0.005 < found.relative["image"] < 0.05
    assert all(torch.equal(tensor, theta0[name]) for name, tensor in backbone.snapshot().items())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_what_half_precision_alone_has_changed_is_no_difference(dtype, backbone, tuned, tmp_path):
    """A text tower that was left alone, in a file of half precision."""
    before = backbone.model.state_dict()
    mixed = {name: tuned[name] if name.startswith("visual.") else before[name] for name in before}
    found = outside_delta(backbone, save({name: one.to(dtype) for name, one in mixed.items()}, tmp_path / "a.pt"))
    assert found.relative["text"] == 0
    assert not any(tensor.any() for name, tensor in found.delta.items() if not name.startswith("visual."))
    theta0 = backbone.snapshot()
    for name in (name for name in found.delta if name.startswith("visual.")):
        near = torch.finfo(dtype).eps * mixed[name].abs().max().item()
        torch.testing.assert_close(found.delta[name], tuned[name] - theta0[name], rtol=0, atol=near)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_theta0_in_half_precision_is_theta0(dtype, backbone, tmp_path):
    copy = {name: tensor.to(dtype) for name, tensor in backbone.model.state_dict().items()}
    with pytest.raises(BackboneError, match="is theta0 itself"):
        outside_delta(backbone, save(copy, tmp_path / "a.pt"))


def test_what_a_delta_has_not_is_told_of(backbone, tuned, tmp_path):
    tuned["logit_scale"] = tuned["logit_scale"] + 0.5
    [note] = [one for one in outside_delta(backbone, save(tuned, tmp_path / "a.pt")).notes if "logit_scale" in one]
    assert "which is used" in note


def other(small_backbone):
    """Another model of the same architecture."""
    torch.manual_seed(7)
    model = load_backbone(backbone_spec(pretrained=str(small_backbone))).model
    return {
        name: torch.randn_like(tensor) * tensor.std() if tensor.is_floating_point() and tensor.numel() > 1 else tensor
        for name, tensor in model.state_dict().items()
        if name != "attn_mask"
    }


def test_what_comes_from_another_model_is_refused(backbone, small_backbone, tuned, tmp_path):
    strange = other(small_backbone)
    for state, tower in (
        (strange, "image"),
        (tuned | {name: one for name, one in strange.items() if name.startswith("visual.")}, "image"),
        (tuned | {name: one for name, one in strange.items() if not name.startswith("visual.")}, "text"),
    ):
        with pytest.raises(BackboneError, match=rf"a\.pt: its {tower} tower is 1\.\d+ times .* from another model"):
            outside_delta(backbone, save(state, tmp_path / "a.pt"))


def nan(state):
    return state | {"visual.proj": torch.full_like(state["visual.proj"], torch.nan)}


def wider(state):
    return state | {"visual.positional_embedding": torch.zeros(10, 32)}


def longer(state):
    return state | {"positional_embedding": torch.zeros(20, 32)}


REFUSED = {
    "theta0 itself": (lambda tuned, theta0: theta0, ["theta0 itself", "nothing to merge"]),
    "NaN": (lambda tuned, theta0: nan(tuned), ["visual.proj", "NaN"]),
    "a tensor missing": (
        lambda tuned, theta0: {name: one for name, one in tuned.items() if name != "visual.proj"},
        ["1 of", "missing", "visual.proj"],
    ),
    "another size": (lambda tuned, theta0: wider(tuned), ["was resized", "another image size"]),
    "another size by several workers": (
        lambda tuned, theta0: {"state_dict": {f"module.{name}": one for name, one in wider(tuned).items()}},
        ["module.visual.positional_embedding [10, 32] was resized", "another image size"],
    ),
    "another context by several workers": (
        lambda tuned, theta0: {f"module.{name}": one for name, one in longer(tuned).items()},
        ["module.positional_embedding [20, 32] was resized", "context length"],
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_does_not_fit_is_named(kind, backbone, tuned, tmp_path):
    make, words = REFUSED[kind]
    theta0 = {name: tensor.clone() for name, tensor in backbone.model.state_dict().items()}
    with pytest.raises(BackboneError) as caught:
        outside_delta(backbone, save(make(tuned, theta0), tmp_path / "a.pt"))
    assert [word for word in (*words, "a.pt") if word not in str(caught.value)] == []


def adapter(folder, factors, **said):
    """As PEFT's save_pretrained writes one."""
    folder.mkdir()
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 8, "target_modules": ["c_fc"], "bias": "none"}
    (folder / "adapter_config.json").write_text(json.dumps(config | said))
    named = {f"base_model.model.{module}.lora_{part}.weight": one for (module, part), one in factors.items()}
    save_file(named, folder / "adapter_model.safetensors")
    return folder


def factors(module, out, inside, rank=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    a, b = torch.randn(rank, inside, generator=generator), torch.randn(out, rank, generator=generator)
    return {(module, "A"): 0.05 * a, (module, "B"): 0.05 * b}


SCALES = {
    "plain": ({}, 4.0),
    "rank-stabilised": ({"use_rslora": True}, 8 / 2**0.5),
    "an alpha of its own": ({"alpha_pattern": {"resblocks.0.mlp.c_fc": 2}}, 1.0),
    "an alpha of several modules": ({"alpha_pattern": {"c_proj|c_fc": 2}}, 1.0),
    "a fresh B of zeros": ({"init_lora_weights": "gaussian"}, 4.0),
}


@pytest.mark.parametrize("kind", SCALES)
def test_an_adapter_of_pefts_is_scale_times_b_a(kind, backbone, tmp_path):
    said, scale = SCALES[kind]
    pair = factors(f"{BLOCK}.mlp.c_fc", 128, 32)
    found = outside_delta(backbone, adapter(tmp_path / "lora", pair, **said)).delta
    a, b = pair.values()
    torch.testing.assert_close(found[f"{BLOCK}.mlp.c_fc.weight"], scale * b @ a)
    assert [name for name, tensor in found.items() if tensor.any()] == [f"{BLOCK}.mlp.c_fc.weight"]
    assert found.keys() == backbone.trainable.keys()


def test_adapted_attention_is_one_tensor_in_open_clip(backbone, tmp_path):
    """Of torch's MultiheadAttention as PEFT wraps it, and of Hugging Face's query and value."""
    own = factors(f"{BLOCK}.attn", 96, 32) | factors(f"{BLOCK}.attn.base_layer.out_proj", 32, 32, seed=1)
    found = outside_delta(backbone, adapter(tmp_path / "own", own)).delta
    changed = {name for name, tensor in found.items() if tensor.any()}
    assert changed == {f"{BLOCK}.attn.in_proj_weight", f"{BLOCK}.attn.out_proj.weight"}
    place = "vision_model.encoder.layers.0.self_attn"
    query, value = factors(f"{place}.q_proj", 32, 32), factors(f"{place}.v_proj", 32, 32, seed=1)
    found = outside_delta(backbone, adapter(tmp_path / "other", query | value)).delta
    parts = found[f"{BLOCK}.attn.in_proj_weight"].chunk(3)
    torch.testing.assert_close(parts[0], 4 * query[f"{place}.q_proj", "B"] @ query[f"{place}.q_proj", "A"])
    torch.testing.assert_close(parts[2], 4 * value[f"{place}.v_proj", "B"] @ value[f"{place}.v_proj", "A"])
    assert not parts[1].any()


@pytest.mark.parametrize("base", [None, "", "openai/clip-vit-base-patch16", "own"])
def test_which_model_an_adapter_was_trained_on_is_said(base, backbone, tmp_path):
    """Its factors fit any weights of these shapes, so that nothing else would tell."""
    base = backbone.spec.name if base == "own" else base
    pair = factors(f"{BLOCK}.mlp.c_fc", 128, 32)
    found = outside_delta(backbone, adapter(tmp_path / "lora", pair, base_model_name_or_path=base))
    told = [
        note for note in found.notes if "was trained on openai/clip-vit-base-patch16, as its adapter_config" in note
    ]
    assert len(told) == len(found.notes) == (base == "openai/clip-vit-base-patch16")


PEFTS = {"init_lora_weights": True, "peft_version": "0.21.2"}  # of what PEFT itself writes


@pytest.mark.parametrize("version", ["0.21.2", None])
def test_an_out_projection_that_peft_adds_twice_is_added_twice(version, backbone, tmp_path):
    """In forward passes and in `merge_and_unload` of PEFT 0.15 to 0.21.2, seen; of a linear layer it is added once."""
    pair = factors(f"{BLOCK}.attn.base_layer.out_proj", 32, 32)
    linear = factors("transformer.resblocks.0.attn.out_proj", 32, 32, seed=1)
    written = adapter(tmp_path / "a", pair | linear, **(PEFTS | {"peft_version": version}))
    found = outside_delta(backbone, written)
    for factor, name, times in ((pair, BLOCK, 2), (linear, "transformer.resblocks.0", 1)):
        a, b = factor.values()
        torch.testing.assert_close(found.delta[f"{name}.attn.out_proj.weight"], times * 4 * b @ a)
    [note] = found.notes
    assert "added twice" in note
    a, b = pair.values()
    ours = outside_delta(backbone, adapter(tmp_path / "another program", pair)).delta
    torch.testing.assert_close(ours[f"{BLOCK}.attn.out_proj.weight"], 4 * b @ a)


def test_an_alpha_of_attentions_is_that_of_their_out_projection_too(backbone, tmp_path):
    pair = factors(f"{BLOCK}.attn", 96, 32) | factors(f"{BLOCK}.attn.base_layer.out_proj", 32, 32, seed=1)
    found = outside_delta(backbone, adapter(tmp_path / "a", pair, alpha_pattern={"attn": 2, "out_proj": 100})).delta
    b, a = (pair[f"{BLOCK}.attn.base_layer.out_proj", part] for part in "BA")
    torch.testing.assert_close(found[f"{BLOCK}.attn.out_proj.weight"], b @ a)


C_FC = factors(f"{BLOCK}.mlp.c_fc", 128, 32)
UNFIT = {
    "another method": (C_FC, {"peft_type": "IA3"}, ["is IA3", "LoRA alone"]),
    "DoRA": (C_FC, {"use_dora": True}, ["has DoRA", "merge it"]),
    "aLoRA": (C_FC, {"alora_invocation_tokens": [5]}, ["has tokens that switch it on"]),
    "whole modules": (C_FC, {"modules_to_save": ["proj"]}, ["whole modules"]),
    "PiSSA": (C_FC, {"init_lora_weights": "pissa_niter_4"}, ["pissa_niter_4", "path_initial_model", "merge it"]),
    "OLoRA": (C_FC, {"init_lora_weights": "olora"}, ["olora", "not what was learned"]),
    "a later PEFT's attention": (
        factors(f"{BLOCK}.attn.base_layer.out_proj", 32, 32),
        PEFTS | {"peft_version": "0.22.0.dev0"},
        ["PEFT 0.22.0.dev0", "add twice", "merge_and_unload"],
    ),
    "half a pair": ({(f"{BLOCK}.mlp.c_fc", "A"): torch.zeros(2, 32)}, {}, ["has not two matrices"]),
    "a module that is not there": (factors("model.layers.0.q_proj", 8, 8), {}, ["adapts model.layers.0.q_proj.weight"]),
    "another width": (factors(f"{BLOCK}.mlp.c_fc", 64, 32), {}, ["[64, 32], and it is [128, 32]"]),
    "an embedding's": ({("token_embedding.lora_embedding_A", "A"): torch.zeros(2, 2)}, {}, ["has not two matrices"]),
}


@pytest.mark.parametrize("kind", UNFIT)
def test_adapters_that_are_more_or_another_models_are_refused(kind, backbone, tmp_path):
    pair, said, words = UNFIT[kind]
    with pytest.raises(BackboneError) as caught:
        outside_delta(backbone, adapter(tmp_path / "lora", pair, **said))
    assert [word for word in words if word not in str(caught.value)] == []


def test_a_folder_that_is_no_adapter_is_refused(backbone, tmp_path):
    with pytest.raises(BackboneError, match=r"folder without adapter_config\.json; give a file of weights, or"):
        outside_delta(backbone, tmp_path)
    for name in ("model.safetensors", "config.json"):  # as Hugging Face's save_pretrained leaves one
        (tmp_path / name).touch()
    with pytest.raises(BackboneError, match=r"give a file of weights in it, such as .*/model\.safetensors, or"):
        outside_delta(backbone, tmp_path)
