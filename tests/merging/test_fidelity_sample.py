import pytest
import torch

from condu_ray.merging import DeltaError, reconstruction
from condu_ray.merging.fidelity_sample import Sample, estimate, sample


def delta(seed, zero=0.3, **shapes):
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for name, shape in (shapes or {"b": (40, 500), "a": (3000,), "c": (200, 100)}).items():
        tensor = torch.randn(shape, generator=generator) ** 3  # heavy tails, as deltas have
        found[name] = tensor * (torch.rand(shape, generator=generator) > zero)
    return found


def served(original, seed, share=0.7):
    """What a mask and a scale leave, and something where there was nothing."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: 1.2 * t * (torch.rand(t.shape, generator=generator) < share)
        + 0.1 * torch.randn(t.shape, generator=generator) * (t == 0)
        for name, t in original.items()
    }


@pytest.mark.parametrize(("zero", "positions"), [(0.0, 3000), (0.3, 3000), (0.9, 3000), (0.0, 38000)])
def test_the_estimate_is_within_its_error_of_the_whole_figure(zero, positions):
    away, wrong = [], []
    for seed in range(20):
        original = delta(seed, zero)
        other = served(original, seed + 100)
        known = sample(original, positions)
        whole, found = reconstruction(original, other), estimate(known, other)
        assert len(known.positions) == positions  # whether or not there are zeros to take a part of them
        assert 0 < found.relative_l2_error < 0.25 * whole.relative_l2
        away.append((found.relative_l2 - whole.relative_l2) / found.relative_l2_error)
        wrong.append(abs(found.sign_agreement - whole.sign_agreement))
    away = torch.tensor(away)
    assert away.abs().max() < 5
    assert 0.5 < away.square().mean().sqrt() < 1.6  # the error that it names is the one that it makes
    assert away.mean().abs() < 0.7
    assert max(wrong) < 0.05


def test_a_sample_of_all_positions_gives_the_figure_itself():
    original, other = delta(0), served(delta(0), 1)
    found, whole = estimate(sample(original, 10**6), other), reconstruction(original, other)
    assert found.relative_l2 == pytest.approx(whole.relative_l2, rel=1e-9)
    assert found.sign_agreement == pytest.approx(whole.sign_agreement)
    assert found.relative_l2_error == 0


def test_nothing_lost_is_nothing_lost_and_zero_deltas_are_told_apart():
    original, zero = delta(0), {"w": torch.zeros(50, 50)}
    same = estimate(sample(original, 500), original)
    assert (same.relative_l2, same.sign_agreement, same.relative_l2_error) == (0, 1, 0)
    assert estimate(sample(zero), zero) == estimate(sample(zero, 100), zero)
    assert estimate(sample(zero), zero).relative_l2 == 0
    assert estimate(sample(zero), {"w": torch.ones(50, 50)}).relative_l2 == float("inf")


def test_a_sample_is_the_same_every_time_whatever_the_order_of_names_and_comes_back_from_its_file():
    original = delta(0)
    one, two = sample(original, 700), sample(dict(reversed(original.items())), 700)
    back = Sample.of(one.tensors())
    for other in (two, back):
        assert one.positions.equal(other.positions)
        assert one.values.equal(other.values)
        assert (one.nonzero, one.total) == (other.nonzero, other.total)
    flat = torch.cat([original[name].flatten() for name in sorted(original)])
    assert flat[one.positions].equal(one.values)
    assert one.nonzero == int(flat.count_nonzero())
    assert len(one.positions) == 700
    assert int((one.values == 0).sum()) == 175


def test_large_tensors_are_read_in_pieces(monkeypatch):
    from condu_ray.merging import fidelity_sample

    original, before = delta(3), sample(delta(3), 900)
    monkeypatch.setattr(fidelity_sample, "_CHUNK", 777)
    assert sample(original, 900).positions.equal(before.positions)


def test_another_delta_or_a_file_that_is_none_is_refused():
    known = sample(delta(0), 100)
    with pytest.raises(DeltaError, match="43003 positions, the one that was sampled 43000"):
        estimate(known, delta(0) | {"d": torch.zeros(3)})
    with pytest.raises(DeltaError, match="empty"):
        sample({})
    swapped = known.positions.clone()
    swapped[[3, 4]] = known.positions[[4, 3]]
    for change in (
        {"positions": known.positions.flip(0)},
        {"positions": swapped},
        {"counts": torch.tensor([1, 5])},
        {"counts": torch.ones(3)},
    ):
        with pytest.raises(ValueError, match="no sample of a delta"):
            Sample.of(known.tensors() | change)
    with pytest.raises(ValueError, match="no sample of a delta"):
        Sample.of({})
