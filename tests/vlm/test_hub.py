"""Weights of a tag where there is no network: one sentence with what to set, soon."""

import time

import pytest

from condu_ray.vlm import hub
from condu_ray.vlm.model import BackboneError, build
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
