"""How much of an expert's delta survives: the original delta against the decoupled one."""

import math
from dataclasses import dataclass

import torch

from condu_ray.merging.delta import Delta, DeltaError, check_delta, check_layout

_CHUNK = 1 << 20
"""Positions at a time, which bounds the float64 temporaries."""


@dataclass(frozen=True)
class Reconstruction:
    """Fidelity of a decoupled delta over all of its parameters."""

    relative_l2: float
    """``||decoupled - original||_2 / ||original||_2``: 0 for a perfect copy. A zero original: 0 if the decoupled delta
    is zero too, else infinity."""
    sign_agreement: float
    """Fraction, in [0, 1], of the positions with a non-zero original whose decoupled value has the same sign (a value
    that was masked out has none). A zero original: 1 if the decoupled delta is zero too, else 0."""
    cosine: float
    """Cosine of the angle between both, in [-1, 1]. 1 if both are zero, 0 if one of them is."""


@torch.no_grad()
def reconstruction(original: Delta, decoupled: Delta) -> Reconstruction:
    """Compare a decoupled delta with the delta it stands for.

    Args:
        original: The task's own delta, any floating dtype.
        decoupled: ``UnifiedDelta.decouple`` of the task: same names, shapes, dtypes and device.

    Returns:
        Measures over the whole delta, summed in float64.

    Raises:
        DeltaError: The layouts differ, the delta is empty, one of both holds NaN or infinity, or squares overflow.
    """
    check_layout(decoupled, like=original)
    original_sq = decoupled_sq = error_sq = dot = 0.0
    agreeing = counted = 0
    for name, tensor in original.items():
        flat_a, flat_b = tensor.detach().reshape(-1), decoupled[name].detach().reshape(-1)
        for start in range(0, flat_a.numel(), _CHUNK):
            a, b = flat_a[start : start + _CHUNK].double(), flat_b[start : start + _CHUNK].double()
            original_sq += float(a.dot(a))
            decoupled_sq += float(b.dot(b))
            dot += float(a.dot(b))
            counted += int(a.count_nonzero())
            agreeing += int(((a > 0) & (b > 0)).count_nonzero() + ((a < 0) & (b < 0)).count_nonzero())
            difference = b.sub_(a)
            error_sq += float(difference.dot(difference))
    if not math.isfinite(original_sq + decoupled_sq):  # min and max below would make a cosine of 1 of NaN
        for which, delta in (("original", original), ("decoupled", decoupled)):
            try:
                check_delta(delta)
            except DeltaError as error:
                raise DeltaError(f"the {which} {error}") from None
        raise DeltaError("the squares of the deltas overflow float64")
    if original_sq == 0:
        same = decoupled_sq == 0
        return Reconstruction(0.0 if same else math.inf, float(same), float(same))
    cosine = dot / math.sqrt(original_sq) / math.sqrt(decoupled_sq) if decoupled_sq > 0 else 0.0
    # Rounding may leave [-1, 1] by an ulp.
    return Reconstruction(math.sqrt(error_sq / original_sq), agreeing / counted, max(-1.0, min(1.0, cosine)))
