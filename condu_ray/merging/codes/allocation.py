"""A budget of bits over all tensors: always the corner that saves most squared error a bit, until the budget is spent.

What is bought is the beginning of one list that does not depend on the budget. So a larger budget buys all that a
smaller one did and perhaps more, and the error never grows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

from condu_ray.merging.codes.spectrum import Corner


def allocate(
    hulls: Mapping[str, Sequence[Corner]], budget: float, weights: Mapping[str, float] | None = None
) -> dict[str, Corner]:
    """Chooses a corner for every tensor.

    Args:
        hulls: tensor to its corners, bits rising, error falling at a falling rate; the first is nothing at all.
        budget: bits for all tensors together.
        weights: how often a tensor's squared error counts, by name; a tensor that has none: once.

    Returns:
        A corner a tensor, whose bits together are no more than the budget; but the first of the list is always bought,
        so that something is kept of the smallest delta.
    """
    times = weights or {}
    order = sorted(
        (-times.get(name, 1.0) * (here.error - ahead.error) / (ahead.bits - here.bits), name, number)
        for name, hull in hulls.items()
        for number, (here, ahead) in enumerate(pairwise(hull))
    )
    chosen = {name: hull[0] for name, hull in hulls.items()}
    spent = 0
    for _, name, number in order:
        ahead = hulls[name][number + 1]
        before, spent = spent, spent + ahead.bits - chosen[name].bits
        if before and spent > budget:
            break
        chosen[name] = ahead
    return chosen
