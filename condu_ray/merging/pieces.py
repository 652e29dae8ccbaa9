"""Files of tensors of which pieces are read and written, for what is larger than memory.

A piece is some columns of a tensor's 8 strips (see ``trigger.py``), of whole blocks (see ``blocks.py``), which is
worked on as a tensor of its own that has these columns alone: the same strips, rows and blocks.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast

import torch
from torch import Tensor

from condu_ray.merging.blocks import block_count, total_of_blocks
from condu_ray.merging.delta import DeltaError
from condu_ray.merging.memory import empty
from condu_ray.merging.trigger import trigger_bytes
from condu_ray.merging.unified_file import KEY, UnifiedFileError
from condu_ray.merging.unify import Unification, unify_blocks

PIECE = 1 << 22
"""Positions in hand: with the masks of 11 tasks some 70 MiB."""

_NAMES = {torch.float64: "F64", torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16", torch.uint8: "U8"}
"""Names of dtypes in a safetensors file, in the order in which its writer puts them."""
_DTYPES = {name: dtype for dtype, name in _NAMES.items()}


class Entry(NamedTuple):
    """Where a file has a tensor."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    at: int

    @property
    def numel(self) -> int:
        """Positions."""
        return torch.Size(self.shape).numel()

    @property
    def nbytes(self) -> int:
        """Bytes in the file."""
        return self.numel * self.dtype.itemsize


class TensorFile:
    """A safetensors file of which pieces are read and written; nothing of it is mapped or kept."""

    def __init__(self, file: BinaryIO, entries: dict[str, Entry]) -> None:
        self.file, self.entries = file, entries

    def read(self, name: str, start: int, count: int, out: Tensor) -> None:
        """Read ``count`` values from position ``start`` on into the beginning of a contiguous ``out``."""
        entry = self.entries[name]
        self.file.seek(entry.at + start * entry.dtype.itemsize)
        view = memoryview(out.view(torch.uint8).numpy().data).cast("B")[: count * entry.dtype.itemsize]
        if self.file.readinto(view) != len(view):  # type: ignore[attr-defined]
            raise UnifiedFileError(f"{self.file.name}: ends within {name!r}")

    def write(self, name: str, start: int, values: Tensor) -> None:
        """Write contiguous values from position ``start`` on."""
        entry = self.entries[name]
        self.file.seek(entry.at + start * entry.dtype.itemsize)
        self.file.write(memoryview(values.view(torch.uint8).numpy().data).cast("B"))

    def digest(self, header: str) -> str:
        """The checksum that ``unified_file.checksum`` would give of the whole."""
        inner = hashlib.sha256()
        buffer = torch.empty(1 << 22, dtype=torch.uint8)
        for name in sorted(self.entries):
            entry = self.entries[name]
            inner.update(json.dumps([name, str(entry.dtype), list(entry.shape)]).encode())
            self.file.seek(entry.at)
            left = entry.nbytes
            while left:
                view = memoryview(buffer.numpy().data)[: min(left, len(buffer))]
                if self.file.readinto(view) != len(view):  # type: ignore[attr-defined]
                    raise UnifiedFileError(f"{self.file.name}: ends within {name!r}")
                inner.update(view)
                left -= len(view)
        return hashlib.sha256((header + inner.hexdigest()).encode()).hexdigest()


def open_file(path: Path) -> tuple[TensorFile, dict[str, str]]:
    """Open a safetensors file to read; returns its metadata too."""
    file = path.open("rb")
    try:
        size = path.stat().st_size
        length = int.from_bytes(file.read(8), "little")
        if length > size - 8:
            raise ValueError("it is truncated or no safetensors file")
        found: dict[str, Any] = json.loads(file.read(length))
        metadata = found.pop("__metadata__", {})
        if odd := next((name for name, entry in found.items() if entry["dtype"] not in _DTYPES), None):
            raise ValueError(f"tensor {odd!r} is {found[odd]['dtype']}, not floating-point; a delta has no other")
        entries = {
            name: Entry(_DTYPES[entry["dtype"]], tuple(entry["shape"]), 8 + length + entry["data_offsets"][0])
            for name, entry in found.items()
        }
        if any(entry.at + entry.nbytes > size for entry in entries.values()):
            raise ValueError("it is truncated")
    except (ValueError, KeyError, TypeError) as error:
        file.close()
        raise UnifiedFileError(f"{path}: cannot be read: {error}") from error
    return TensorFile(cast(BinaryIO, file), entries), metadata


def unified_entries(old: TensorFile) -> dict[str, Entry]:
    """A unified delta's file as the entries of the deltas that it is made of."""
    return {name.partition("/")[2]: entry for name, entry in old.entries.items() if name.startswith("unified/")}


def check_layouts(known: Mapping[str, Entry] | None, where: str, new: Mapping[str, Entry], task: str) -> None:
    """Whether a delta has the layout of the earlier ones.

    Args:
        known: Of the earlier ones; None where there is none.
        where: What has them, for messages.
        new: Of the delta.
        task: Its task.

    Raises:
        DeltaError: It has not.
    """
    if not new:
        raise DeltaError(f"task {task!r}: the delta is empty")
    for name, entry in new.items():
        if not entry.dtype.is_floating_point:
            raise DeltaError(f"task {task!r}: tensor {name!r} is {entry.dtype}, not floating-point")
    if known is None:
        return
    if different := sorted(known.keys() ^ new.keys()):
        raise DeltaError(f"task {task!r}: {different[0]!r} is not in both the delta and {where}")
    for name, entry in new.items():
        if entry[:2] != known[name][:2]:
            raise DeltaError(f"task {task!r}: tensor {name!r} is {entry[:2]}, not {known[name][:2]}")


def strips_of(width: int, numel: int, start: int, stop: int) -> Iterator[tuple[int, int, int]]:
    """Of each strip that has positions in columns ``start:stop``: its number, the first position, their number."""
    for k in range(8):
        first = k * width + start
        if (count := min(k * width + stop, numel) - first) > 0:
            yield k, first, count


def read_delta(new: TensorFile, name: str, start: int, stop: int) -> Tensor:
    """Columns ``start:stop`` of a tensor of a delta's file: ``[8, stop - start]``, padded with zeros."""
    return _read_strips(new, name, start, stop)


def read_state(old: TensorFile, name: str, tasks: int, start: int, stop: int) -> tuple[Tensor, Tensor]:
    """Of a unified delta's file the same columns of u ``[8, C]`` and of the masks' rows ``[T, C]``."""
    u, rows = _read_strips(old, f"unified/{name}", start, stop), empty((tasks, stop - start), torch.uint8)
    width = trigger_bytes(old.entries[f"unified/{name}"].numel)
    for index, row in enumerate(rows):
        old.read(f"trigger/{name}", index * width + start, stop - start, row)
    return u, rows


def _read_strips(file: TensorFile, name: str, start: int, stop: int) -> Tensor:
    entry = file.entries[name]
    values = empty((8, stop - start), entry.dtype)  # from malloc, pieces would leave holes as large as themselves
    values[:, max(0, entry.numel - 7 * trigger_bytes(entry.numel) - start) :] = 0  # the last strips may end before
    for k, first, count in strips_of(trigger_bytes(entry.numel), entry.numel, start, stop):
        file.read(name, first, count, values[k])
    return values


def write_state(out: TensorFile, name: str, start: int, u: Tensor, rows: Tensor) -> None:
    """Write columns from ``start`` on, as :func:`read_state` reads them."""
    numel = out.entries[f"unified/{name}"].numel
    width = trigger_bytes(numel)
    for k, first, count in strips_of(width, numel, start, start + u.shape[1]):
        out.write(f"unified/{name}", first, u[k, :count])
    for index, row in enumerate(rows):
        out.write(f"trigger/{name}", index * width + start, row)


def unify_piece(
    rescalers: tuple[float, ...], before: tuple[Tensor, Tensor] | None, d: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Unify a piece.

    Args:
        rescalers: Of the T tasks before.
        before: Their u ``[8, C]`` and masks ``[T, C]``; None where there is no task.
        d: The new delta ``[8, C]``.

    Returns:
        u, the masks ``[T + 1, C]``, and its blocks' sums ``[blocks, T + 2]``.
    """
    state = Unification({}, {}, (), ())
    if before is not None:
        state = Unification({"": before[0].view(-1)}, {"": before[1]}, (0.0,) * len(rescalers), rescalers)
    unified, triggers, sums = unify_blocks(state, {"": d.view(-1)})
    return unified[""].view(d.shape), triggers[""], sums[""]


def size_of(sums: Sequence[Tensor], name: str, numel: int, tasks: int, task: str) -> Tensor:
    """The sums over a tensor from those of its pieces, in their order.

    Args:
        sums: Of each piece, as :func:`unify_piece` gives them.
        name: The tensor's.
        numel: Its positions.
        tasks: The number of tasks before.
        task: The new one, for the message.

    Returns:
        float64 ``[T + 2]``, as :func:`~condu_ray.merging.unify.factors` takes them.

    Raises:
        DeltaError: The delta holds NaN or infinity.
    """
    found = torch.cat([*sums, torch.empty(0, tasks + 2, dtype=torch.float64)])
    assert len(found) == block_count(numel)
    total = total_of_blocks(found)
    if not bool(total[-1].isfinite()):
        raise DeltaError(f"task {task!r}: tensor {name!r} holds NaN or infinity")
    return total


def create(file: BinaryIO, entries: Mapping[str, Entry], tasks: int, header: str) -> TensorFile:
    """Write the head of the file of ``tasks`` tasks, its checksum still to come, and make it as long as it gets."""
    layout: dict[str, tuple[torch.dtype, tuple[int, ...]]] = dict.fromkeys(
        ("norms", "rescalers"), (torch.float64, (tasks,))
    )
    layout |= {f"unified/{name}": entry[:2] for name, entry in entries.items()}
    layout |= {f"trigger/{name}": (torch.uint8, (tasks, trigger_bytes(one.numel))) for name, one in entries.items()}
    ranks = list(_NAMES)
    head: dict[str, Any] = {"__metadata__": {KEY: _marked(header, "0" * 64)}}
    at = 0
    for name in sorted(layout, key=lambda name: (ranks.index(layout[name][0]), name)):
        entry = Entry(*layout[name], at)
        head[name] = {
            "dtype": _NAMES[entry.dtype],
            "shape": list(entry.shape),
            "data_offsets": [at, at + entry.nbytes],
        }
        at += entry.nbytes
    text = json.dumps(head, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    file.write(len(text).to_bytes(8, "little") + text)
    file.truncate(8 + len(text) + at)
    places = {name: Entry(*layout[name], 8 + len(text) + head[name]["data_offsets"][0]) for name in layout}
    return TensorFile(file, places)


def _marked(header: str, fingerprint: str) -> str:
    return json.dumps(json.loads(header) | {"fingerprint": fingerprint}, sort_keys=True)


def mark(out: TensorFile, header: str) -> None:
    """Fill in the checksum, which is as long as what stands there."""
    out.file.flush()
    fingerprint = out.digest(header)
    old, new = (json.dumps(_marked(header, mark), ensure_ascii=False).encode() for mark in ("0" * 64, fingerprint))
    out.file.seek(0)
    head = out.file.read(8 + int.from_bytes(out.file.read(8), "little"))
    place = out.file.tell() - len(head) + head.index(old)
    out.file.seek(place)
    out.file.write(new)
