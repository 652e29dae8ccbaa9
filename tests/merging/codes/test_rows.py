"""Which rows are meant: read back as they were written, in the bits that budgets count for them."""

import re

import numpy as np
import pytest
import torch

from condu_ray.merging.codes.rows import as_rows, places_bits, read_places, to_tensor, write_places
from condu_ray.merging.codes.stream import Reader, Writer


@pytest.mark.parametrize(
    ("among", "places", "bits"),
    [
        (0, [], 0), (1, [0], 0), (1, [], 0), (7, [], 0), (7, list(range(7)), 0), (2, [1], 1), (2, [0], 1),
        (7, [6], 3), (8, [7], 3), (9, [8], 4), (40, [39], 6), (40, [3, 7, 31], 18), (18, [2, 5, 17], 15),
        (16, [1, 2, 3, 15], 16), (15, [0, 5, 9, 14], 15), (49408, [0, 300, 49407], 48), (5, [0, 1, 3, 4], 5),
    ],
)  # fmt: skip
def test_places_come_back_and_take_the_bits_that_are_counted(among, places, bits):
    """The odd stream before and the number behind are read where they are: no bit too many is taken."""
    at, writer = np.zeros(among, dtype=np.bool_), Writer()
    at[places] = True
    for values in ([1, 0, 1], at, [5]):
        if values is at:
            write_places(writer, at)
        else:
            writer.write(np.array(values), 3)
    assert places_bits(among, len(places)) == bits
    assert writer.bytes().size == -(-(9 + bits + 3) // 8)
    reader = Reader(writer.bytes())
    assert reader.read(3, 3).tolist() == [1, 0, 1]
    assert read_places(reader, among, len(places)).tolist() == at.tolist()
    assert reader.read(1, 3).tolist() == [5]
    reader.done()


@pytest.mark.parametrize(
    ("among", "count", "numbers", "width", "words"),
    [
        (9, 1, [9], 4, "a place outside the tensor"),
        (40, 2, [3, 40], 6, "a place outside the tensor"),
        (40, 2, [3, 3], 6, "not as many as they should be"),
        (5, 3, [1, 0, 1, 0, 0], 1, "not as many as they should be"),
    ],
)
def test_places_that_cannot_be_are_refused(among, count, numbers, width, words):
    writer = Writer()
    writer.write(np.array(numbers), width)
    with pytest.raises(ValueError, match=re.escape(words)):
        read_places(Reader(writer.bytes()), among, count)


@pytest.mark.parametrize("shape", [(), (1,), (7,), (3, 4), (3, 2, 5), (1, 6), (4, 0), (0, 3), (0,)])
def test_rows_go_back_to_where_they_were(shape):
    tensor = torch.arange(1.0, 1 + torch.Size(shape).numel()).reshape(shape)
    rows = as_rows(tensor)
    for live in {0, len(rows) // 2, len(rows)}:
        at = np.arange(len(rows)) >= len(rows) - live
        found = to_tensor(rows[torch.from_numpy(at)], at, shape, torch.float16)
        wanted = (rows * torch.from_numpy(at)[:, None]).reshape(shape).half()
        assert (found.shape, found.dtype) == (shape, torch.float16)
        assert torch.equal(found, wanted)
