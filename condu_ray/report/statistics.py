"""Statistics of a sweep: the spread of a method over the orders, and whether two methods differ.

Two methods are compared by Wilcoxon's signed-rank test on the differences at the same order and seed (F. Wilcoxon,
"Individual comparisons by ranking methods", Biometrics Bulletin 1945; recommended for classifiers by J. Demsar, JMLR
2006). What it samples are orders (and seeds) of these tasks: it says nothing about other tasks. Pairs that share an
order but not the seed are counted as pairs of their own.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

#: Decimals (of percent) that count: sums of the same accuracies in another order differ by rounding.
_DECIMALS = 9
#: Level at which a difference is called significant.
ALPHA = 0.05


@dataclass(frozen=True)
class Spread:
    """How a number spreads; all nan (and no keys) where there is no number."""

    count: int  #: numbers, at least 0
    mean: float
    std: float  #: standard deviation of a sample (divided by count - 1); nan for fewer than two
    low: float
    high: float
    worst: Any  #: key of the worst number, the first of equals; None if all numbers are equal
    best: Any  #: key of the best number, the first of equals; None if all numbers are equal


def spread(values: Mapping[Any, float], *, higher_is_better: bool = True) -> Spread:
    """Returns mean, standard deviation, range, and which keys have the worst and the best number.

    Args:
        values: Numbers by key (an order, say); nan counts as not there.
        higher_is_better: False for a number such as forgetting.
    """
    kept = {key: float(value) for key, value in values.items() if not math.isnan(value)}
    if not kept:
        return Spread(0, math.nan, math.nan, math.nan, math.nan, None, None)
    numbers = np.array(list(kept.values()))
    low, high = min(kept, key=lambda key: kept[key]), max(kept, key=lambda key: kept[key])
    worst, best = (low, high) if higher_is_better else (high, low)
    if round(kept[high] - kept[low], _DECIMALS) == 0:
        worst = best = None
    std = float(numbers.std(ddof=1)) if len(kept) > 1 else math.nan
    return Spread(len(kept), float(numbers.mean()), std, kept[low], kept[high], worst, best)


@dataclass(frozen=True)
class PairedTest:
    """Two groups, compared at the keys that both have."""

    first: Any  #: group
    second: Any  #: group
    pairs: int  #: keys that both have
    equal: int  #: pairs whose difference is 0; Wilcoxon's test leaves them out
    difference: float  #: mean of first minus second over all pairs; nan without a pair
    p_value: float  #: exact and two-sided; 1 if all pairs are equal, nan without a pair
    adjusted: float  #: p_value, adjusted by Holm for all comparisons of the call

    @property
    def smallest_p(self) -> float:
        """The smallest p-value that this number of unequal pairs can have: all differences with one sign."""
        return min(1.0, 2.0 ** (1 - (self.pairs - self.equal)))

    def verdict(self) -> str:
        """Returns what the test says at the level `ALPHA`: `yes` or `no`, or why it can say neither.

        It can say neither where there are too few pairs: even if all differences had one sign, the p-value would be
        above the level; or all have one sign, and the adjustment puts it above the level.
        """
        if self.pairs == 0:
            return "no pairs"
        if self.equal == self.pairs:
            return "no (all equal)"
        if self.smallest_p > ALPHA:
            unequal = self.pairs - self.equal
            return f"cannot tell: {unequal} {'pair' if unequal == 1 else 'pairs'}, {pairs_needed(1)} needed"
        if self.adjusted > ALPHA and self.p_value <= self.smallest_p:
            return f"cannot tell: all {self.pairs - self.equal} pairs agree, more are needed"
        return "yes" if self.adjusted <= ALPHA else "no"


def pairs_needed(comparisons: int) -> int:
    """Returns how many unequal pairs the smallest of some p-values needs to be at most `ALPHA` after Holm's adjustment.

    Args:
        comparisons: Comparisons that are adjusted for, at least 1.
    """
    return math.ceil(1 + math.log2(comparisons / ALPHA))


def paired_tests(values: Mapping[Any, Mapping[Any, float]]) -> list[PairedTest]:
    """Compares each pair of groups over the keys that both have.

    P-values are adjusted so that the chance of one false "differs" among all comparisons stays below the level (Holm,
    Scand. J. Statistics 1979).

    Args:
        values: By group, numbers by key (order and seed), of one metric; nan counts as not there.

    Returns:
        The comparisons, in the order of the groups: first with second, first with third, ...
    """
    found = []
    for first, second in itertools.combinations(values, 2):
        differences = _differences(values[first], values[second])
        mean = float(differences.mean()) if len(differences) else math.nan
        equal = int((differences == 0).sum())
        found.append((first, second, len(differences), equal, mean, signed_rank_p(differences)))
    compared = [position for position, entry in enumerate(found) if not math.isnan(entry[-1])]
    p_values = np.array([found[position][-1] for position in compared])
    adjusted = np.full(len(found), math.nan)
    adjusted[compared] = holm(p_values)
    return [PairedTest(*entry, adjusted=float(p)) for entry, p in zip(found, adjusted, strict=True)]


def signed_rank_p(differences: Sequence[float] | np.ndarray) -> float:
    """Returns the exact two-sided p-value of Wilcoxon's signed-rank test.

    It is that of `scipy.stats.wilcoxon(differences, method="exact")`, which is exact only where no two differences
    have the same size; scipy's way with ties takes all 2^n signs one by one (a second for twelve pairs) and
    approximates from fourteen pairs on. Here ties are normal: methods that no order changes have nothing else.

    Args:
        differences: Any number of finite numbers; those that are 0 (to nine decimals) are left out.

    Returns:
        The p-value; 1 if no difference is left, nan if there was none.
    """
    from scipy.stats import rankdata  # longer to load than the rest of a report takes, and only sweeps compare

    rounded = np.round(np.asarray(differences, dtype=np.float64), _DECIMALS)
    if rounded.size == 0:
        return math.nan
    rounded = rounded[rounded != 0]
    # Twice the ranks are whole numbers even where ties share the mean of their ranks.
    ranks = np.rint(2 * rankdata(np.abs(rounded))).astype(int)
    probability = np.ones(1)  # [w]: that the positive ranks sum to w / 2, if each sign is a fair coin
    for rank in ranks:
        probability = (np.pad(probability, (0, rank)) + np.pad(probability, (rank, 0))) / 2
    positive = int(ranks[rounded > 0].sum())
    tail = min(positive, int(ranks.sum()) - positive)
    return min(1.0, 2 * float(probability[: tail + 1].sum()))


def _differences(first: Mapping[Hashable, float], second: Mapping[Hashable, float]) -> np.ndarray:
    differences = [first[key] - second[key] for key in first if key in second]
    return np.round([value for value in differences if not math.isnan(value)], _DECIMALS)


def holm(p_values: np.ndarray) -> np.ndarray:
    """Adjusts p-values by Holm's step-down: the k-th smallest of m times m - k + 1, made monotone, at most 1."""
    order = np.argsort(p_values, kind="stable")
    steps = np.maximum.accumulate(p_values[order] * np.arange(len(p_values), 0, -1))
    adjusted = np.empty(len(p_values))
    adjusted[order] = np.minimum(1.0, steps)
    return adjusted
