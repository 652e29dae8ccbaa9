"""Weights of a tag where there is no network: one sentence with what to set, soon."""

import json
import shutil
import time

import pytest

from condu_ray.vlm import hub
from condu_ray.vlm.model import BackboneError, build, load_backbone
from condu_ray.vlm.spec import backbone_spec


@pytest.fixture
def constants(monkeypatch, tmp_path):
    from huggingface_hub import constants

    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "HF_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    return constants


@pytest.mark.parametrize("name", [("ViT-B-32-256", "datacomp_s34b_b86k"), ("ViT-B-16-SigLIP", "webli")])
def test_a_tag_that_cannot_be_fetched_is_named_soon_with_what_to_set(name, constants):
    begin = time.monotonic()
    with pytest.raises(BackboneError) as error:
        build(backbone_spec(*name))
    assert time.monotonic() - begin < 30
    for word in (*name, "not on this machine", "HF_HOME", "http://127.0.0.1:9 does not answer", "local file or folder"):
        assert word in str(error.value)
    assert "\n" not in str(error.value)


def test_nobody_is_asked_behind_a_proxy_or_twice(constants, monkeypatch):
    monkeypatch.setenv("http_proxy", "http://proxy.invalid:1")
    hub.look()
    assert not constants.HF_HUB_OFFLINE
    monkeypatch.delenv("http_proxy")
    hub.look()
    assert constants.HF_HUB_OFFLINE


def test_an_error_of_another_kind_is_left_to_others():
    assert hub.missing(ValueError("size mismatch"), "a tag") is None


@pytest.fixture
def repository(small_backbone, monkeypatch, tmp_path):
    """A repository of the hub; open_clip's download is stubbed, its file lies as in the hub's cache."""
    from open_clip import pretrained

    asked, there = [], tmp_path / "models--org--small" / "snapshots" / "0123"
    shutil.copytree(small_backbone, there)

    def download(repository, filename=None, **options):
        asked.append((repository, filename))
        path = there / (filename or "open_clip_model.safetensors")
        if repository != "org/small" or not path.exists():
            raise FileNotFoundError(f"Failed to download file ({filename}) for {repository}. Last error: 404")
        return str(path)

    monkeypatch.setattr(pretrained, "download_pretrained_from_hf", download)
    monkeypatch.setattr(hub, "look", lambda: None)
    return asked, there


def test_a_model_of_the_hub_is_fetched_by_its_name(repository, small_backbone):
    asked, _ = repository
    spec = backbone_spec("hf-hub:org/small")
    assert asked == [("org/small", "open_clip_config.json"), ("org/small", None)]
    assert spec.name == "hf-hub:org/small"
    backbone = load_backbone(spec)
    assert backbone.fingerprint == load_backbone(backbone_spec(pretrained=str(small_backbone))).fingerprint
    assert backbone.described.startswith("backbone hf-hub:org/small: ")


def test_its_tokenizers_files_are_fetched_where_it_has_one_of_its_own(repository):
    asked, there = repository
    config = json.loads((there / "open_clip_config.json").read_text())
    config["model_cfg"]["text_cfg"]["hf_tokenizer_name"] = "org/words"
    (there / "open_clip_config.json").write_text(json.dumps(config))
    backbone_spec("hf-hub:org/small")
    assert ("org/small", "tokenizer.json") in asked


def test_what_the_hub_has_not_is_named(repository):
    with pytest.raises(BackboneError, match=r"hf-hub:org/none: cannot be fetched .*404.*open_clip_config.json"):
        backbone_spec("hf-hub:org/none")


def test_a_model_of_the_hub_without_a_network_is_named_soon(constants):
    with pytest.raises(BackboneError, match=r"hf-hub:org/none: its weights or tokenizer are not on this machine"):
        backbone_spec("hf-hub:org/none")
