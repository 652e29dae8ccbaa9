"""Sums on a grid: the same bits in any order and sharding, taken away again without a trace, and read back."""

from itertools import pairwise

import pytest
import torch

from condu_ray.vlm.moments import GRID, TENSORS, Moments, held_out, on_grid, random_features

pytestmark = pytest.mark.usefixtures("few_random_features")


def unit(count, seed=0, width=6):
    rows = torch.randn(count, width, generator=torch.Generator().manual_seed(seed)) + 0.5
    return torch.nn.functional.normalize(rows, dim=-1)


def of(features, labels, rows=None, classes=4, total=0):
    return Moments.of(on_grid(features), labels, classes, rows, total)


def same(one, other):
    return all(torch.equal(getattr(one, name), getattr(other, name)) for name in TENSORS)


@pytest.mark.parametrize("seed", range(5))
def test_any_order_and_any_sharding_give_the_same_bits(seed):
    generator = torch.Generator().manual_seed(seed)
    features, labels, rows = unit(60, seed), torch.randint(4, (60,), generator=generator), torch.arange(60)
    whole = of(features, labels, rows, total=60)
    order = torch.randperm(60, generator=generator)
    cuts = [0, *sorted(torch.randint(1, 60, (3,), generator=generator).tolist()), 60]
    chosen = [order[start:stop] for start, stop in pairwise(cuts)]
    parts = [of(features[at], labels[at], rows[at], total=60) for at in chosen]
    total = Moments.empty(4, 6)
    for part in reversed(parts):
        total = total + part
    assert same(total, whole)
    assert same(Moments.from_tensors(total.tensors()), whole)
    assert 0 < len(whole.held) < 60


def test_plain_sums_would_not():
    """Else the grid would be for nothing."""
    features = unit(999).double()
    squares = [torch.stack([torch.outer(row, row) for row in rows]).sum(0) for rows in (features, features.flip(0))]
    assert not torch.equal(*squares)


def test_sums_are_those_of_the_features():
    features, labels = unit(50), torch.arange(50) % 3
    found = of(features, labels)
    assert found.counts.tolist() == [17, 17, 16, 0]
    assert torch.allclose(found.sums[1] / GRID, features[1::3].sum(0).double(), atol=50 / GRID)
    assert torch.allclose(found.second / GRID**2, (features.T @ features).double(), atol=100 / GRID)
    assert found.images == 50
    assert torch.equal(found.sums[3], torch.zeros(6).double())


def test_what_is_held_out_is_taken_out_without_a_trace():
    features, labels, rows = unit(80), torch.arange(80) % 4, torch.arange(80)
    kept = held_out(rows, 80)
    left, others = of(features, labels, rows, total=80).without_held(), of(features[~kept], labels[~kept])
    assert same(left, others)


@pytest.mark.parametrize(("total", "least", "most"), [(1, 0, 1), (10, 2, 8), (400, 20, 70), (40_000, 150, 250)])
def test_how_many_are_held_out(total, least, most):
    rows = torch.arange(total)
    kept = held_out(rows, total)
    assert least <= int(kept.sum()) <= most
    assert torch.equal(kept[total // 2 :], held_out(rows[total // 2 :], total))


def test_random_features_do_not_depend_on_the_batch():
    exact = on_grid(unit(40, width=512)).double()
    whole = random_features(exact)
    assert torch.equal(whole, torch.cat([random_features(row[None]) for row in exact]))
    assert (whole == whole.round()).all()
    assert 0.3 < float((whole > 0).double().mean()) < 0.7
