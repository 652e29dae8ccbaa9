"""What is offered of a matrix: the literal twin's corners, and singular vectors as an SVD has them."""

import numpy as np
import pytest
import torch

from condu_ray.merging.codes import reference
from condu_ray.merging.codes.spectrum import _hull, singular, spectrum


def matrix_of(rows, columns, power):
    generator = torch.Generator().manual_seed(rows)
    count = min(rows, columns)
    left, right = (torch.linalg.qr(torch.randn(n, count, generator=generator).double())[0] for n in (rows, columns))
    return (left * torch.arange(1, count + 1) ** -power) @ right.T


@pytest.mark.parametrize("overhead", [0, 13])
@pytest.mark.parametrize(("rows", "columns", "power"), [(12, 5, 0.2), (6, 9, 1.0), (1, 12, 0.0), (9, 1, 0.0)])
def test_the_corners_are_the_literal_twins(rows, columns, power, overhead):
    """Bits, error and signs of each: what is bought by any budget is bought along them."""
    matrix = matrix_of(rows, columns, power)
    wanted = reference.hull(reference.points(matrix, overhead, signs=True))
    found = spectrum(matrix, overhead=overhead).hull
    assert [corner.bits for corner in found] == [point.bits for point in wanted]
    size = float(matrix.square().sum())
    assert [corner.error for corner in found] == pytest.approx([point.error for point in wanted], abs=1e-6 * size)
    assert (found[0].bits, found[0].steps, found[0].signs) == (0, 0, False)


def test_points_on_a_line_have_no_corner_between_them():
    """What is bought at the same rate is bought at once, and of equal bits the least error counts."""
    bits, error = np.array([0, 3, 1, 2, 2, 4]), np.array([9.0, 0.0, 6.0, 5.0, 3.0, 0.0])
    assert _hull(bits, error) == [0, 1]


@pytest.mark.parametrize(("rows", "columns"), [(9, 4), (4, 9), (1, 6), (6, 1), (5, 5)])
def test_singular_vectors_are_an_svds_and_have_one_sign(rows, columns):
    matrix = matrix_of(rows, columns, 0.7)
    left, value, right = singular(matrix)
    u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    assert (left.dtype, value.dtype, right.dtype) == (torch.float32, torch.float64, torch.float32)
    torch.testing.assert_close(value, s)
    torch.testing.assert_close((left.double() * value) @ right.double().T, matrix, rtol=0, atol=1e-6)
    for mine, theirs in ((left, u), (right, vh.T)):
        torch.testing.assert_close((mine.double().T @ theirs).abs(), torch.eye(len(s)).double(), rtol=0, atol=1e-5)
    assert (right.gather(0, right.abs().argmax(dim=0, keepdim=True)) > 0).all()  # U and V may both be turned


def test_what_is_rounding_is_no_component():
    matrix = torch.outer(torch.arange(1.0, 6), torch.arange(2.0, 10)).double()
    assert [part.shape[-1] for part in singular(matrix)] == [1, 1, 1]
