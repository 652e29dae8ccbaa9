"""A stream of bits: integers of a given width, one array after the other, most significant bit first."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


class Writer:
    """Collects arrays of integers; `bytes` pads the last byte with zeros."""

    def __init__(self) -> None:
        self._parts: list[NDArray[np.uint8]] = []

    def write(self, values: NDArray[np.integer], width: int) -> None:
        """Appends integers in [0, 2^width), whatever their shape; a width of 0 appends nothing."""
        flat = np.ascontiguousarray(values).reshape(-1)
        if width == 0 or flat.size == 0:
            return
        if width == 1:
            bits = flat.astype(np.uint8)
        else:
            shifts = np.arange(width - 1, -1, -1, dtype=np.int64)
            bits = ((flat.astype(np.int64)[:, None] >> shifts) & 1).astype(np.uint8).reshape(-1)
        self._parts.append(bits)

    def bytes(self) -> NDArray[np.uint8]:
        """Returns all of it, uint8."""
        return np.packbits(np.concatenate(self._parts)) if self._parts else np.zeros(0, dtype=np.uint8)


class Reader:
    """Reads what a `Writer` wrote, in the same order.

    Args:
        stream: uint8.
    """

    def __init__(self, stream: NDArray[np.uint8]) -> None:
        self._stream, self._at = stream, 0

    def read(self, count: int, width: int) -> NDArray[np.int64]:
        """Returns the next `count` integers of a width; zeros for a width of 0.

        Raises:
            ValueError: the stream ends before.
        """
        bits = self._bits(count * width)
        if width == 1:
            return bits.astype(np.int64)
        found = np.zeros(count, dtype=np.int64)
        for column in bits.reshape(count, width).T if width else ():
            found = (found << 1) | column
        return found

    def read_bits(self, count: int) -> NDArray[np.bool_]:
        """Returns the next integers of one bit, as whether they are 1.

        Raises:
            ValueError: the stream ends before.
        """
        return self._bits(count).view(np.bool_)

    def _bits(self, count: int) -> NDArray[np.uint8]:
        begin, end = self._at, self._at + count
        if end > 8 * self._stream.size:
            raise ValueError("the stream of bits ends too early")
        self._at = end
        return np.unpackbits(self._stream[begin // 8 : -(-end // 8)])[begin % 8 : begin % 8 + count]

    def done(self) -> None:
        """Makes sure that nothing but padding is left.

        Raises:
            ValueError: there is more.
        """
        if -(-self._at // 8) != self._stream.size:
            raise ValueError("the stream of bits is longer than what it holds")
