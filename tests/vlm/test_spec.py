import open_clip
import pytest
import torch
from open_clip import factory
from open_clip.transformer import QuickGELU
from safetensors.torch import save_file
from torch import nn

from condu_ray.vlm.model import BackboneError, activations, backbone_spec, build, load_backbone

WITH_OPENAI = [name for name in open_clip.list_models() if "openai" in open_clip.list_pretrained_tags_by_model(name)]


@pytest.fixture
def no_download(monkeypatch):
    """Models are built as for a tag, without its file and its words, and on torch's device without numbers."""
    monkeypatch.setattr(open_clip, "get_tokenizer", lambda *arguments, **options: None)
    monkeypatch.setattr(factory, "download_pretrained", lambda config, **options: "weights")
    monkeypatch.setattr(factory, "load_checkpoint", lambda model, path, **options: {})
    monkeypatch.setattr(factory, "_set_model_device_and_precision", lambda *arguments: None)
    with torch.device("meta"):
        yield


@pytest.mark.parametrize("name", WITH_OPENAI)
def test_openais_models_have_quick_gelu_wherever_it_belongs(name, no_download):
    model, _, notes = build(backbone_spec(name, "openai"))
    resnet = name.startswith("RN")
    assert [type(block.mlp.gelu) for block in model.transformer.resblocks] == [QuickGELU] * 12
    assert set(activations(model.visual)) == ({"ReLU"} if resnet else {"QuickGELU"})
    assert not any(isinstance(module, nn.GELU) for module in model.modules())
    assert bool(notes) != name.endswith("-quickgelu")  # what was decided against the architecture's own words


def test_a_tag_with_plain_gelu_has_it(no_download):
    model, _, notes = build(backbone_spec("ViT-B-16", "laion2b_s34b_b88k"))
    assert activations(model) == ["GELU"]
    assert notes == ()


def test_what_open_clip_warns_of_at_loading_is_a_note(no_download, monkeypatch, recwarn, caplog):
    import logging
    import warnings

    def load(model, path, **options):
        warnings.warn("half of it", stacklevel=1)
        logging.warning("another half")

    monkeypatch.setattr(factory, "load_checkpoint", load)
    _, _, notes = build(backbone_spec("ViT-B-16", "laion2b_s34b_b88k"))
    assert sorted(note.split(": ")[1] for note in notes) == ["another half", "half of it"]
    assert not recwarn.list
    assert not caplog.records
    assert not logging.getLogger().filters


def test_a_pretrained_tag_brings_its_own_preprocessing():
    spec = backbone_spec("ViT-B-16", "openai")
    assert spec.preprocess["mean"][0] == pytest.approx(0.48145466)
    assert spec.image_size == (224, 224)
    other = backbone_spec("ViT-B-16-SigLIP", "webli")
    assert other.preprocess["mean"][0] == 0.5  # not CLIP's
    assert backbone_spec("ViT-B-16", "laion2b-s34b-B88k").preprocess == spec.preprocess  # as open_clip spells it too


@pytest.fixture
def file(tmp_path):
    save_file({"some": torch.zeros(1)}, tmp_path / "w.safetensors")
    return str(tmp_path / "w.safetensors")


@pytest.mark.parametrize(
    ("model", "named", "mean", "resize", "words"),
    [
        ("ViT-B-16", None, 0.48145466, "shortest", ["tags of ViT-B-16", "GELU, as --model", "give --model ViT-B-16-q"]),
        ("ViT-B-16-quickgelu", None, 0.48145466, "shortest", ["mean 0.481", "QuickGELU, as --model"]),
        ("ViT-B-16-SigLIP", None, 0.5, "squash", ["mean 0.5 0.5 0.5", "webli"]),
        ("MobileCLIP-S1", None, 0, "shortest", ["mean 0 0 0", "bilinear"]),
        ("ViT-L-14-CLIPA", None, 0.485, "squash", ["mean 0.485", "squash"]),
        ("ViT-L-14", "laion2b_s32b_b82k", 0.5, "shortest", ["--preprocess laion2b_s32b_b82k says"]),
        ("ViT-S-32", "ViT-B-32:openai", 0.48145466, "shortest", ["--preprocess ViT-B-32:openai says"]),
    ],
)
def test_a_file_gets_what_its_architecture_or_a_named_tag_says(file, model, named, mean, resize, words):
    spec = backbone_spec(model, file, named)
    assert spec.preprocess["mean"][0] == pytest.approx(mean)
    assert spec.preprocess["resize_mode"] == resize
    said = "\n".join(spec.notes)
    assert [word for word in words if word not in said] == []


@pytest.mark.parametrize(
    ("model", "pretrained", "named", "words"),
    [
        ("ViT-B16", "openai", None, ["ViT-B16", "ViT-B-16"]),
        ("ViT-B-16", "opnai", None, ["opnai", "did you mean openai"]),
        ("ViT-B-16", None, None, ["needs --pretrained", "openai"]),
        ("tiny-clip", "no/such/folder", None, ["no/such/folder", "no such folder"]),
        ("ViT-B-16-quickgelu", "laion2b_s34b_b88k", None, ["plain GELU", "has QuickGELU", "give ViT-B-16"]),
        ("hf-hub:some/clip", "openai", None, ["hf-hub:some/clip brings its weights", "leave out"]),
        ("ViT-L-14", "FILE", None, ["disagree", "openai and laion2b_s32b_b82k", "--preprocess"]),
        ("ViT-S-32", "FILE", None, ["ViT-S-32 has no tag", "--preprocess", "ViT-B-16:openai"]),
        ("ViT-L-14", "FILE", "openay", ["--preprocess openay", "did you mean openai"]),
        ("ViT-L-14", "FILE", "ViT-B-61:openai", ["--preprocess ViT-B-61:openai", "no tag"]),
        ("ViT-L-14", "openai", "openai", ["--preprocess openai", "leave it out"]),
        ("tiny-clip", None, "openai", ["--preprocess openai", "leave it out"]),
    ],
)
def test_what_does_not_exist_or_contradicts_is_refused(file, model, pretrained, named, words):
    with pytest.raises(BackboneError) as caught:
        backbone_spec(model, file if pretrained == "FILE" else pretrained, named)
    assert [word for word in words if word not in str(caught.value)] == []
    assert len(str(caught.value)) < 700


def test_what_a_folder_does_not_say_is_noted(small_backbone):
    backbone = load_backbone(backbone_spec(pretrained=str(small_backbone)))
    assert "says no mean, std, interpolation, resize_mode" in backbone.notes[0]
    assert load_backbone(backbone_spec()).notes == ()


def test_a_backbone_says_what_it_is(small_backbone):
    backbone = load_backbone(backbone_spec(pretrained=str(small_backbone)))
    for word in (str(small_backbone), "GELU", "16 x 16", "bicubic", "mean 0.4815", backbone.fingerprint[:12]):
        assert word in backbone.described
