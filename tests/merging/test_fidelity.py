import math

import pytest
import torch

from condu_ray.merging import DeltaError, UnifiedDelta, reconstruction
from condu_ray.merging import fidelity as module


def test_a_perfect_copy():
    delta = {"a": torch.randn(5, 3), "b": torch.randn(2)}
    found = reconstruction(delta, {name: t.clone() for name, t in delta.items()})
    assert found.relative_l2 == 0
    assert found.sign_agreement == 1
    assert found.cosine == pytest.approx(1, abs=1e-15)


def test_a_worked_example_over_two_tensors():
    found = reconstruction(
        {"a": torch.tensor([3.0, 0.0]), "b": torch.tensor([[-4.0], [1.0]])},
        {"a": torch.tensor([3.0, 1.0]), "b": torch.tensor([[4.0], [0.0]])},
    )
    assert found.relative_l2 == pytest.approx(math.sqrt((1 + 64 + 1) / 26))
    assert found.sign_agreement == pytest.approx(1 / 3)  # 3 agrees, -4 turned, 1 was masked out
    assert found.cosine == pytest.approx((9 - 16) / math.sqrt(26 * 26))


def test_zero_deltas():
    zero, one = {"a": torch.zeros(3)}, {"a": torch.ones(3)}
    assert reconstruction(zero, zero) == module.Reconstruction(0.0, 1.0, 1.0)
    assert reconstruction(zero, one) == module.Reconstruction(math.inf, 0.0, 0.0)
    assert reconstruction(one, zero) == module.Reconstruction(1.0, 0.0, 0.0)


def test_chunks_do_not_count(monkeypatch):
    a, b = {"w": torch.randn(1001)}, {"w": torch.randn(1001)}
    whole = reconstruction(a, b)
    monkeypatch.setattr(module, "_CHUNK", 10)
    cut = reconstruction(a, b)
    assert cut.sign_agreement == whole.sign_agreement
    assert cut.relative_l2 == pytest.approx(whole.relative_l2, rel=1e-12)
    assert cut.cosine == pytest.approx(whole.cosine, rel=1e-9)


def test_half_precision_is_summed_in_float64():
    big = {"w": torch.full((70000,), 2.0).half()}  # the sum of squares, 280000, is beyond float16
    assert reconstruction(big, {"w": big["w"] / 2}).relative_l2 == 0.5


def test_layouts_must_agree():
    with pytest.raises(DeltaError, match="'b'"):
        reconstruction({"a": torch.ones(1)}, {"a": torch.ones(1), "b": torch.ones(1)})


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_is_refused(bad):
    good, broken = {"a": torch.tensor([1.0, 2.0])}, {"a": torch.tensor([bad, 2.0])}
    with pytest.raises(DeltaError, match=f"the original delta: tensor 'a' holds {bad}"):
        reconstruction(broken, good)
    with pytest.raises(DeltaError, match=f"the decoupled delta: tensor 'a' holds {bad}"):
        reconstruction(good, broken)


def test_agrees_with_the_masks_of_a_merge():
    first, second = {"w": torch.randn(500)}, {"w": torch.randn(500)}
    state = UnifiedDelta.empty().unify("a", first).unify("b", second)
    found = reconstruction(first, state.decouple("a"))
    assert found.sign_agreement == pytest.approx(state.mask("a")["w"].double().mean().item())
    assert 0 < found.relative_l2 < 2
    assert 0.5 < found.cosine < 1
