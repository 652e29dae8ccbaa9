"""TIES' loops over positions, compiled for deltas on a CPU; the same bits as the torch operations in ``ties.py``."""

from __future__ import annotations

import numpy as np

from condu_ray.merging.vectors import compiled


@compiled
def count_digits(bits, prefix, counts):  # type: ignore[no-untyped-def]
    """Count 16 bits of magnitudes of float32, whose patterns are ``bits``, uint32.

    The upper ones if ``prefix`` is negative, else the lower ones of those whose upper ones are ``prefix``.
    """
    size, low, wide = np.uint32(0x7FFFFFFF), np.uint32(0xFFFF), np.uint32(16)
    if prefix < 0:
        for c in range(len(bits)):
            counts[(bits[c] & size) >> wide] += 1
        return
    wanted = np.uint32(prefix)
    for c in range(len(bits)):
        if (bits[c] & size) >> wide == wanted:
            counts[bits[c] & low] += 1


@compiled
def add_trimmed(values, threshold, above, above_number, below, below_number):  # type: ignore[no-untyped-def]
    """Add the values whose magnitude is at least the threshold, and not 0, to the side of their sign."""
    limit, zero = values.dtype.type(threshold), values.dtype.type(0)
    for c in range(len(values)):
        value = values[c]
        large = abs(value) >= limit
        up, down = large and value > zero, large and value < zero
        above[c] += value if up else zero
        below[c] += value if down else zero
        above_number[c] += up
        below_number[c] += down
