"""Statistics of a sweep, against examples worked out by hand and against scipy."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy.stats import rankdata, wilcoxon

from condu_ray.report.statistics import paired_tests, pairs_needed, signed_rank_p, spread


def keyed(*values: float) -> dict[int, float]:
    return dict(enumerate(values))


def test_spread() -> None:
    found = spread({"a": 2.0, "b": 4.0, "c": 9.0, "d": math.nan})
    assert (found.count, found.mean, found.low, found.high) == (3, 5.0, 2.0, 9.0)
    assert found.std == pytest.approx(math.sqrt((9 + 1 + 16) / 2))
    assert (found.worst, found.best) == ("a", "c")
    turned = spread({"a": 2.0, "b": 4.0, "c": 9.0}, higher_is_better=False)
    assert (turned.worst, turned.best, turned.low) == ("c", "a", 2.0)


def test_the_worst_and_the_best_are_found_by_the_numbers_and_not_by_their_keys() -> None:
    found = spread({"c": 2.0, "a": 9.0, "b": 4.0, "d": 9.0, "e": 2.0})
    assert (found.low, found.high, found.worst, found.best) == (2.0, 9.0, "c", "a")


def test_spread_of_few_or_equal_numbers() -> None:
    assert spread({"a": 3.0, "b": 5.0}).std == pytest.approx(math.sqrt(2))
    one = spread({"a": 3.0})
    assert (one.count, one.mean, one.worst, one.best) == (1, 3.0, None, None)
    assert math.isnan(one.std)
    equal = spread({"a": 0.1 + 0.2, "b": 0.3})  # equal but for rounding
    assert (equal.worst, equal.best) == (None, None)
    for nothing in (spread({}), spread({"a": math.nan})):
        assert nothing.count == 0
        assert math.isnan(nothing.mean)
        assert math.isnan(nothing.std)


@pytest.mark.parametrize(
    ("differences", "expected"),
    [
        ([], math.nan),
        ([0.0, 0.0], 1.0),
        ([5.0], 1.0),  # both signs of one difference are as extreme: 2 of 2
        ([1, 2, 3, 4, 5], 2 / 32),
        ([1, 2, 3, 4, 5, 6], 2 / 64),
        ([-1, -2, -3, -4, -5, -6], 2 / 64),
        ([-1, 2, 3, 4, 5, 6], 4 / 64),  # rank sums 0 and 1, on both sides
        ([0, -1, 2, 0, 3, 4, 5, 6], 4 / 64),  # zeros are left out
        ([1, -2, -3, 4, 5, 6], 2 * (1 + 1 + 1 + 2 + 2 + 3) / 64),  # sums to 5: {}, 1, 2, 3 12, 4 13, 5 14 23
        ([2, 2, 2, 2, 2, 2], 2 / 64),  # ties
        ([2, 2, 2, 2, 2, -2], 2 * 7 / 64),  # one of six ties: none or one of them is negative
        ([1e-12, 1, 2, 3, 4, 5], 2 / 32),  # a difference by rounding is none
    ],
)
def test_signed_rank(differences: list[float], expected: float) -> None:
    assert signed_rank_p(differences) == pytest.approx(expected, nan_ok=True)


def test_signed_rank_is_scipys_without_ties() -> None:
    random = np.random.default_rng(0)
    for count in range(1, 40):
        differences = random.normal(0.3, 1, count)
        assert signed_rank_p(differences) == pytest.approx(wilcoxon(differences, method="exact").pvalue, abs=1e-12)


@pytest.mark.parametrize("seed", range(8))
def test_signed_rank_counts_all_signs_with_ties(seed: int) -> None:
    differences = np.random.default_rng(seed).integers(-3, 4, 9)
    kept = differences[differences != 0]
    ranks = rankdata(np.abs(kept))
    sums = [sum(itertools.compress(ranks, signs)) for signs in itertools.product((0, 1), repeat=len(kept))]
    observed = min(ranks[kept > 0].sum(), ranks[kept < 0].sum())
    assert signed_rank_p(differences) == pytest.approx(min(1, 2 * np.mean(np.array(sums) <= observed)))


# p-values 2/64 (a-b), 2/64 (a-c), 4/64 (b-c).
GROUPS = {
    "a": keyed(100.5, 113, 115, 117, 119, 121),
    "b": keyed(99.5, 111, 112, 113, 114, 115),
    "c": keyed(100, 101, 101, 101, 101, 101),
}


def test_paired() -> None:
    tests = paired_tests(GROUPS)
    assert [(test.first, test.second) for test in tests] == [("a", "b"), ("a", "c"), ("b", "c")]
    assert [test.p_value for test in tests] == pytest.approx([2 / 64, 2 / 64, 4 / 64])
    assert [test.adjusted for test in tests] == pytest.approx([6 / 64] * 3)  # 3 * 2/64 raises 2 * 2/64, 4/64
    assert [test.difference for test in tests] == pytest.approx([21 / 6, 80.5 / 6, 59.5 / 6])
    assert all((test.pairs, test.equal) == (6, 0) for test in tests)


def test_holm_counts_down() -> None:
    count = 9
    low = dict.fromkeys(range(count), 0.0)
    tests = paired_tests({"a": keyed(*range(1, count + 1)), "b": low, "c": keyed(-1, 2, -3, 4, -5, 6, -7, 8, -9)})
    by_pair = {(test.first, test.second): test for test in tests}
    # a-b has 2 / 2^9; a-c is positive where it is not 0, so 2 / 2^5; b-c is near 1.
    assert by_pair["a", "b"].adjusted == pytest.approx(3 * 2 / 2**9)
    assert (by_pair["a", "c"].pairs, by_pair["a", "c"].equal) == (9, 4)
    assert by_pair["a", "c"].adjusted == pytest.approx(2 * 2 / 2**5)
    assert by_pair["b", "c"].adjusted == pytest.approx(by_pair["b", "c"].p_value)


def test_holm_counts_no_groups_without_a_pair_and_stays_a_probability() -> None:
    six = {"a": keyed(1, 2, 3, 4, 5, 6), "b": keyed(0, 0, 0, 0, 0, 0)}
    (alone,), (beside, *others) = paired_tests(six), paired_tests({**six, "c": {9: 1.0}})
    assert beside == alone
    assert (beside.adjusted, beside.verdict()) == (2 / 64, "yes")
    assert [test.verdict() for test in others] == ["no pairs", "no pairs"]
    assert [test.adjusted for test in paired_tests(dict.fromkeys("abc", keyed(1.0)))] == [1.0] * 3


def test_only_common_keys_are_compared() -> None:
    tests = paired_tests({"a": {1: 5.0, 2: 6.0, 3: math.nan}, "b": {2: 4.0, 3: 1.0, 4: 0.0}, "c": {9: 1.0}})
    assert [(test.pairs, test.p_value) for test in tests[:1]] == [(1, 1.0)]
    assert tests[0].difference == 2.0
    assert tests[0].adjusted == 1.0  # pairs of groups that share nothing do not count as comparisons
    for test in tests[1:]:
        assert test.pairs == 0
        assert math.isnan(test.p_value)
        assert math.isnan(test.adjusted)
        assert test.verdict() == "no pairs"
    assert paired_tests({"a": {1: 1.0}}) == []


@pytest.mark.parametrize(
    ("first", "second", "verdict"),
    [
        (keyed(1, 2, 3, 4, 5, 6), keyed(0, 0, 0, 0, 0, 0), "yes"),
        (keyed(-1, 2, 3, 4, 5, 6), keyed(0, 0, 0, 0, 0, 0), "no"),
        (keyed(1, 2, 3, 4, 5), keyed(0, 0, 0, 0, 0), "cannot tell: 5 pairs, 6 needed"),
        (keyed(1, 2, 3, 4, 5, 0), keyed(0, 0, 0, 0, 0, 0), "cannot tell: 5 pairs, 6 needed"),
        (keyed(1), keyed(0), "cannot tell: 1 pair, 6 needed"),
        (keyed(1, 1), keyed(1, 1), "no (all equal)"),
    ],
)
def test_verdict(first: dict[int, float], second: dict[int, float], verdict: str) -> None:
    assert paired_tests({"a": first, "b": second})[0].verdict() == verdict


def test_verdict_after_adjustment() -> None:
    assert [test.verdict() for test in paired_tests(GROUPS)] == [
        "cannot tell: all 6 pairs agree, more are needed",
        "cannot tell: all 6 pairs agree, more are needed",
        "no",
    ]


@pytest.mark.parametrize("comparisons", [1, 2, 3, 15, 91])
def test_pairs_needed(comparisons: int) -> None:
    needed = pairs_needed(comparisons)
    assert comparisons * 2 / 2**needed <= 0.05 < comparisons * 2 / 2 ** (needed - 1)
