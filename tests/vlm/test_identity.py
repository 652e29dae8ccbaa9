import gzip
import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from condu_ray.vlm.model import CONFIG, MERGES, WEIGHTS, backbone_spec, load_backbone


def copy(folder, to, change=lambda config: None):
    """A folder of another name with the same backbone, but for what `change` does to its configuration."""
    to.mkdir()
    for name in (WEIGHTS, MERGES):
        (to / name).write_bytes((folder / name).read_bytes())
    config = json.loads((folder / CONFIG).read_text())
    change(config)
    (to / CONFIG).write_text(json.dumps(config))
    return to


def of(folder):
    return load_backbone(backbone_spec(pretrained=str(folder))).fingerprint


def vision(**changes):
    return lambda config: config["model_cfg"]["vision_cfg"].update(changes)


def text(**changes):
    return lambda config: config["model_cfg"]["text_cfg"].update(changes)


def prepared(**changes):
    return lambda config: config["preprocess_cfg"].update(changes)


OTHER = {
    "quick gelu": lambda config: config["model_cfg"].update(quick_gelu=True),
    "heads of the image tower": vision(head_width=8),
    "heads of the text tower": text(heads=4),
    "pooling": vision(pool_type="avg"),
    "no causal mask": text(no_causal_mask=True),
    "pool of the text": text(pool_type="last"),
    "patches dropped in training": vision(patch_dropout=0.5),
    "epsilon": vision(norm_kwargs={"eps": 1e-3}),
    "activation's form": text(act_kwargs={"approximate": "tanh"}),
    "mean": prepared(mean=[0.5] * 3),
    "standard deviation": prepared(std=[0.5] * 3),
    "interpolation": prepared(interpolation="bilinear"),
    "resizing": prepared(resize_mode="squash"),
    "filling": prepared(resize_mode="longest", fill_color=255),
    "cleaning": text(tokenizer_kwargs={"clean": "whitespace"}),
    "reduction": text(tokenizer_kwargs={"reduction_mask": "simple"}),
}
SAME = {
    "another folder": lambda config: None,
    "defaults written out": lambda config: [
        config["model_cfg"].update(quick_gelu=False, custom_text=False),
        vision(mlp_ratio=4, image_size=16, pool_type="tok")(config),
        text(mlp_ratio=4.0, pool_type="argmax")(config),
        prepared(size=[16, 16], mode="RGB", interpolation="bicubic", resize_mode="shortest", fill_color=0)(config),
        prepared(mean=(0.48145466, 0.4578275, 0.40821073))(config),
    ],
    "what is only for starting from nothing": lambda config: config["model_cfg"].update(init_logit_scale=1.0),
}


@pytest.fixture(scope="module")
def fingerprint(small_backbone):
    return of(small_backbone)


@pytest.mark.parametrize("change", OTHER.values(), ids=OTHER)
def test_one_other_thing_is_another_backbone(small_backbone, fingerprint, tmp_path, change):
    assert of(copy(small_backbone, tmp_path / "b", change)) != fingerprint


@pytest.mark.parametrize("change", SAME.values(), ids=SAME)
def test_the_same_content_is_the_same_backbone(small_backbone, fingerprint, tmp_path, change):
    assert of(copy(small_backbone, tmp_path / "b", change)) == fingerprint


def test_no_two_differences_are_one(small_backbone, tmp_path):
    found = [of(copy(small_backbone, tmp_path / str(number), change)) for number, change in enumerate(OTHER.values())]
    assert len(set(found)) == len(OTHER)


def test_one_other_weight_is_another_backbone(small_backbone, fingerprint, tmp_path):
    folder = copy(small_backbone, tmp_path / "b")
    tensors = load_file(folder / WEIGHTS)
    tensors["ln_final.bias"][0] += 0.5
    save_file(tensors, folder / WEIGHTS)
    assert of(folder) != fingerprint


def test_other_merges_are_another_backbone(small_backbone, fingerprint, tmp_path):
    folder = copy(small_backbone, tmp_path / "b")
    lines = gzip.decompress((folder / MERGES).read_bytes()).decode().split("\n")
    lines[1], lines[-2] = lines[-2], lines[1]
    (folder / MERGES).write_bytes(gzip.compress("\n".join(lines).encode()))
    assert of(folder) != fingerprint


def test_the_form_that_weights_are_stored_in_does_not_count(small_backbone, fingerprint, tmp_path):
    folder = copy(small_backbone, tmp_path / "b")
    save_file({name: tensor.float() for name, tensor in load_file(folder / WEIGHTS).items()}, folder / WEIGHTS)
    assert of(folder) == fingerprint


def test_a_folder_is_the_architecture_that_it_holds(tmp_path, shallow):
    """An architecture by its name with a file of weights, and a folder with both."""
    import open_clip

    config = open_clip.get_model_config("ViT-S-32-alt")
    torch.manual_seed(0)
    weights = open_clip.create_model("ViT-S-32-alt", pretrained=None).state_dict()
    save_file(weights, tmp_path / "weights.safetensors")
    folder = tmp_path / "folder"
    folder.mkdir()
    save_file(weights, folder / WEIGHTS)
    (folder / CONFIG).write_text(json.dumps({"model_cfg": config, "preprocess_cfg": {}}))
    named = backbone_spec("ViT-S-32-alt", str(tmp_path / "weights.safetensors"), "ViT-B-32:openai")
    assert load_backbone(named).fingerprint == of(folder)
