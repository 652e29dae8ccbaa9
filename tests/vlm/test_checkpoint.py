import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from condu_ray.vlm.checkpoint import load_weights
from condu_ray.vlm.model import CONFIG, MERGES, WEIGHTS, BackboneError, backbone_spec, load_backbone

HUGGING_FACE = {
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.proj": "visual_projection.weight",
    "text_projection": "text_projection.weight",
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "logit_scale": "logit_scale",
}
NORMS = {
    "visual.ln_pre": "vision_model.pre_layrnorm",
    "visual.ln_post": "vision_model.post_layernorm",
    "ln_final": "text_model.final_layer_norm",
}
BLOCK = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
    "attn.out_proj": "self_attn.out_proj",
}


def to_hugging_face(tensors):
    """A small CLIP as transformers' CLIPModel stores it."""
    names = dict(HUGGING_FACE)
    names |= {f"{old}.{kind}": f"{new}.{kind}" for old, new in NORMS.items() for kind in ("weight", "bias")}
    found = {"text_model.embeddings.position_ids": torch.arange(12)[None]}
    for tower, place in (("visual.transformer", "vision_model"), ("transformer", "text_model")):
        old, new = f"{tower}.resblocks.0", f"{place}.encoder.layers.0"
        for kind in ("weight", "bias"):
            names |= {f"{old}.{one}.{kind}": f"{new}.{other}.{kind}" for one, other in BLOCK.items()}
            for letter, part in zip("qkv", tensors[f"{old}.attn.in_proj_{kind}"].chunk(3), strict=True):
                found[f"{new}.self_attn.{letter}_proj.{kind}"] = part
    for old, new in names.items():
        found[new] = tensors[old].T if old in ("visual.proj", "text_projection") else tensors[old]
    return {name: tensor.contiguous() for name, tensor in found.items()}


def before(prefix):
    return lambda tensors: {prefix + name: tensor for name, tensor in tensors.items()}


FITTING = {
    "as it is": (lambda tensors: tensors, ""),
    "compiled": (before("_orig_mod."), "_orig_mod. was taken off"),
    "of several workers": (before("module."), "module. was taken off"),
    "of Lightning": (before("model."), "model. was taken off"),
    "all of them": (before("model.module._orig_mod."), "_orig_mod. was taken off"),
    "a part compiled": (
        lambda tensors: {name.replace("visual.", "visual._orig_mod."): tensor for name, tensor in tensors.items()},
        "_orig_mod. was taken off",
    ),
    "of OpenAI's archive": (
        lambda tensors: tensors | {key: torch.tensor(1) for key in ("context_length", "vocab_size")}, ""
    ),
    "scale as a vector": (lambda tensors: tensors | {"logit_scale": tensors["logit_scale"].reshape(1)}, ""),
    "of Hugging Face": (to_hugging_face, "Hugging Face's names"),
    "of Hugging Face, wrapped": (lambda tensors: before("model.")(to_hugging_face(tensors)), "Hugging Face's names"),
    "in double precision": (lambda tensors: {name: tensor.double() for name, tensor in tensors.items()}, ""),
}  # fmt: skip
WEIGHT = "transformer.resblocks.0.mlp.c_fc.weight"
REFUSED = {
    "quantised to int8": (
        lambda tensors: tensors | {WEIGHT: (tensors[WEIGHT] * 10).to(torch.int8)}, ["1 of", "quantised", WEIGHT, "I8"]
    ),
    "quantised to float8": (
        lambda tensors: tensors | {WEIGHT: tensors[WEIGHT].to(torch.float8_e4m3fn)}, ["quantised", WEIGHT, "F8_E4M3"]
    ),
    "quantised and wrapped": (
        lambda tensors: before("module.")({name: tensor.to(torch.uint8) for name, tensor in tensors.items()}),
        ["quantised", "module.", "U8"],
    ),
    "a tensor missing": (
        lambda tensors: {name: tensor for name, tensor in tensors.items() if name != WEIGHT},
        ["cannot be loaded", "1 of", "missing", WEIGHT],
    ),
    "a tensor too many": (lambda tensors: tensors | {"head.weight": torch.zeros(2)}, ["1 are none", "head.weight"]),
    "another shape": (
        lambda tensors: tensors | {"text_projection": torch.zeros(3, 3)},
        ["1 have another shape", "text_projection [3, 3], not [32, 16]"],
    ),
    "another program's adapters": (
        lambda tensors: {f"base.{name}.lora_A.weight": tensor for name, tensor in tensors.items()}, ["adapters"]
    ),
    "a text tower of its own, and wrapped in part": (
        lambda tensors: {f"text.{name}" if "visual" not in name else name: t for name, t in tensors.items()},
        ["CustomTextCLIP", "name its --model"],
    ),
    "Hugging Face's of another size": (
        lambda tensors: to_hugging_face(tensors) | {"text_projection.weight": torch.zeros(3, 3)}, ["Hugging Face"]
    ),
    "thousands of long names": (
        lambda tensors: {f"{number}{'x' * 300}": torch.zeros(1) for number in range(3000)}, ["3000 are none", "xxx..."]
    ),
}  # fmt: skip


@pytest.fixture
def stored(small_backbone, tmp_path):
    """Writes a copy of the small backbone whose weights are changed, and returns its folder."""

    def write(change):
        for name in (CONFIG, MERGES):
            (tmp_path / name).write_bytes((small_backbone / name).read_bytes())
        config = json.loads((tmp_path / CONFIG).read_text())
        config["preprocess_cfg"] = {"mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic"}
        config["preprocess_cfg"]["resize_mode"] = "shortest"
        (tmp_path / CONFIG).write_text(json.dumps(config))
        save_file(change(load_file(small_backbone / WEIGHTS)), tmp_path / WEIGHTS)
        return backbone_spec(pretrained=str(tmp_path))

    return write


@pytest.mark.parametrize(("change", "note"), FITTING.values(), ids=FITTING)
def test_what_can_be_put_right_is(stored, small_backbone, change, note):
    backbone = load_backbone(stored(change))
    held = load_file(small_backbone / WEIGHTS)
    assert all(torch.equal(tensor, held[name].float()) for name, tensor in backbone.model.state_dict().items())
    assert note in "".join(backbone.notes)
    assert bool(note) == bool(backbone.notes)


@pytest.mark.parametrize(("change", "words"), REFUSED.values(), ids=REFUSED)
def test_what_does_not_fit_is_described_in_a_sentence(stored, change, words):
    spec = stored(change)
    with pytest.raises(BackboneError) as caught:
        load_backbone(spec)
    message = str(caught.value)
    assert [word for word in words if word not in message] == []
    assert str(spec.file) in message
    assert len(message) < 800


@pytest.mark.parametrize(
    ("name", "count"), [("model-00001-of-00002.safetensors", 2), ("pytorch_model-00003-of-00010.bin", 10)]
)
def test_a_part_of_a_model_is_told_from_another_architecture(small_backbone, tmp_path, name, count):
    model = load_backbone(backbone_spec(pretrained=str(small_backbone))).model
    part = dict(list(to_hugging_face(model.state_dict()).items())[:9])
    (save_file if name.endswith("safetensors") else torch.save)(part, tmp_path / name)
    with pytest.raises(BackboneError) as caught:
        load_weights(model, tmp_path / name, "small")
    for words in (name, f"one of the {count} files", "with 9 tensors"):
        assert words in str(caught.value)
    assert "architecture" not in str(caught.value)


def test_a_resized_position_embedding_is_a_note(stored):
    name = "visual.positional_embedding"

    def wider(tensors):
        return {key: tensor.float() for key, tensor in tensors.items()} | {name: torch.zeros(10, 32)}

    backbone = load_backbone(stored(wider))
    assert "visual.positional_embedding [10, 32] was resized to the model's [5, 32]" in backbone.notes[0]
