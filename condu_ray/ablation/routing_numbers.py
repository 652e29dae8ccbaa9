"""What the ablation of routing sums up: accuracies with intervals, areas under curves.

Intervals are of 95 %, by a paired bootstrap over each task's images.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

KNOWN, PAPER, ZERO_SHOT = "task known", "paper", "zero-shot"
Right = Mapping[str, Mapping[str, list[np.ndarray]]]
"""By protocol and rule, whether each image of each task is told right; learned tasks come first."""
RESAMPLES = 2000
"""Bootstrap samples behind an interval."""


def summarise(right: Right, learned: Sequence[str], asked: Mapping[str, float]) -> list[dict[str, Any]]:
    """Returns a row a protocol and rule: accuracy, points above the paper's rule, and share of the task known.

    Intervals are of 95 %, by a paired bootstrap over each task's images.

    Args:
        right: protocol -> rule -> a task's images each, whether they are told right; learned tasks come first.
        learned: the learned tasks.
        asked: rule -> experts asked an image.
    """
    rows, seen = [], len(learned)
    known = right["own"][KNOWN]
    for protocol, by_rule in right.items():
        for name, images in by_rule.items():
            row: dict[str, Any] = {"protocol": protocol, "rule": name, "asked": asked.get(name)}
            for part, chosen in (("learned", slice(0, seen)), ("unlearned", slice(seen, None))):
                own, paper = images[chosen], by_rule[PAPER][chosen]
                row[part] = 100 * float(np.mean([one.mean() for one in own])) if own else None
                row[f"{part}_gain"] = interval(own, paper)[:3] if own else None
            row["share"] = interval(images[:seen], known)[3:]
            rows.append(row)
    return rows


def transfer(told: Sequence[tuple[int, Right]]) -> list[dict[str, Any]]:
    """Returns a row a protocol and rule: accuracy on unlearned tasks, the mean over sessions that have some.

    Args:
        told: of each session, how many tasks are learned, and who is right about which image.

    Returns:
        Dicts of `protocol`, `rule`, `accuracy` in percent, `over_paper` and `over_zero_shot`: points above the paper's
        rule and theta0, each with its 95 % interval by a paired bootstrap over each task's images, the same ones in all
        sessions. Rules that not all sessions have are left out.
    """
    partly = [(learned, right) for learned, right in told if learned < len(right["own"][PAPER])]
    rows: list[dict[str, Any]] = []
    for protocol in ("own", "union") if partly else ():
        common = [name for name in partly[0][1][protocol] if all(name in right[protocol] for _, right in partly)]
        for name in common:
            if name == KNOWN:
                continue
            row: dict[str, Any] = {"protocol": protocol, "rule": name}
            of_rule = [(learned, right[protocol][name]) for learned, right in partly]
            row["accuracy"] = _mean_over_sessions(of_rule)[0]
            for key, other in (("over_paper", PAPER), ("over_zero_shot", ZERO_SHOT)):
                pairs = [(learned, right[protocol][name], right[protocol][other]) for learned, right in partly]
                row[key] = _mean_over_sessions([
                    (learned, [own.astype(float) - against for own, against in zip(mine, theirs, strict=True)])
                    for learned, mine, theirs in pairs
                ])  # fmt: skip
            rows.append(row)
    return rows


def _mean_over_sessions(values: Sequence[tuple[int, Sequence[np.ndarray]]]) -> list[float]:
    """The mean over sessions of that over unlearned tasks of that over images, in percent, and its 95 % interval."""
    generator, whole, sample = np.random.default_rng(0), 0.0, np.zeros(RESAMPLES)
    for column in range(len(values[0][1])):
        parts = [
            images[column].astype(float) / (len(values) * (len(images) - learned))
            for learned, images in values if learned <= column
        ]  # fmt: skip
        if parts:  # an image's part of the mean, in all sessions together
            levels, counts = np.unique(np.sum(parts, axis=0).round(9), return_counts=True)
            whole += float(levels @ counts) / counts.sum()
            sample += generator.multinomial(counts.sum(), counts / counts.sum(), RESAMPLES) @ levels / counts.sum()
    return [100 * float(one) for one in (whole, *np.percentile(sample, [2.5, 97.5]))]


def interval(own: Sequence[np.ndarray], other: Sequence[np.ndarray]) -> list[float]:
    """Compares two rules on the same images, tasks counting alike.

    Args:
        own: of each task, whether each of its images is told right, bool.
        other: the same by another rule.

    Returns:
        Difference in points and its 95 % interval, then share of the other in percent and its interval.
    """
    generator = np.random.default_rng(0)
    pairs = [np.bincount(2 * a.astype(int) + b, minlength=4) for a, b in zip(own, other, strict=True)]
    drawn = [generator.multinomial(count.sum(), count / count.sum(), RESAMPLES) / count.sum() for count in pairs]
    whole = [(count / count.sum())[None] for count in pairs]
    found: list[float] = []
    (mine, theirs), (mine_0, theirs_0) = (
        [np.mean([part[:, bits].sum(axis=1) for part in parts], axis=0) for bits in ([2, 3], [1, 3])]
        for parts in (drawn, whole)
    )
    for value, sample in (
        (mine_0 - theirs_0, mine - theirs),
        (mine_0 / np.maximum(theirs_0, 1e-9), mine / np.maximum(theirs, 1e-9)),
    ):
        found += [100 * float(one) for one in (value[0], *np.percentile(sample, [2.5, 97.5]))]
    return found


def auroc(new_N: Tensor, old_N: Tensor) -> float:
    """The area under the ROC curve: how often a new image has more evidence than an old one, ties half."""
    both = torch.cat([new_N, old_N])
    _, inverse, counts = both.unique(return_inverse=True, return_counts=True)
    rank = (counts.cumsum(0).double() - (counts.double() - 1) / 2)[inverse]
    return float((rank[: len(new_N)].sum() - len(new_N) * (len(new_N) + 1) / 2) / (len(new_N) * len(old_N)))


def area(points: Sequence[Sequence[float]]) -> float:
    """The area under accuracy on learned against accuracy on unlearned tasks, in percent^2 / 100, 0 ... 100.

    Of points with one accuracy on unlearned tasks the curve reaches the highest first, and leaves from the lowest.
    """
    ordered = sorted(((unseen, seen) for seen, unseen in points), key=lambda point: (point[0], -point[1]))
    found, (left, height) = 0.0, (0.0, max(seen for seen, _ in points))
    for unseen, seen in ordered:
        found += (unseen - left) * (seen + height) / 2
        left, height = unseen, seen
    return found / 100
