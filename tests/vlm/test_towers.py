"""Every kind of tower that open_clip has: what training leaves of theta0, and what a delta is worth."""

import copy
import json
import shutil
from functools import cache

import open_clip
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from condu_ray.benchmark import load_task
from condu_ray.config import Experiment
from condu_ray.learn.retry import local_stream
from condu_ray.methods import get
from condu_ray.methods.training import train_expert
from condu_ray.vlm.model import CONFIG, EMBEDDED, MERGES, WEIGHTS, backbone_spec, load_backbone, set_weights
from condu_ray.vlm.towers import compiling, keep_in_bounds, recomputing, train_mode

VIT = {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16}
TEXT = {"context_length": 12, "vocab_size": 4096, "width": 32, "heads": 2, "layers": 1}
CUSTOM = {"custom_text": True}


def timm(name, image_size=64, **rest):
    return {"timm_model_name": name, "timm_pool": "avg", "image_size": image_size, **rest}


KINDS = {
    "vision transformer": (VIT, TEXT, {}),
    "average pool, no causal mask": (VIT | {"pool_type": "avg"}, TEXT | {"no_causal_mask": True}, {}),
    "fixed positions": (VIT | {"pos_embed_type": "sin_cos_2d", "pool_type": "avg"}, TEXT, {}),
    "patch dropout": (VIT | {"patch_dropout": 0.5, "patch_size": 8}, TEXT, {}),
    "ModifiedResNet": (VIT | {"layers": [1, 1, 1, 1], "width": 8, "head_width": 8}, TEXT, {}),
    "custom text": (VIT, TEXT | {"pool_type": "last", "proj_bias": True}, CUSTOM),
    "SigLIP": (
        timm("test_vit", 160, timm_pool="map", timm_proj="none"),
        TEXT | {"no_causal_mask": True, "proj_bias": True, "pool_type": "last"},
        CUSTOM | {"init_logit_bias": -10, "embed_dim": 64},
    ),
    "ConvNeXt": (timm("test_convnext", timm_proj="mlp", timm_drop=0.1, timm_drop_path=0.1), TEXT, {}),
    "ResNet of timm": (timm("test_resnet"), TEXT, {}),
    "EfficientNet": (timm("test_efficientnet"), TEXT, {}),
    "ViTamin's kind": (timm("test_maxvit", 160), TEXT, CUSTOM),
    "MobileCLIP": (timm("fastvit_t8", timm_proj=None), TEXT, CUSTOM),
    "CoCa": (
        VIT | {"attentional_pool": True, "attn_pooler_heads": 2, "attn_pooler_queries": 8, "output_tokens": True},
        TEXT | {"embed_cls": True, "output_tokens": True},
        CUSTOM | {"multimodal_cfg": TEXT | {"attn_pooler_heads": 2}},
    ),
}  # fmt: skip
BUFFERS = {"ModifiedResNet", "ResNet of timm", "EfficientNet", "ViTamin's kind", "MobileCLIP"}
"""Kinds that keep statistics of what they see."""


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def specs(tmp_path_factory):
    """Of a kind a backbone of random weights, made once."""

    @cache
    def made(kind):
        folder = tmp_path_factory.mktemp("kind")
        vision, text, rest = copy.deepcopy(KINDS[kind])
        config = {"embed_dim": 32, "vision_cfg": vision, "text_cfg": text, **rest}
        prepared = {"mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic", "resize_mode": "shortest"}
        (folder / CONFIG).write_text(json.dumps({"model_cfg": config, "preprocess_cfg": prepared}))
        (folder / MERGES).write_bytes((EMBEDDED / MERGES).read_bytes())
        torch.manual_seed(0)
        model = open_clip.create_model(f"local-dir:{folder}", load_weights=False)
        for layer in model.modules():
            for name, buffer in layer.named_buffers(recurse=False):  # as if they had seen images
                if name.startswith("running_"):
                    buffer.uniform_(0.5, 2)
        if kind == "CoCa":
            nn.init.zeros_(model.text_decoder.text_projection)  # open_clip leaves what lay in memory
        save_file(model.state_dict(), folder / WEIGHTS)
        return backbone_spec(pretrained=str(folder))

    return made


@pytest.fixture
def spec(kind, specs):
    return specs(kind)


def features(backbone):
    generator = torch.Generator().manual_seed(0)
    images, tokens = (
        torch.randn(3, 3, *backbone.spec.image_size, generator=generator),
        backbone.tokenizer(["red", "a green door"]),
    )
    with torch.no_grad():
        return backbone.model.encode_image(images), backbone.model.encode_text(tokens)


def train(backbone, task_data, **settings):
    config = Experiment.model_validate(
        {"training": {"steps": 2, "batch_size": 4, "lr": 1e-3, "precision": "fp32", **settings}}
    )
    task, theta0 = load_task(task_data / "walls"), backbone.snapshot()
    stream = local_stream(config, task, backbone.spec.preprocess)
    trained = train_expert(get("individual", config), task, stream, backbone=backbone, theta0=theta0, precision="fp32")
    return theta0, trained.delta


def test_theta0_is_theta0_again_and_what_is_served_is_what_was_trained(kind, spec, task_data):
    backbone, other = load_backbone(spec), load_backbone(spec)
    before = {name: tensor.clone() for name, tensor in backbone.model.state_dict().items()}
    assert any("running" in name for name in before) == (kind in BUFFERS)
    untouched = features(other)
    theta0, delta = train(backbone, task_data)
    trained = features(backbone)
    set_weights(other, theta0, delta)
    served = features(other)
    for one, two in zip(trained, served, strict=True):
        assert (one - two).norm() <= 1e-5 * one.norm()
    set_weights(backbone, theta0, None)
    assert all(torch.equal(tensor, before[name]) for name, tensor in backbone.model.state_dict().items())
    assert all(torch.equal(one, two) for one, two in zip(features(backbone), untouched, strict=True))


def test_every_position_of_a_delta_is_trained(spec, task_data):
    backbone = load_backbone(spec)
    _, delta = train(backbone, task_data, steps=1, label_smoothing=0.0, augment=False)
    named = dict(backbone.model.named_parameters())
    assert delta.keys() == {name for name, parameter in named.items() if parameter.requires_grad}
    assert [name for name in delta if named[name].grad is None] == []
    assert [name for name in backbone.frozen if name in named and named[name].grad is not None] == []


def test_what_is_frozen(kind, spec):
    backbone = load_backbone(spec)
    named = {name for name, _ in backbone.model.named_parameters()}
    frozen = {name for name in backbone.frozen & named if not name.startswith("logit_")}
    wanted = {
        "CoCa": {name for name in named if name.startswith("text_decoder.")},
        "fixed positions": {"visual.positional_embedding"},
    }
    assert frozen == wanted.get(kind, set())


@pytest.mark.parametrize("channels", [1, 3, 15])
@pytest.mark.parametrize("stride", [2, 4])
def test_strided_convolutions_of_few_channels_stay_in_bounds(channels, stride):
    convolution, seen = nn.Conv2d(channels, 48, 1, stride, bias=False), []
    keep_in_bounds(nn.Sequential(convolution))
    convolution.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0].stride()))
    images = torch.randn(4, 64, 64, channels).permute(0, 3, 1, 2)  # as pixels lie in memory
    out = convolution(images)
    slope = torch.randn_like(out)
    (out * slope).sum().backward()
    assert seen == [(channels * 64 * 64, 64 * 64, 64, 1)]
    wanted = torch.einsum("bohw,bchw->oc", slope.double(), images[:, :, ::stride, ::stride].double())
    found = convolution.weight.grad.double().view(48, channels)
    assert (found - wanted).abs().max() <= 1e-5 * wanted.abs().max()


@pytest.mark.parametrize("kind", ["MobileCLIP"], indirect=True)
def test_a_backbone_with_such_convolutions_is_loaded_so(spec):
    layers = {name for name, layer in load_backbone(spec).model.named_modules() if layer._forward_pre_hooks}
    assert "visual.trunk.stem.0.conv_scale.conv" in layers


def test_other_convolutions_are_left_alone():
    model = nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.Conv2d(3, 8, 1), nn.Conv2d(16, 8, 1, 2), nn.Conv2d(3, 8, 4, 4))
    keep_in_bounds(model)
    assert all(not layer._forward_pre_hooks for layer in model)


@pytest.mark.parametrize(
    "kind", ["vision transformer", "patch dropout", "ModifiedResNet", "custom text", "ConvNeXt", "CoCa"], indirect=True
)
def test_activations_that_are_computed_again_change_no_bit(kind, spec, task_data):
    runs, deltas = [], []
    for again in (False, True):
        backbone = load_backbone(spec)
        tower = getattr(backbone.model, "text", backbone.model)
        ran = []
        tower.transformer.resblocks[0].register_forward_pre_hook(
            lambda *_, ran=ran: ran.append(torch.is_grad_enabled())
        )
        deltas.append(train(backbone, task_data, recompute=again)[1])
        runs.append(len(ran))
        del ran[:]
        backbone.model.train().encode_text(backbone.tokenizer(["red"])).sum().backward()
        assert len(ran) == 1  # it is off again
    assert runs == [2, 4]
    assert all(torch.equal(tensor, deltas[1][name]) for name, tensor in deltas[0].items())


COMPILED = [(kind, "eager") for kind in ("vision transformer", "custom text")]
COMPILED += [
    pytest.param(kind, "aot_eager", marks=pytest.mark.long)  # whose gradients are compiled too
    for kind in ("vision transformer", "custom text", "ModifiedResNet", "ConvNeXt")
]


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "backend"), COMPILED, indirect=["kind"])
def test_compiled_blocks_have_the_gradients_of_the_others_and_are_what_they_were_after(kind, spec, backend):
    backbone = load_backbone(spec)
    images, tokens = torch.randn(3, 3, *spec.image_size), backbone.tokenizer(["red", "a green door"])
    seen = kind != "custom text"  # whose images go through the same tower as the vision transformer's
    torch._dynamo.reset()
    compiled = torch._dynamo.utils.counters["stats"]

    def gradients():
        backbone.model.zero_grad()
        image = backbone.model.encode_image(images).sum() if seen else 0
        (image + backbone.model.encode_text(tokens).sum()).backward()
        return {name: one.grad.clone() for name, one in backbone.model.named_parameters() if one.grad is not None}

    alone, counts = gradients(), [compiled["unique_graphs"]]
    for _ in range(2):
        with compiling(backbone.model, True, backend=backend):
            found = gradients()
        counts.append(compiled["unique_graphs"])
        assert found.keys() == alone.keys()
        for name, tensor in alone.items():
            assert (found[name] - tensor).norm() <= 1e-5 * tensor.norm() + 1e-7, name
    assert counts[0] < counts[1] == counts[2]  # the second time nothing is compiled
    assert all(torch.equal(one, alone[name]) for name, one in gradients().items())
    assert compiled["unique_graphs"] == counts[2]  # nor is it outside


@pytest.mark.parametrize("kind", ["vision transformer"], indirect=True)
def test_without_a_compiler_it_is_said_what_to_do(kind, spec, task_data, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(RuntimeError, match=r"--training.compile true needs a C\+\+ compiler, and \S+ has no no-such-"):
        train(load_backbone(spec), task_data, compile=True)


@pytest.mark.long  # inductor compiles for half a minute and more
@pytest.mark.parametrize("more", [{}, {"recompute": True}, {"accumulate": 2}], ids=["", "recompute", "accumulate"])
@pytest.mark.parametrize("kind", ["vision transformer"], indirect=True)
def test_compiled_training_learns_the_same(kind, spec, task_data, more):
    if shutil.which("g++") is None:
        pytest.skip("no C++ compiler")
    deltas = [train(load_backbone(spec), task_data, compile=on, **more)[1] for on in (False, True, True)]
    assert all(torch.equal(tensor, deltas[2][name]) for name, tensor in deltas[1].items())  # to the bit, again
    far = sum(float((tensor - deltas[1][name]).square().sum()) for name, tensor in deltas[0].items())
    size = sum(float(tensor.square().sum()) for tensor in deltas[0].values())
    assert far < 1e-3 * size


def test_a_tower_that_only_turns_it_on_is_turned_off():
    class Wrapped(nn.Module):
        on = False

        def set_grad_checkpointing(self, enable=True):
            self.on = True

        def gradient_checkpointing_disable(self):
            self.on = False

    model = Wrapped()
    with recomputing(model, False):
        assert not model.on
    with recomputing(model, True):
        assert model.on
    assert not model.on


def test_training_mode_leaves_dropout_as_it_is():
    norm = nn.BatchNorm2d(2)
    norm.drop = nn.Dropout()  # timm's norm layers hold what comes after them
    kept = nn.InstanceNorm2d(2, track_running_stats=True)
    model = nn.Sequential(norm, kept, nn.Dropout(), nn.BatchNorm2d(2, track_running_stats=False), nn.LayerNorm(2))
    model.eval()
    train_mode(model)
    assert [layer.training for layer in model] == [False, False, True, True, True]
    assert norm.drop.training
