import pytest

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
