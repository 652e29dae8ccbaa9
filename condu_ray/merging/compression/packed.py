"""What is kept of a delta in few bits: a code, a dict of tensors whose bytes are exactly what is stored.

Names, shapes and dtypes are not in a code: whoever decodes has theta0, which has them. A row that is zero throughout (a
token that no prompt of the task has) takes its bit in a map of rows and no more, and comes back as zero; no paper here
says so, and all rules here get it alike.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from condu_ray.merging.averaging import DeltaSource, each_delta, layout_of
from condu_ray.merging.chunks import wide_dtype
from condu_ray.merging.codes.rows import as_rows, live_rows
from condu_ray.merging.delta import Delta, DeltaError, check_delta
from condu_ray.merging.trigger import pack, unpack

Code = dict[str, Tensor]
"""Packed tensors; those of a parameter are named ``<parameter>/<what>``."""


def nbytes(code: Mapping[str, Tensor]) -> int:
    """Bytes of a code."""
    return sum(tensor.nbytes for tensor in code.values())


@dataclass(frozen=True)
class Compressed:
    """Several tasks' deltas in few bits, of which some may be shared by all.

    Attributes:
        shared: What the tasks share; empty where they share nothing.
        codes: What is kept of each task alone, in the order of learning; empty codes where one model serves all.
        like: Names, shapes and dtypes of a delta; its values are never read, and take no memory.
        bring_back: From ``shared``, a task's code and ``like`` to its delta.
    """

    shared: Code
    codes: dict[str, Code]
    like: Delta = field(repr=False)
    bring_back: Callable[[Code, Code, Delta], dict[str, Tensor]] = field(repr=False)

    def decode(self, task: str) -> dict[str, Tensor]:
        """The delta that stands for a task, new tensors of the deltas' names, shapes and dtypes.

        Raises:
            KeyError: There is no such task.
            DeltaError: A value overflows float16.
        """
        found = self.bring_back(self.shared, self.codes[task], self.like)
        if any(tensor.dtype == torch.float16 for tensor in found.values()):
            check_delta(found, task=task)
        return found

    @property
    def shared_nbytes(self) -> int:
        """Bytes that all tasks share."""
        return nbytes(self.shared)

    def nbytes(self, task: str) -> int:
        """Bytes of one task alone."""
        return nbytes(self.codes[task])


def alone(
    compress: Callable[..., Code], decode: Callable[[Code, Delta], dict[str, Tensor]]
) -> Callable[..., Compressed]:
    """Makes a rule for one delta one for several, which share nothing."""

    def compress_all(deltas: Mapping[str, DeltaSource], **options: float) -> Compressed:
        codes: dict[str, Code] = {}
        like: Delta = {}
        for task, delta in each_delta(deltas):
            like = like or layout_of(delta)
            codes[task] = compress(delta, task=task, **options)
            del delta
        return Compressed({}, codes, like, lambda shared, code, like: decode(code, like))

    return compress_all


def live(code: Code, delta: Delta) -> Iterator[tuple[str, Tensor]]:
    """Notes in a code which rows of each tensor are zero, and gives the values of the others.

    Args:
        code: Gets ``<parameter>/rows`` of each tensor of two or more dimensions that has rows of zeros, one bit a row.
        delta: Any floating dtype.

    Yields:
        Name and values of each tensor, flat, float32 or float64.
    """
    for name, tensor in delta.items():
        values = tensor.detach().to(wide_dtype(tensor.dtype))
        if tensor.ndim >= 2 and tensor.numel():
            kept_R = live_rows(values)
            if not kept_R.all():
                code[f"{name}/rows"] = pack(kept_R)
                values = as_rows(values)[kept_R]
        yield name, values.reshape(-1)


def live_count(code: Code, name: str, like: Tensor) -> int:
    """How many values of a tensor :func:`live` gave."""
    rows = code.get(f"{name}/rows")
    return like.numel() if rows is None else int(unpack(rows, (len(like),)).sum()) * (like.numel() // len(like))


def whole(code: Code, name: str, values: Tensor, like: Tensor) -> Tensor:
    """A tensor of whose values :func:`live` gave those: the inverse.

    Args:
        code: What it noted in.
        name: Of the tensor.
        values: Flat.
        like: A tensor of its shape and dtype.

    Returns:
        A new tensor of the shape, dtype and device of ``like``.
    """
    rows = code.get(f"{name}/rows")
    if rows is None:
        return values.to(like.dtype, copy=True).view(like.shape)
    found = torch.zeros(like.shape, dtype=like.dtype, device=like.device)
    kept_R = unpack(rows, (len(like),))
    width = like.numel() // len(like)  # not -1, which no row at all leaves open: a matrix that a task did not touch
    found.view(len(like), width)[kept_R] = values.to(like.dtype).view(-1, width)
    return found


def pack_levels(levels: Tensor, bits: int) -> Tensor:
    """Integers in ``[0, 2**bits)``, flat, to ``uint8`` ``[bits, ceil(n / 8)]``: a row for each binary digit."""
    return torch.stack([pack(levels >> digit & 1 > 0) for digit in range(bits)])


def unpack_levels(rows: Tensor, count: int) -> Tensor:
    """The inverse of :func:`pack_levels`: ``int32`` ``[count]``."""
    found = torch.zeros(count, dtype=torch.int32, device=rows.device)
    for digit, row in enumerate(rows):
        found |= unpack(row, (count,)).to(torch.int32) << digit
    return found


def check_bits(bits: int) -> None:
    """Refuses a width that no quantiser here has.

    Raises:
        ValueError: It is not an integer from 1 to 16.
    """
    if bits not in range(1, 17):
        raise ValueError(f"{bits} bits a value: give an integer from 1 to 16")


def check_one(delta: Delta, task: str | None) -> None:
    """As :func:`~condu_ray.merging.delta.check_delta`; and the names must leave room for those of a code.

    Raises:
        DeltaError: As there; or a name has a slash.
    """
    check_delta(delta, task=task)
    if wrong := next((name for name in delta if "/" in name), None):
        raise DeltaError(f"tensor {wrong!r} has a slash in its name, which codes have between name and part")
