"""A tensor as rows: what an output unit, a token or a position has; rows that are all zero are left out."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from condu_ray.merging.codes.stream import Reader, Writer


def as_rows(tensor: Tensor) -> Tensor:
    """Returns a tensor as [R, C]: its first dimension, and all others; a vector or a number is one row."""
    return tensor.reshape(row_shape(tuple(tensor.shape)))


def live_rows(tensor: Tensor) -> Tensor:
    """Returns which rows have anything but zeros: bool [R], on the tensor's device."""
    return as_rows(tensor.detach()).ne(0).any(dim=1)


def row_shape(shape: tuple[int, ...]) -> tuple[int, int]:
    """Returns the shape that `as_rows` gives."""
    count = int(np.prod(shape, dtype=np.int64))
    rows = shape[0] if len(shape) > 1 else 1
    return rows, count // rows if rows else 0


def places_bits(among: int, count: int) -> int:
    """Returns the bits that `write_places` takes for `count` places; all of them and none take no bit."""
    return 0 if count in (0, among) else min(among, count * _width(among))


def write_places(writer: Writer, at: NDArray[np.bool_]) -> None:
    """Writes which places are meant, as a bit each or as their numbers, whichever is less; their count is not."""
    count, among = int(at.sum()), at.size
    if count in (0, among):
        return
    if count * _width(among) < among:
        writer.write(np.flatnonzero(at), _width(among))
    else:
        writer.write(at.astype(np.uint8), 1)


def read_places(reader: Reader, among: int, count: int) -> NDArray[np.bool_]:
    """Reads what `write_places` wrote.

    Raises:
        ValueError: it is not that.
    """
    at = np.zeros(among, dtype=np.bool_)
    if count == among:
        return ~at
    if count and count * _width(among) < among:
        numbers = reader.read(count, _width(among))
        if numbers.max() >= among:
            raise ValueError("a place outside the tensor")
        at[numbers] = True
    elif count:
        at = reader.read_bits(among)
    if int(at.sum()) != count:
        raise ValueError("places that are not as many as they should be")
    return at


def _width(among: int) -> int:
    return max(1, (among - 1).bit_length())


def to_tensor(rows_RC: Tensor, at: NDArray[np.bool_], shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Puts rows back where they were, the others zero, in a tensor's shape and dtype."""
    if at.size and at.all():
        return rows_RC.to(dtype).reshape(shape).contiguous()
    whole = torch.zeros(row_shape(shape), dtype=dtype)
    if rows_RC.numel():
        whole[torch.from_numpy(at)] = rows_RC.to(dtype)
    return whole.reshape(shape)
