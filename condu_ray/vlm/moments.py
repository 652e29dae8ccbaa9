"""What routers are made of: a task's counts, sums and second moments of theta0's image features, exact in any order.

A feature is rounded to a grid of 2^-14, its random features (`ridge`) to one of 2^-10. On a grid sums are sums of whole
numbers, which float64 adds without rounding below 2^53: the same bits for any order of the images and any sharding of
the pass, and what was added can be taken away again. Rounding moves a component of a feature by 2^-15 at most.

Names: ``N`` = images, ``C`` = classes, ``D`` = width of features, ``M`` = random features, ``H`` = images held out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

GRID = 2.0**14
"""Steps of the grid within 1: a component in [-1, 1] is a whole number that 16 bits hold."""
RANDOM, RANDOM_GRID = 1024, 2.0**10
"""Random features of `ridge`, and the steps of their grid within 1."""
HELD, HELD_SHARE, FEW, FEW_SHARE = 200, 0.1, 20, 0.5
"""Images whose features are kept one by one for calibration: a tenth of a task, at most about 200, and about 20 where
half of it are as many."""
TENSORS = ("counts", "sums", "second", "random_sums", "random_second", "held", "held_labels", "held_rows")


@dataclass(frozen=True)
class Moments:
    """Sums over some images of one task, all of them whole numbers on their grid.

    Attributes:
        counts: images a class, int64 [C].
        sums: features a class, float64 [C, D], in steps of `GRID`.
        second: outer products of the features, float64 [D, D], in steps of GRID^2.
        random_sums, random_second: the same of the random features, [C, M] and [M, M], in steps of `RANDOM_GRID`.
        held: features that are kept one by one for calibration, int16 [H, D], in steps of `GRID`; in the sums too.
        held_labels, held_rows: their labels and rows in the task's file, int64 [H], rows ascending.
    """

    counts: Tensor
    sums: Tensor
    second: Tensor
    random_sums: Tensor
    random_second: Tensor
    held: Tensor
    held_labels: Tensor
    held_rows: Tensor

    @classmethod
    def of(cls, grid_ND: Tensor, label_N: Tensor, classes: int, rows: Tensor | None = None, total: int = 0) -> Moments:
        """Sums over images.

        Args:
            grid_ND: `on_grid` of their features.
            label_N: int64, in [0, classes).
            classes: C.
            rows: their rows in the task's file, int64 [N]; None: none of them is held out.
            total: rows of that file.
        """
        exact_ND = grid_ND.double()
        random_NM = random_features(exact_ND)
        kept = held_out(rows, total) if rows is not None else torch.zeros(len(grid_ND), dtype=torch.bool)
        return cls(
            counts=torch.bincount(label_N, minlength=classes),
            sums=_by_class(exact_ND, label_N, classes),
            second=exact_ND.T @ exact_ND,
            random_sums=_by_class(random_NM, label_N, classes),
            random_second=random_NM.T @ random_NM,
            held=grid_ND[kept],
            held_labels=label_N[kept],
            held_rows=rows[kept] if rows is not None else torch.zeros(0, dtype=torch.int64),
        )

    @classmethod
    def empty(cls, classes: int, width: int) -> Moments:
        """Sums over no image."""
        none = torch.zeros(0, dtype=torch.int64)
        return cls.of(torch.zeros(0, width, dtype=torch.int16), none, classes)

    def __add__(self, other: Moments) -> Moments:
        """Sums over both; the images held out come in the order of their rows."""
        rows = torch.cat([self.held_rows, other.held_rows])
        order = rows.argsort(stable=True)
        return Moments(
            counts=self.counts + other.counts,
            sums=self.sums + other.sums,
            second=self.second + other.second,
            random_sums=self.random_sums + other.random_sums,
            random_second=self.random_second + other.random_second,
            held=torch.cat([self.held, other.held])[order],
            held_labels=torch.cat([self.held_labels, other.held_labels])[order],
            held_rows=rows[order],
        )

    def without_held(self) -> Moments:
        """Returns the sums over all images but those held out: what a router is made of that these may judge."""
        own = Moments.of(self.held, self.held_labels, len(self.counts))
        return Moments(
            counts=self.counts - own.counts,
            sums=self.sums - own.sums,
            second=self.second - own.second,
            random_sums=self.random_sums - own.random_sums,
            random_second=self.random_second - own.random_second,
            held=self.held[:0],
            held_labels=self.held_labels[:0],
            held_rows=self.held_rows[:0],
        )

    @property
    def images(self) -> int:
        """How many images are in the sums."""
        return int(self.counts.sum())

    def held_features(self) -> Tensor:
        """Returns the features held out, float32 [H, D]."""
        return self.held.float() / GRID

    def tensors(self) -> dict[str, Tensor]:
        """Returns what storage keeps: of the symmetric matrices the lower triangle, whole numbers as int64."""
        found = {name: getattr(self, name) for name in TENSORS}
        for name in ("second", "random_second"):
            found[name] = found[name][_triangle(len(found[name]))]
        return {name: tensor.long() if tensor.is_floating_point() else tensor for name, tensor in found.items()}

    @classmethod
    def from_tensors(cls, stored: Mapping[str, Tensor]) -> Moments:
        """Reads back bit for bit what `tensors` returned."""
        found = {name: stored[name] for name in TENSORS}
        for name, sums in (("second", "sums"), ("random_second", "random_sums")):
            width = found[sums].shape[1]
            lower = _triangle(width)
            whole = torch.empty(width, width, dtype=torch.float64).masked_scatter_(lower, found[name].double())
            found[name] = torch.where(lower, whole, whole.T)
            found[sums] = found[sums].double()
        return cls(**found)


def on_grid(feature_ND: Tensor) -> Tensor:
    """Rounds L2-normalised features to the grid: int16 [N, D] on the CPU."""
    return (feature_ND.double() * GRID).round().to(torch.int16).cpu()


def held_out(row_N: Tensor, total: int) -> Tensor:
    """Whether each row of a file of so many is held out for calibration: by its number alone, in no visible order.

    Args:
        row_N: int64.
        total: rows of the file.

    Returns:
        Bool [N]; over the whole file about as many as `HELD` and the others say.
    """
    share = min(HELD / max(total, 1), max(HELD_SHARE, min(FEW_SHARE, FEW / max(total, 1))))
    mixed = (row_N + 1) * 0x9E3779B1 & 0xFFFFFFFF  # Knuth's multiplicative hash, golden ratio
    mixed = ((mixed ^ (mixed >> 15)) * 0x85EBCA6B) & 0xFFFFFFFF
    return (mixed ^ (mixed >> 13)) < share * 2**32


def random_features(exact_ND: Tensor) -> Tensor:
    """Rectified random projections of features (RAIL, arXiv 2406.18868), on a grid: exact whatever the batch.

    Args:
        exact_ND: features in steps of `GRID`, float64.

    Returns:
        float64 [N, M], whole numbers in steps of `RANDOM_GRID`.
    """
    return (exact_ND @ _projection(exact_ND.shape[1]) / GRID).clamp(min=0).round()


@cache
def _projection(width: int) -> Tensor:
    """Gaussian weights [D, M], whole numbers in steps of `RANDOM_GRID`; the same ones everywhere."""
    import numpy as np

    drawn = np.random.default_rng(width).standard_normal((width, RANDOM))
    return torch.from_numpy(np.round(drawn * RANDOM_GRID))


def _by_class(exact_NX: Tensor, label_N: Tensor, classes: int) -> Tensor:
    return torch.zeros(classes, exact_NX.shape[1], dtype=torch.float64).index_add_(0, label_N, exact_NX)


def _triangle(width: int) -> Tensor:
    """The lower triangle with its diagonal, bool ``[width, width]``; entries go row by row."""
    return torch.ones(width, width, dtype=torch.bool).tril_()
