"""Levels of every width: the nearest, as the literal twin finds them; by torch and compiled the same bits."""

import math
from itertools import pairwise

import pytest
import torch

from condu_ray.merging.codes import fused, quantiser, reference
from condu_ray.merging.codes.quantiser import MAX_BITS, level_numbers, levels, quantise, tables


@pytest.mark.parametrize("bits", range(1, MAX_BITS + 1))
def test_a_level_is_the_mean_of_what_is_nearest_to_it(bits):
    edge = torch.cat([torch.tensor([-40.0]), (levels(bits)[1:] + levels(bits)[:-1]) / 2, torch.tensor([40.0])]).double()
    density = torch.exp(-edge.square() / 2) / math.sqrt(2 * math.pi)
    share = (torch.special.erf(edge[1:] / math.sqrt(2)) - torch.special.erf(edge[:-1] / math.sqrt(2))) / 2
    assert torch.allclose((density[:-1] - density[1:]) / share, levels(bits), atol=3e-4)


def test_wider_levels_are_nearer():
    vectors = torch.randn(300, 4, generator=torch.Generator().manual_seed(0)).double()
    values = quantise(vectors).values
    missed = [(1 - torch.cosine_similarity(vectors.T, values[:, w], dim=1) ** 2).max() for w in range(MAX_BITS)]
    assert all(fine < 0.4 * coarse for coarse, fine in pairwise(missed))


def vectors(kind, length, count=7):
    generator = torch.Generator().manual_seed(length)
    drawn = torch.randn(length, count, generator=generator)
    if kind == "plain":
        return drawn
    if kind == "tails":
        return drawn**3
    if kind == "one entry":
        return torch.eye(length)[:, :count].contiguous()
    return 3e-4 * drawn.sign()  # one magnitude: every spread is as good as the others


KINDS = ("plain", "tails", "one entry", "one magnitude")
LENGTHS = (1, 2, 3, 30, 257, 1000)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("length", LENGTHS)
def test_compiled_the_same_bits_as_by_torch(kind, length):
    given = vectors(kind, length)
    compiled, plain = (quantise(given, compiled=each) for each in (True, False))
    for name in ("packed", "values", "squares"):
        assert torch.equal(getattr(compiled, name), getattr(plain, name)), name
        assert getattr(compiled, name).dtype == getattr(plain, name).dtype


def test_entries_on_an_edge_and_beyond_all_of_them_fall_into_the_same_bins():
    edges = tables().edges
    near = torch.cat([edges, torch.nextafter(edges, edges + 1), torch.nextafter(edges, edges - 1)])
    entries = torch.cat(
        [near, 0.8 * near, 1.2 * near, torch.tensor([0.0, -0.0, 55.0, -55.0, 1e-300, -1e-300]).double()]
    )
    compiled, plain = (way(entries[None].contiguous(), tables()) for way in (fused.count, quantiser._count))
    for one, other in zip(compiled, plain, strict=True):
        assert torch.equal(one.double(), other.double())
    below = (edges[None] < (entries / 0.8)[:, None]).sum(dim=1)  # the first spread's bins, by their definition
    assert torch.equal(plain[0][0, 0], below)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("length", LENGTHS[:-1])
def test_they_are_the_literal_twins_and_numbers_are_those_of_the_levels(kind, length):
    given = vectors(kind, length, 4).double()
    found = quantise(given)
    for at, width in enumerate(quantiser.widths(length)):
        numbers = level_numbers(found.packed, torch.tensor(width))
        assert torch.equal(levels(width)[numbers.long()], found.values[:, at])
        assert torch.allclose(found.squares[:, at], found.values[:, at].square().sum(dim=1))
        for vector, value in zip(given.T, found.values[:, at], strict=True):
            if length == 1:
                assert value.tolist() == [1.0]
                continue
            wanted = reference._nearest(vector, width)
            if kind in ("plain", "tails") and length > 3:
                assert torch.equal(value, wanted)
            cosines = [float(torch.cosine_similarity(vector, one, dim=0)) for one in (value, wanted)]
            assert cosines[0] == pytest.approx(cosines[1], rel=1e-12)


def test_no_vector_has_no_level():
    found = quantise(torch.zeros(5, 0))
    assert found.packed.shape == (0, 5)
    assert found.values.shape == (0, MAX_BITS, 5)
