"""theta0 in storage: the same backbone for every worker, with nothing fetched and nothing of the driver's files."""

import shutil
import sys
from types import ModuleType
from typing import ClassVar

import open_clip
import pytest
import torch

from condu_ray.plan.repair import damaged
from condu_ray.vlm.model import EMBEDDED, WEIGHTS, BackboneError, backbone_spec, load_backbone
from condu_ray.vlm.staged import staged

SMALL = {
    "embed_dim": 8,
    "vision_cfg": {"image_size": 8, "layers": 1, "width": 8, "head_width": 4, "patch_size": 4},
    "text_cfg": {"width": 8, "heads": 2, "layers": 1},
}


def stage(spec, storage):
    backbone = load_backbone(spec)
    return backbone, staged(storage, spec, backbone.fingerprint)


def test_a_folder_is_staged_once_and_is_not_needed_any_more(small_backbone, tmp_path, monkeypatch):
    shutil.copytree(small_backbone, tmp_path / "given")
    spec = backbone_spec(pretrained=str(tmp_path / "given"))
    backbone, there = stage(spec, tmp_path / "storage")
    shutil.rmtree(tmp_path / "given")
    loaded = load_backbone(there)
    assert loaded.fingerprint == backbone.fingerprint
    assert loaded.spec.name == backbone.spec.name
    for name, tensor in backbone.model.state_dict().items():
        assert torch.equal(tensor, loaded.model.state_dict()[name])
    monkeypatch.setattr("condu_ray.vlm.staged.load_backbone", None)  # nothing is written again
    assert staged(tmp_path / "storage", spec, backbone.fingerprint) == there
    assert [path.name for path in (tmp_path / "storage" / "backbones").iterdir()] == [backbone.fingerprint]


@pytest.mark.parametrize("gone", ["open_clip_model.safetensors", "open_clip_config.json", "bpe_simple_vocab.txt.gz"])
def test_a_folder_that_a_copy_of_storage_left_a_file_out_of_is_written_again(small_backbone, tmp_path, gone):
    spec = backbone_spec(pretrained=str(small_backbone))
    backbone, there = stage(spec, tmp_path)
    (tmp_path / "backbones" / backbone.fingerprint / gone).unlink()
    assert staged(tmp_path, spec, backbone.fingerprint) == there
    assert load_backbone(there).fingerprint == backbone.fingerprint
    assert damaged(tmp_path) == []


def test_the_embedded_one(tmp_path):
    backbone, there = stage(backbone_spec(), tmp_path)
    assert str(EMBEDDED) not in f"{there.model}{there.tokenizer}"
    assert there.name == "tiny-clip"
    assert load_backbone(there).described == backbone.described


def test_a_tag_is_fetched_by_nobody_but_the_driver(tmp_path, monkeypatch):
    """Its file is open_clip's download, which is stubbed; its activation is not the architecture's, but forced."""
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "some-clip", SMALL)
    torch.manual_seed(0)
    model, fetched = open_clip.create_model("some-clip"), []
    torch.save(model.state_dict(), tmp_path / "weights.pt")

    def download(config, **options):
        fetched.append(config)
        return str(tmp_path / "weights.pt")

    said = open_clip.pretrained.get_pretrained_cfg("ViT-B-16", "openai")
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, "some-clip", {"tag": said})
    monkeypatch.setattr(open_clip.factory, "download_pretrained", download)
    backbone, there = stage(backbone_spec("some-clip", "tag"), tmp_path)
    assert len(fetched) == 2  # the check's, and the one that staged
    assert load_backbone(there).fingerprint == backbone.fingerprint
    assert len(fetched) == 2


class Words:
    """Stands for a tokenizer of transformers: its files, and what open_clip and a fingerprint ask of it."""

    sources: ClassVar[list] = []

    @classmethod
    def from_pretrained(cls, source, **options):
        cls.sources.append(str(source))
        return cls()

    def save_pretrained(self, folder):
        (folder / "tokenizer.json").write_text("{}")

    def get_vocab(self):
        return {"a": 0}

    def __call__(self, texts, max_length=None, **options):
        result = ModuleType("result")
        result.input_ids = torch.tensor([[len(text) % 50] + [0] * (max_length - 1) for text in texts])
        return result


@pytest.fixture
def siglip(monkeypatch, tmp_path):
    """An architecture whose tokenizer is Hugging Face's, with its file."""
    config = SMALL | {"text_cfg": SMALL["text_cfg"] | {"hf_tokenizer_name": "org/words", "vocab_size": 50}}
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "some-siglip", config)
    torch.manual_seed(0)
    torch.save(open_clip.create_model("some-siglip").state_dict(), tmp_path / "w.pt")
    return backbone_spec("some-siglip", str(tmp_path / "w.pt"), "ViT-B-16-SigLIP:webli")


def test_a_tokenizer_of_hugging_faces_is_staged_with_it(siglip, tmp_path, monkeypatch):
    package = ModuleType("transformers")
    package.AutoTokenizer = Words
    monkeypatch.setitem(sys.modules, "transformers", package)
    monkeypatch.setattr("condu_ray.vlm.model.find_spec", lambda name: package)
    monkeypatch.setattr("condu_ray.vlm.hub.look", lambda: None)
    monkeypatch.setattr(Words, "sources", [])
    backbone, there = stage(siglip, tmp_path / "storage")
    Words.sources.clear()
    assert load_backbone(there).fingerprint == backbone.fingerprint
    assert Words.sources == [there.staged]
    monkeypatch.setattr(Words, "get_vocab", lambda self: {"a": 0} if Words.sources[-1] == "org/words" else {"b": 0})
    shutil.rmtree(tmp_path / "storage")
    assert stage(siglip, tmp_path / "storage")[1] == siglip  # it would be another one: each worker loads it as given
    assert list((tmp_path / "storage" / "backbones").iterdir()) == []


def test_a_tokenizer_without_its_package_is_refused_by_name(siglip, monkeypatch):
    monkeypatch.setattr("condu_ray.vlm.model.find_spec", lambda name: None)
    with pytest.raises(BackboneError, match=r"some-siglip.*tokenizer is Hugging Face's \(org/words\).*transformers"):
        load_backbone(siglip)


def test_what_is_not_what_was_staged_is_refused_and_found(small_backbone, tmp_path):
    from safetensors.torch import load_file, save_file

    _, there = stage(backbone_spec(pretrained=str(small_backbone)), tmp_path)
    assert damaged(tmp_path) == []
    path = tmp_path / "backbones" / there.fingerprint / WEIGHTS
    tensors = load_file(path)
    tensors["visual.proj"][0, 0] += 1
    save_file(tensors, path)
    with pytest.raises(BackboneError, match=r"is not what was staged there of .* --repair true"):
        load_backbone(there)
    assert [one for one, _ in damaged(tmp_path)] == [path.parent]
