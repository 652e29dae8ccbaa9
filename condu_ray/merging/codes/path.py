"""The order in which the components of a matrix get wider, and what each step costs and leaves.

Each step is that which saves most error a bit, over all components together (water-filling: a component of four times
the energy gets a bit more an entry). That order is decided component by component; the error after each step is that
of all of them together, which touch one another once their vectors are rounded to levels.

Names: ``R`` rows, ``C`` columns, ``L`` either, ``K`` components, ``W`` widths (``A`` of left, ``B`` of right vectors),
``N`` steps.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from condu_ray.merging.codes.part import rounded
from condu_ray.merging.codes.quantiser import Quantised, widths

FACTOR_BITS = 16
"""A component's or a row's factor: bfloat16."""
WIDTH_BITS = 8
"""The two widths of a component."""
_TOGETHER = 64
"""Steps whose vectors are multiplied with all components at once."""

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Path:
    """Steps: a component gets these widths, and with them this factor. Arrays [N]."""

    component: Ints
    left: Ints
    right: Ints
    factor: Floats

    def __len__(self) -> int:
        return len(self.component)

    def end(self, steps: int) -> Path:
        """Returns the components as they are after the first `steps`: a step for each that is there, in their order."""
        _, back = np.unique(self.component[:steps][::-1], return_index=True)
        last = steps - 1 - back
        return Path(self.component[last], self.left[last], self.right[last], self.factor[last])


def climb(
    matrix_RC: Tensor, left: Quantised, right: Quantised, value_K: Tensor, overhead: int
) -> tuple[Path, Ints, Floats]:
    """Returns the steps, and after each the bits and the squared error.

    Args:
        matrix_RC: the matrix, float64.
        left: its left singular vectors.
        right: its right ones.
        value_K: singular values.
        overhead: bits beside.
    """
    (rows, columns), count = matrix_RC.shape, len(value_K)
    a_widths, b_widths = (np.array(widths(length)) for length in (rows, columns))
    match = _matches(matrix_RC, left.values, right.values)
    squares = left.squares.T.numpy()[:, None] * right.squares.T.numpy()[None]
    factor = rounded(torch.from_numpy(match / squares)).double().numpy()
    # How much of a component its levels miss, as if components did not touch one another: this decides the order.
    energy_K = value_K.square().numpy()
    cost = rows * a_widths[:, None] + columns * b_widths[None] + FACTOR_BITS + WIDTH_BITS
    slope, k, a, b = _widen(energy_K - match**2 / squares, energy_K, cost)
    order = np.lexsort((k, -slope))
    k, a, b = k[order], a[order], b[order]

    alpha, then = factor[a, b, k], _Then.of(k, count)
    others_KN = then.of_steps(alpha, 0.0)
    others_KN[k, np.arange(len(k))] = 0
    now_KN, was_KN = (
        x * y for x, y in zip(_products(left.values, k, a, then), _products(right.values, k, b, then), strict=True)
    )
    alone = alpha**2 * squares[a, b, k] - 2 * alpha * match[a, b, k]
    came = alone + 2 * alpha * (others_KN * now_KN).sum(axis=0)
    there, before = then.before >= 0, then.before
    gone = np.where(there, alone[before] + 2 * alpha[before] * (others_KN * was_KN).sum(axis=0), 0.0)
    errors = float(matrix_RC.square().sum()) + np.cumsum(came - gone)
    paid = cost[a, b]
    bits = overhead + np.cumsum(paid - np.where(there, paid[before], 0))
    return Path(k, a_widths[a], b_widths[b], alpha), bits, np.maximum(errors, 0.0)


def _matches(matrix_RC: Tensor, left_KAR: Tensor, right_KBC: Tensor) -> Floats:
    """Products of the matrix with the levels of both sides of a component: [A, B, K]."""
    (rows, columns), (count, a, _), b = matrix_RC.shape, left_KAR.shape, right_KBC.shape[1]
    if rows > columns:
        image_KAC = (left_KAR.flatten(0, 1) @ matrix_RC).view(count, a, columns)
        found_KAB = image_KAC @ right_KBC.mT
    else:
        image_KBR = (right_KBC.flatten(0, 1) @ matrix_RC.T).view(count, b, rows)
        found_KAB = left_KAR @ image_KBR.mT
    found: Floats = found_KAB.permute(1, 2, 0).contiguous().numpy()
    return found


@dataclass(frozen=True)
class _Then:
    """How all components are at each step."""

    source: Ints
    """Steps by component, before a component's first -1: [K + N]."""
    times: Ints
    """At how many steps, one after the other, it is a component's last one before: [K + N]."""
    before: Ints
    """The last step of a step's own component before it, -1: there is none. [N]"""

    @classmethod
    def of(cls, component: Ints, count: int) -> _Then:
        """Reads the steps' components."""
        steps = len(component)
        order = np.argsort(np.append(np.arange(count), component), kind="stable")
        source = np.maximum(order - count, -1)
        until = np.append(source, -1)[1:]
        before = np.empty(steps, dtype=np.int64)
        before[until[until >= 0]] = source[until >= 0]
        return cls(source, np.where(until >= 0, until, steps - 1) - source, before)

    def of_steps(self, values: NDArray[Any], otherwise: float) -> NDArray[Any]:
        """Returns what `values` [N] has of each component's last step before each step: [K, N]."""
        found = np.repeat(np.append(values, otherwise)[self.source], self.times)
        return found.reshape(len(self.source) - len(values), len(values))


def _products(values_KWL: Tensor, component: Ints, width: Ints, then: _Then) -> tuple[Floats, Floats]:
    """Products of a step's vector, and of that which it takes the place of, with those that all components then have.

    A vector meets those that it is ever there with, a third of all: those from before a block, and those of the block.

    Args:
        values_KWL: vectors at all widths.
        component: of each step.
        width: of each step, by its number.
        then: of these components.

    Returns:
        Twice [K, N]; something finite where there is no such vector.
    """
    number_N = _vector_numbers(component, width)
    of_vector = np.unique(number_N, return_index=True)[1]  # the step that brings it
    number_KN = then.of_steps(number_N, -1)
    (count, steps), everyone = number_KN.shape, np.arange(len(number_KN))
    now_KN, was_KN = np.empty((2, count, steps))
    there_KL = values_KWL.new_zeros(count, values_KWL.shape[2])
    gram_KK = np.zeros((count, count))
    for first in range(0, len(of_vector), _TOGETHER):
        block = of_vector[first : first + _TOGETHER]
        new_VL = values_KWL[torch.from_numpy(component[block]), torch.from_numpy(width[block])]
        products = np.empty((count + len(block), count + len(block)))  # of those from before, and of the block
        products[:count, :count] = gram_KK
        products[count:, :count] = cross_VK = (new_VL @ there_KL.T).numpy()
        products[:count, count:] = cross_VK.T
        products[count:, count:] = (new_VL @ new_VL.T).numpy()
        end = of_vector[first + _TOGETHER] if first + _TOGETHER < len(of_vector) else steps
        at = slice(block[0], end)
        places_KN = np.where(number_KN[:, at] < first, everyone[:, None], number_KN[:, at] + (count - first))
        place_N = np.where(number_N[at] < first, component[at], number_N[at] + (count - first))
        rows_KN = len(products) * places_KN
        now_KN[:, at] = products.take(rows_KN + place_N)
        was_KN[:, at] = products.take(rows_KN + places_KN[component[at], np.arange(len(place_N))])
        if end < steps:
            after = np.where(number_KN[:, end] < first, everyone, number_KN[:, end] + (count - first))
            gram_KK = products[after[:, None], after]
            moved = after >= count
            there_KL[torch.from_numpy(moved)] = new_VL[torch.from_numpy(after[moved] - count)]
    return now_KN, was_KN


def _vector_numbers(component: Ints, width: Ints) -> Ints:
    """Numbers the vectors that come with steps, in the order of the steps; a step that leaves a width brings none."""
    order = np.argsort(component, kind="stable")
    pairs = np.stack([component[order], width[order]])
    comes = np.ones(len(order), dtype=np.bool_)
    comes[1:] = (pairs[:, 1:] != pairs[:, :-1]).any(axis=0)
    brought = np.empty_like(order)
    brought[order] = order[np.maximum.accumulate(np.where(comes, np.arange(len(order)), 0))]
    return np.unique(brought, return_inverse=True)[1]


def _widen(errors: Floats, energy_K: Floats, cost: Ints) -> tuple[Floats, Ints, Ints, Ints]:
    """Returns every component's widths (by their numbers) from none to the finest, along its hull.

    Args:
        errors: squared error [A, B, K] of a component at all widths.
        energy_K: that of a component that is not there.
        cost: bits [A, B].

    Returns:
        Squared error saved a bit, component, left and right width of each step; of a component in their order.
    """
    count, width = len(energy_K), cost.shape[1]
    at, spent = energy_K.copy(), np.zeros(count)
    flat_errors, flat_cost = errors.reshape(cost.size, count), cost.reshape(-1, 1)
    found = []
    while True:
        ahead = (flat_cost > spent) & (flat_errors < at)
        slope = np.where(ahead, (at - flat_errors) / np.where(ahead, flat_cost - spent, 1), -1)
        best = slope.argmax(axis=0)
        gain = slope[best, np.arange(count)]
        go = np.flatnonzero(gain > 0)
        if not len(go):
            break
        found.append((gain[go], go, best[go] // width, best[go] % width))
        at[go], spent[go] = flat_errors[best[go], go], flat_cost[best[go], 0]
    empty = np.zeros(0, dtype=np.int64)
    if not found:
        return np.zeros(0), empty, empty, empty
    slopes, *rest = (np.concatenate(each) for each in zip(*found, strict=True))
    return slopes, rest[0], rest[1], rest[2]
