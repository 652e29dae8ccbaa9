"""A stream of bits gives back what was written, in the same order, and says where it ends too early or too late."""

import numpy as np
import pytest

from condu_ray.merging.codes.stream import Reader, Writer

WIDTHS = (3, 1, 0, 6, 1, 16, 8, 2, 31)


def written():
    """Arrays of every width with both ends of its range, and their stream."""
    writer, drawn, arrays = Writer(), np.random.default_rng(0), []
    for place, width in enumerate(WIDTHS):
        values = np.append(drawn.integers(0, 1 << width, place % 4), [0, (1 << width) - 1])
        arrays.append(values)
        writer.write(values, width)
    return arrays, writer.bytes()


def test_what_was_written_comes_back():
    arrays, stream = written()
    assert stream.size == -(-sum(len(values) * width for values, width in zip(arrays, WIDTHS, strict=True)) // 8)
    reader = Reader(stream)
    for values, width in zip(arrays, WIDTHS, strict=True):
        if width == 1:
            assert reader.read_bits(len(values)).tolist() == values.astype(bool).tolist()
        else:
            assert reader.read(len(values), width).tolist() == values.tolist()
    reader.done()


def test_the_most_significant_bit_is_first():
    """Or files that were written before would be read as others."""
    writer = Writer()
    writer.write(np.array([[5, 1], [0, 6]]), 3)
    writer.write(np.array([True, False]), 1)
    assert writer.bytes().tolist() == [0b10100100, 0b01101000]
    assert Writer().bytes().tolist() == []


def test_a_stream_of_another_length_is_refused():
    _, stream = written()
    reader = Reader(stream)
    with pytest.raises(ValueError, match="ends too early"):
        reader.read(8 * stream.size + 1, 1)
    reader.read(8 * stream.size - 8, 1)
    with pytest.raises(ValueError, match="longer than what it holds"):
        reader.done()
    reader.read(1, 1)  # the rest may be padding
    reader.done()
    assert reader.read(0, 5).tolist() == []
