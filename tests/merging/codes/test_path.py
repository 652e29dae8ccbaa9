"""What the steps of a matrix's components cost and leave, against every step's matrix built for itself."""

import numpy as np
import pytest
import torch

from condu_ray.merging.codes import path, spectrum
from condu_ray.merging.codes.path import FACTOR_BITS, WIDTH_BITS, climb
from condu_ray.merging.codes.quantiser import quantise


def matrix_of(rows, columns, power):
    generator = torch.Generator().manual_seed(rows)
    count = min(rows, columns)
    left = torch.randn(rows, count, generator=generator) * torch.arange(1, count + 1) ** -power
    return (left @ torch.randn(count, columns, generator=generator)).double()


@pytest.mark.parametrize("together", [1, 7, 64])
@pytest.mark.parametrize(("rows", "columns"), [(20, 9), (5, 40), (1, 30), (12, 1), (1, 1)])
def test_bits_and_errors_are_those_of_what_is_built(monkeypatch, together, rows, columns):
    monkeypatch.setattr(path, "_TOGETHER", together)
    matrix = matrix_of(rows, columns, 0.6)
    left, value, right = spectrum.singular(matrix)
    sides = quantise(left), quantise(right)
    steps, bits, errors = climb(matrix, *sides, value, 11)
    for n in range(1, len(steps) + 1):
        end = steps.end(n)
        assert sorted(set(steps.component[:n].tolist())) == end.component.tolist()
        a, b = (
            one.values[end.component, one.places(width)]
            for one, width in zip(sides, (end.left, end.right), strict=True)
        )
        built = (a.T * torch.from_numpy(end.factor)) @ b
        assert errors[n - 1] == pytest.approx(float((matrix - built).square().sum()), rel=1e-9, abs=1e-12)
        paid = rows * end.left + columns * end.right + FACTOR_BITS + WIDTH_BITS
        assert bits[n - 1] == 11 + paid.sum()
    first = [np.flatnonzero(steps.component == k)[0] for k in range(len(value))]
    assert first[0] == 0  # nothing saves as much as the largest


def test_half_of_a_large_gram_matrix_is_enough(monkeypatch):
    matrix = matrix_of(40, 30, 0.5)
    found, whole = [], matrix.T @ matrix
    for strip in (7, 100):
        monkeypatch.setattr(spectrum, "_STRIP", strip)
        assert torch.allclose(spectrum._lower_gram(matrix).tril(), whole.tril())
        found.append(spectrum.singular(matrix))
    for one, other in zip(*found, strict=True):
        assert torch.allclose(one, other, rtol=1e-5, atol=1e-6)
