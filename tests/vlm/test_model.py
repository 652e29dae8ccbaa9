import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from condu_ray.vlm.inputs import normalise
from condu_ray.vlm.model import BackboneError, backbone_spec, load_backbone, set_weights
from condu_ray.vlm.preprocess import Preprocessor


def test_a_folder_in_open_clips_form(small_backbone):
    spec = backbone_spec(pretrained=str(small_backbone))
    backbone = load_backbone(spec)
    assert spec.image_size == (16, 16)
    assert backbone.fingerprint == load_backbone(spec).fingerprint
    assert "logit_scale" not in backbone.trainable
    assert all(p.dtype == torch.float32 and p.requires_grad for p in backbone.trainable.values())
    assert not backbone.model.logit_scale.requires_grad
    stored = load_file(small_backbone / "open_clip_model.safetensors")
    assert all(torch.equal(value, stored[name].float()) for name, value in backbone.snapshot().items())


def test_no_weights_are_drawn_where_a_file_has_them(small_backbone):
    before = torch.get_rng_state()
    load_backbone(backbone_spec(pretrained=str(small_backbone)))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.usefixtures("shallow")
def test_a_checkpoint_file_with_an_open_clip_architecture(tmp_path):
    import open_clip

    torch.manual_seed(0)
    model = open_clip.create_model("ViT-S-32-alt", pretrained=None)
    save_file(model.state_dict(), tmp_path / "weights.safetensors")
    backbone = load_backbone(backbone_spec("ViT-S-32-alt", str(tmp_path / "weights.safetensors"), "ViT-B-32:openai"))
    assert torch.equal(backbone.model.state_dict()["text_projection"], model.state_dict()["text_projection"])
    assert backbone.spec.preprocess["size"] == 224


def copy(folder, to, **changes):
    for path in folder.iterdir():
        (to / path.name).write_bytes(path.read_bytes())
    for name, content in changes.items():
        (to / {"config": "open_clip_config.json", "weights": "open_clip_model.safetensors"}[name]).write_bytes(content)
    return to


@pytest.mark.parametrize("content", [b"{", b"{}", b"[]", json.dumps({"model_cfg": {}}).encode()])
def test_a_broken_configuration_is_named(small_backbone, tmp_path, content):
    copy(small_backbone, tmp_path, config=content)
    with pytest.raises(BackboneError, match=r"open_clip_config\.json"):
        backbone_spec(pretrained=str(tmp_path))


def test_missing_weights_are_named(small_backbone, tmp_path):
    copy(small_backbone, tmp_path)
    (tmp_path / "open_clip_model.safetensors").unlink()
    with pytest.raises(BackboneError, match=r"open_clip_model\.safetensors is missing"):
        backbone_spec(pretrained=str(tmp_path))


def test_truncated_weights_are_refused(small_backbone, tmp_path):
    whole = (small_backbone / "open_clip_model.safetensors").read_bytes()
    copy(small_backbone, tmp_path, weights=whole[: len(whole) // 2])
    with pytest.raises(BackboneError, match="cannot be loaded"):
        load_backbone(backbone_spec(pretrained=str(tmp_path)))


def test_weights_that_are_not_finite_are_refused(small_backbone, tmp_path):
    copy(small_backbone, tmp_path)
    tensors = load_file(small_backbone / "open_clip_model.safetensors")
    tensors["visual.proj"][0, 0] = float("nan")
    save_file(tensors, tmp_path / "open_clip_model.safetensors")
    with pytest.raises(BackboneError, match=r"visual\.proj holds NaN"):
        load_backbone(backbone_spec(pretrained=str(tmp_path)))


def test_set_weights_goes_there_and_back(small_backbone):
    backbone = load_backbone(backbone_spec(pretrained=str(small_backbone)))
    theta0 = backbone.snapshot()
    delta = {name: torch.ones_like(tensor) for name, tensor in theta0.items()}
    set_weights(backbone, theta0, delta)
    assert all(torch.equal(value, theta0[name] + 1) for name, value in backbone.snapshot().items())
    set_weights(backbone, theta0, None)
    assert all(torch.equal(value, theta0[name]) for name, value in backbone.snapshot().items())


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA"])
@pytest.mark.parametrize("resize", ["shortest", "squash", "longest"])
def test_pixels_are_open_clips_own(mode, resize):
    import io

    from open_clip.transform import PreprocessCfg, image_transform_v2

    config = {"size": 32, "mode": "RGB", "mean": (0.5, 0.4, 0.3), "std": (0.2, 0.3, 0.4)}
    config |= {"interpolation": "bicubic", "resize_mode": resize, "fill_color": 0}
    noise = np.random.default_rng(0).integers(0, 255, (50, 70, 3), dtype=np.uint8)
    image, buffer = Image.fromarray(noise).convert(mode), io.BytesIO()
    image.save(buffer, "PNG")
    pixels = torch.from_numpy(Preprocessor(config).pixels(buffer.getvalue()).copy())
    expected = image_transform_v2(PreprocessCfg(**config), is_train=False)(image.convert("RGB"))
    assert torch.allclose(normalise(pixels.unsqueeze(0), config)[0], expected, atol=1e-6)


@pytest.mark.parametrize("size", [32, (24, 40)])
def test_training_crops_are_open_clips_own(size):
    import io

    from open_clip.transform import AugmentationCfg, PreprocessCfg, image_transform_v2

    config = {"size": size, "mode": "RGB", "mean": (0.5,) * 3, "std": (0.5,) * 3, "interpolation": "bilinear"}
    config |= {"resize_mode": "squash", "fill_color": 0}  # which the training transform does not look at
    whole = image_transform_v2(PreprocessCfg(**config), is_train=True, aug_cfg=AugmentationCfg())
    ours, generator = Preprocessor(config, augment=True), np.random.default_rng(0)
    for width, height in ((50, 70), (70, 50), (8, 8), (90, 31), (31, 90), (400, 10), (10, 400), (1, 3), (640, 480)):
        buffer = io.BytesIO()
        image = Image.fromarray(generator.integers(0, 255, (height, width, 3), dtype=np.uint8))
        image.save(buffer, "PNG")
        for seed in range(10):
            pixels = ours.pixels(buffer.getvalue(), seed)
            torch.default_generator.manual_seed(seed)
            picture = image
            for step in whole.transforms[:-2]:
                picture = step(picture)
            assert np.array_equal(pixels, np.asarray(picture)), (width, height, seed)
            torch.default_generator.manual_seed(seed)
            assert torch.allclose(normalise(torch.tensor(pixels)[None], config)[0], whole(image), atol=1e-6)


@pytest.mark.parametrize("size", [(48, 48), (500, 375), (3000, 2000), (1000, 30), (3, 90)])
def test_boxes_are_those_that_torchvision_draws(size):
    from torchvision.transforms import RandomResizedCrop

    from condu_ray.vlm.preprocess import CROP_RATIO, CROP_SCALE, Draws, RandomCrop

    draws, image = Draws(), Image.new("L", size)
    for seed in range(0, 300 * 7919 * 1000, 7919 * 1000):
        torch.default_generator.manual_seed(seed)
        top, left, height, width = RandomResizedCrop.get_params(image, list(CROP_SCALE), list(CROP_RATIO))
        assert RandomCrop._box(*size, draws.seed(seed)) == (left, top, width, height), seed


def test_a_side_between_two_pixels_is_torchs():
    """Where float32's exp rounds otherwise than torch's, and a side lies between the two."""
    import math

    from condu_ray.vlm.preprocess import _sides

    logs = torch.linspace(-0.28, 0.28, 20000)
    torchs = torch.exp(logs).double()
    exact = torch.exp(logs.double()).float().double()
    apart = (torchs != exact).nonzero().ravel().tolist()
    if not apart:
        pytest.skip("this machine's float32 exp is exactly rounded")
    for index in apart[:50]:
        area = 100.5**2 / ((torchs[index] + exact[index]) / 2).item()
        assert _sides(area, logs[index].item())[0] == round(math.sqrt(area * torchs[index].item()))


def test_augmentation_is_fixed_by_its_seed():
    import io

    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (50, 70, 3), dtype=np.uint8)).save(buffer, "PNG")
    preprocessor = Preprocessor(
        {"size": 32, "mode": "RGB", "mean": (0.5,) * 3, "std": (0.5,) * 3, "interpolation": "bicubic"}, augment=True
    )
    one, again, other = (preprocessor.pixels(buffer.getvalue(), seed) for seed in (1, 1, 2))
    assert np.array_equal(one, again)
    assert not np.array_equal(one, other)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda config: config["preprocess_cfg"].update(size=32), ["32 x 32 pixels"]),
        (lambda config: config["preprocess_cfg"].update(size=[16, 24]), ["16 x 24 pixels"]),
        (
            lambda config: config["model_cfg"].update(vision_cfg={"timm_model_name": "test_vit", "image_size": 32}),
            ["cannot be loaded"],
        ),
    ],
)
def test_a_model_that_does_not_take_its_images_is_refused_at_loading(small_backbone, tmp_path, change, words):
    config = json.loads((small_backbone / "open_clip_config.json").read_text())
    change(config)
    copy(small_backbone, tmp_path, config=json.dumps(config).encode())
    with pytest.raises(BackboneError) as caught:
        load_backbone(backbone_spec(pretrained=str(tmp_path)))
    for word in (str(tmp_path), *words):
        assert word in str(caught.value)
    assert len(str(caught.value)) < 800
