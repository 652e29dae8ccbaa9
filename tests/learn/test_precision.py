from types import SimpleNamespace

import pytest
import torch

from condu_ray.learn import precision as module


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_cpu_without_bf16_is_slow_in_it_alone(precision, device, fast, monkeypatch):
    monkeypatch.setattr(module, "bf16_is_fast", lambda: fast)
    said = module.slow_in(precision, device)
    assert bool(said) == (precision == "bf16" and device == "cpu" and not fast)
    assert module.resolved_precision("auto", False) == ("bf16" if fast else "fp32")
    assert module.resolved_precision(precision, False) == precision


@pytest.mark.parametrize(("major", "precision"), [(7, "fp32"), (8, "bf16"), (9, "bf16")])
def test_a_gpu_that_only_imitates_bf16_has_none(major, precision, monkeypatch):
    """Of a V100 or T4 torch says that bf16 is supported: a tensor of it can be made."""
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(major=major))
    monkeypatch.setattr(torch.cuda, "_check_bf16_tensor_supported", lambda device: True)
    assert torch.cuda.is_bf16_supported()
    assert module.resolved_precision("auto", True) == precision
    assert module.resolved_precision("bf16", True) == "bf16"


def test_a_driver_without_a_gpu_takes_its_clusters_to_have_bf16(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert module.resolved_precision("auto", True) == "bf16"
