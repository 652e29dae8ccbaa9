"""Numbers as people read them."""

import math

import pytest

from condu_ray.report.text import number_text


@pytest.mark.parametrize(
    ("value", "digits", "text"),
    [
        (-0.001, 2, "0.00"),
        (-0.0, 1, "0.0"),
        (-0.06, 1, "-0.1"),
        (12.345, 1, "12.3"),
        (None, 2, "–"),
        (math.inf, 2, "–"),
    ],
)
def test_a_number_is_never_minus_nothing(value, digits, text):
    assert number_text(value, digits) == text
