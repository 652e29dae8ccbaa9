import copy
import math

import open_clip
import pytest
import torch
from torch.nn.utils import parametrize

from condu_ray.merging import fingerprint
from condu_ray.vlm.lora import LoraError, attach, materialise
from condu_ray.vlm.model import Backbone, BackboneSpec, backbone_spec, load_backbone, set_weights

VISION = {"image_size": 16, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8}
TEXT = {"context_length": 8, "vocab_size": 64, "width": 32, "heads": 2, "layers": 2}
CUSTOM_BLOCKS = {"qk_norm": True, "scale_fc": True}
BOTH = ("mlp", "attention")


def backbone_of(kind=open_clip.model.CLIP, vision=(), text=()):
    torch.manual_seed(0)
    model = kind(embed_dim=16, vision_cfg=VISION | dict(vision), text_cfg=TEXT | dict(text))
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name not in ("logit_scale", "logit_bias"))
    return Backbone(BackboneSpec(kind.__name__, None, {}, {}), model.eval(), None, fingerprint(model.state_dict()))


MODELS = {
    "CLIP": backbone_of,
    "CustomTextCLIP": lambda: backbone_of(open_clip.model.CustomTextCLIP),
    "custom blocks": lambda: backbone_of(vision=CUSTOM_BLOCKS, text=CUSTOM_BLOCKS),
    "tiny-clip": lambda: load_backbone(backbone_spec()),
}


@pytest.fixture
def backbone():
    return backbone_of()


def inputs(backbone, count=3):
    generator = torch.Generator().manual_seed(5)
    model = backbone.model
    images = torch.randn(count, 3, *model.visual.image_size, generator=generator)
    return images, torch.randint(1, 64, (count, model.context_length), generator=generator)


def outputs(backbone):
    images, tokens = inputs(backbone)
    return torch.cat([backbone.model.encode_image(images), backbone.model.encode_text(tokens)])


def contrast(backbone):
    images, tokens = inputs(backbone)
    model = backbone.model
    image_BD, text_BD = model.encode_image(images, normalize=True), model.encode_text(tokens, normalize=True)
    logits = model.logit_scale.exp() * image_BD.float() @ text_BD.float().T
    return torch.nn.functional.cross_entropy(logits, torch.arange(len(images)))


def state(backbone):
    """All that detaching must bring back, in its order, without the weights' values."""
    model = backbone.model
    return (
        [(name, p.requires_grad, id(p)) for name, p in model.named_parameters()],
        list(model.state_dict()),
        list(backbone.trainable),
        [(name, type(module), list(module._parameters)) for name, module in model.named_modules()],
    )


@pytest.mark.parametrize("targets", [("mlp",), ("attention",), BOTH])
@pytest.mark.parametrize("model", MODELS)
def test_the_materialised_delta_reproduces_the_attached_model(model, targets):
    backbone = MODELS[model]()
    theta0 = backbone.snapshot()
    with torch.no_grad():
        plain = outputs(backbone)
        with attach(backbone, rank=4, scale=2.0, targets=targets, std=0.1, seed=1) as lora:
            attached = outputs(backbone)
        delta = materialise(lora.factors(), lora.scale)
        assert torch.equal(outputs(backbone), plain)
        set_weights(backbone, theta0, delta)
        torch.testing.assert_close(outputs(backbone), attached, rtol=1e-4, atol=1e-5)
    assert (attached - plain).abs().max() > 100 * 1e-5
    ends = [e for t in targets for e in {"mlp": ("c_fc", "c_proj"), "attention": ("in_proj_weight", "out_proj")}[t]]
    assert list(delta) == [n for n in theta0 if "resblocks" in n and "bias" not in n and any(e in n for e in ends)]
    assert all(tensor.dtype == torch.float32 and tensor.shape == theta0[n].shape for n, tensor in delta.items())


def test_the_factors_are_keyed_by_theta0s_names(backbone):
    with attach(backbone, rank=4, seed=0) as lora:
        factors = lora.factors()
    assert factors["visual.transformer.resblocks.0.mlp.c_fc.weight.lora_A"].shape == (4, 32)
    assert factors["visual.transformer.resblocks.0.mlp.c_fc.weight.lora_B"].shape == (128, 4)
    assert factors["transformer.resblocks.1.mlp.c_proj.weight.lora_A"].shape == (4, 128)
    assert len(factors) == 2 * 2 * 2 * 2


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("training", [True, False])
def test_adapted_attention_on_every_path_of_torch(backbone, monkeypatch, training, fast):
    native, calls = torch._native_multi_head_attention, []
    monkeypatch.setattr(torch, "_native_multi_head_attention", lambda *args: (calls.append(1), native(*args))[1])
    theta0 = backbone.snapshot()
    backbone.model.train(training)
    enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(fast)
    try:
        with torch.no_grad(), attach(backbone, rank=4, targets=("attention",), std=0.3, seed=0) as lora:
            attached = outputs(backbone)
        assert bool(calls) == (fast and not training)  # else the fast path would not have been looked at
        with attach(backbone, rank=4, targets=("attention",), std=0.3, seed=0):
            torch.testing.assert_close(outputs(backbone), attached, rtol=1e-4, atol=1e-5)  # with gradients: slow path
    finally:
        torch.backends.mha.set_fastpath_enabled(enabled)
    set_weights(backbone, theta0, materialise(lora.factors(), lora.scale))
    torch.testing.assert_close(outputs(backbone), attached, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("targets", [("mlp",), BOTH])
def test_gradients_flow_to_the_factors_and_nowhere_else(backbone, targets, precision):
    with attach(backbone, rank=4, targets=targets, std=0.1, seed=0) as lora:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            assert backbone.model.visual.transformer.resblocks[0].mlp.c_fc.weight.dtype == torch.float32
            loss = contrast(backbone)
        loss.backward()
        live = {id(p) for p in lora.parameters().values()}
        assert {id(p) for p in backbone.model.parameters() if p.requires_grad} == live
        for name, parameter in backbone.model.named_parameters():
            if id(parameter) in live:
                assert parameter.grad.isfinite().all(), name
                assert parameter.grad.abs().max() > 0, name
            else:
                assert parameter.grad is None, name


@pytest.mark.parametrize("targets", [("mlp",), BOTH])
def test_the_gradient_is_that_of_the_materialised_weight(backbone, targets):
    """dL/dB = scale * dL/dW A^T and dL/dA = scale * B^T dL/dW, with dL/dW from full fine-tuning at the same weights."""
    theta0 = backbone.snapshot()
    with attach(backbone, rank=4, scale=0.5, targets=targets, std=0.1, seed=0) as lora:
        contrast(backbone).backward()
        grads = {key: p.grad for key, p in lora.parameters().items()}
    factors = lora.factors()
    set_weights(backbone, theta0, materialise(factors, 0.5))
    contrast(backbone).backward()
    for name in materialise(factors, 0.5):
        grad, a, b = backbone.trainable[name].grad, factors[name + ".lora_A"], factors[name + ".lora_B"]
        torch.testing.assert_close(grads[name + ".lora_A"], 0.5 * b.T @ grad, rtol=1e-3, atol=1e-6)
        torch.testing.assert_close(grads[name + ".lora_B"], 0.5 * grad @ a.T, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("targets", [("mlp",), ("attention",), BOTH])
@pytest.mark.parametrize("model", MODELS)
def test_detach_restores_everything(model, targets):
    backbone = MODELS[model]()
    next(p for n, p in backbone.trainable.items() if "c_fc" in n).requires_grad_(False)
    before, weights = state(backbone), copy.deepcopy(backbone.model.state_dict())
    for _ in range(2):
        lora = attach(backbone, rank=2, targets=targets, std=1.0, seed=0)
        assert state(backbone) != before
        optimizer = torch.optim.SGD(lora.parameters().values(), lr=1.0)
        contrast(backbone).backward()
        optimizer.step()
        lora.detach()
        lora.detach()
        assert state(backbone) == before
        assert all(torch.equal(tensor, weights[name]) for name, tensor in backbone.model.state_dict().items())
    assert not any(parametrize.is_parametrized(module) for module in backbone.model.modules())


def test_leaving_by_an_error_detaches_too(backbone):
    before = state(backbone)
    with pytest.raises(ZeroDivisionError), attach(backbone, rank=2, seed=0):
        raise ZeroDivisionError
    assert state(backbone) == before


def test_the_factors_depend_on_the_seed_alone(backbone):
    def drawn(seed, targets=BOTH):
        with attach(backbone, rank=4, targets=targets, seed=seed) as lora:
            return lora.factors()

    torch.manual_seed(1)
    one = drawn(3)
    torch.manual_seed(2)
    expected = torch.rand(1)
    torch.manual_seed(2)
    again, swapped, other = drawn(3), drawn(3, BOTH[::-1]), drawn(4)
    assert torch.equal(torch.rand(1), expected)  # the global generator was not drawn from
    assert list(one) == list(again) == list(swapped)
    assert all(torch.equal(one[key], again[key]) and torch.equal(one[key], swapped[key]) for key in one)
    assert not any(torch.equal(one[key], other[key]) for key in one)
    assert len({fingerprint({"": tensor}) for tensor in one.values()}) == len(one)


@pytest.mark.parametrize("std", [0.01, 0.5])
def test_init_normal_draws_both_and_zeros_starts_at_w0(backbone, std):
    theta0 = backbone.snapshot()
    with torch.no_grad():
        plain = outputs(backbone)
        with attach(backbone, rank=16, std=std, seed=0) as lora:
            for end in ("A", "B"):
                values = torch.cat([t.flatten() for key, t in lora.factors().items() if key.endswith(end)])
                assert values.std() == pytest.approx(std, rel=0.05)
                assert abs(values.mean()) < 5 * std / math.sqrt(len(values))
        with attach(backbone, rank=16, std=std, init="zeros", seed=0) as lora:
            # not bit for bit: torch takes other kernels for a text encoder that wants no gradient, adapted or not
            torch.testing.assert_close(outputs(backbone), plain, rtol=1e-5, atol=1e-5)
            for name, weight in theta0.items():
                module, _, end = name.rpartition(".")
                assert torch.equal(getattr(backbone.model.get_submodule(module), end), weight), name
            for key, tensor in lora.factors().items():
                assert tensor.std() == (0 if key.endswith("B") else pytest.approx(std, rel=0.2))


def test_load_and_factors_round_trip(backbone):
    with attach(backbone, rank=4, seed=0) as lora:
        first = lora.factors()
        before = outputs(backbone)
    with attach(backbone, rank=4, seed=1) as lora:
        live = lora.parameters()
        assert not torch.equal(outputs(backbone), before)
        lora.load({key: tensor.double() for key, tensor in reversed(first.items())})
        assert torch.equal(outputs(backbone), before)
        assert all(p is live[key] for key, p in lora.parameters().items())  # the optimizer keeps its parameters
        copies = lora.factors()
        assert list(copies) == list(first)
        assert all(torch.equal(copies[key], first[key]) for key in first)
        copies[next(iter(copies))].fill_(9)
        assert torch.equal(outputs(backbone), before)  # copies, not views


FC_A = "visual.transformer.resblocks.0.mlp.c_fc.weight.lora_A"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda f: {k: v for k, v in f.items() if k != FC_A}, ["1 LoRA factors are missing", FC_A]),
        (lambda f: f | {"a.lora_A": f[FC_A]}, ["1 LoRA factors are unexpected", "'a.lora_A'"]),
        (lambda f: f | {FC_A: f[FC_A][:2]}, [FC_A, "(2, 32)", "(4, 32)"]),
    ],
)
def test_factors_that_do_not_fit_are_refused_and_nothing_is_set(backbone, change, words):
    with attach(backbone, rank=4, seed=0) as lora:
        before = lora.factors()
        with pytest.raises(LoraError) as caught:
            lora.load(change({key: tensor + 1 for key, tensor in before.items()}))
        assert all(torch.equal(tensor, before[key]) for key, tensor in lora.factors().items())
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"rank": 33}, ["rank 33", "visual.transformer.resblocks.0.mlp.c_fc.weight", "(128, 32)", "1 to 32"]),
        ({"rank": 0}, ["rank 0"]),
        ({"targets": ("mlp", "head")}, ["'head'", "mlp, attention"]),
        ({"targets": ()}, ["at least one of mlp, attention"]),
        ({"targets": "mlp"}, ["tuple", "'mlp'"]),
        ({"init": "ones"}, ["'ones'", "normal and zeros"]),
        ({"std": 0.0}, ["std", "0.0"]),
    ],
)
def test_bad_arguments_are_refused_and_change_nothing(backbone, arguments, words):
    before = state(backbone)
    with pytest.raises(LoraError) as caught:
        attach(backbone, **({"rank": 4, "seed": 0} | arguments))
    for word in words:
        assert word in str(caught.value)
    assert state(backbone) == before


TIMM = {"timm_model_name": "test_vit", "timm_pool": "", "image_size": 160}


@pytest.mark.parametrize("vision", [{"layers": (1, 1, 1, 1), "image_size": 32}, TIMM], ids=["ResNet", "timm"])
def test_an_encoder_without_open_clips_transformer_is_refused(vision):
    backbone = backbone_of(vision=vision)
    before = state(backbone)
    with pytest.raises(
        LoraError, match=r"CLIP: its image encoder has no visual\.transformer\.resblocks\.\*\.mlp\.c_fc"
    ):
        attach(backbone, rank=4, seed=0)
    assert state(backbone) == before


def test_a_second_attach_is_refused(backbone):
    with attach(backbone, rank=4, seed=0), pytest.raises(LoraError, match=r"has adapters.*detach them first"):
        attach(backbone, rank=4, targets=("attention",), seed=0)


def test_materialise_is_scale_times_b_a():
    factors = {"w.lora_B": torch.tensor([[1.0], [2.0]]).half(), "w.lora_A": torch.tensor([[3.0, 4.0, 5.0]])}
    delta = materialise(factors, 0.5)
    assert torch.equal(delta["w"], torch.tensor([[1.5, 2.0, 2.5], [3.0, 4.0, 5.0]]))
    assert list(delta) == ["w"]
    assert materialise({}, 1.0) == {}


@pytest.mark.parametrize(
    ("factors", "words"),
    [
        ({"w.lora_A": torch.ones(1, 2)}, r"'w\.lora_B' is missing"),
        ({"w.lora_B": torch.ones(1, 2)}, r"'w\.lora_A' is missing"),
        ({"w": torch.ones(1, 2)}, "'w' is no LoRA factor"),
        ({"w.lora_A": torch.ones(2, 3), "w.lora_B": torch.ones(4, 1)}, r"'w' do not fit: A \(2, 3\), B \(4, 1\)"),
    ],
)
def test_factors_without_a_product_are_refused(factors, words):
    with pytest.raises(LoraError, match=words):
        materialise(factors, 1.0)


@pytest.mark.parametrize("init", ["normal", "zeros"])
def test_a_few_steps_of_adamw_lower_the_loss_of_tiny_clip(init):
    backbone = load_backbone(backbone_spec())
    theta0 = backbone.snapshot()
    with attach(backbone, rank=8, init=init, seed=0) as lora:
        optimizer = torch.optim.AdamW(lora.parameters().values(), lr=3e-3, weight_decay=0.0)
        losses = []
        for _ in range(8):
            optimizer.zero_grad()
            loss = contrast(backbone)
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
        with torch.no_grad():
            last = float(contrast(backbone))
    assert last < 0.5 * losses[0]
    set_weights(backbone, theta0, materialise(lora.factors(), lora.scale))
    with torch.no_grad():
        assert float(contrast(backbone)) == pytest.approx(last, rel=1e-3, abs=1e-5)
