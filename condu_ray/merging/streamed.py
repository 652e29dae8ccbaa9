"""Unify from file to file, a piece of a tensor at a time: for deltas that are larger than memory.

The file is the one that ``UnifiedDelta.unify`` and ``save`` would write, byte for byte.
"""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast

import torch
from torch import Tensor

from condu_ray.merging.blocks import BLOCK, block_count, block_ranges, total_of_blocks
from condu_ray.merging.delta import DeltaError
from condu_ray.merging.trigger import trigger_bytes
from condu_ray.merging.unified_file import KEY, UnifiedFileError, header_of, read_header
from condu_ray.merging.unify import Rescaler, Unification, factors, unify_blocks

PIECE = 1 << 22
"""Positions in hand: with the masks of 11 tasks some 70 MiB."""

_NAMES = {torch.float64: "F64", torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16", torch.uint8: "U8"}
"""Names of dtypes in a safetensors file, in the order in which its writer puts them."""
_DTYPES = {name: dtype for dtype, name in _NAMES.items()}


class _Entry(NamedTuple):
    """Where a file has a tensor."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    at: int

    @property
    def numel(self) -> int:
        return torch.Size(self.shape).numel()

    @property
    def nbytes(self) -> int:
        return self.numel * self.dtype.itemsize


class _File:
    """A safetensors file of which pieces are read and written; nothing of it is mapped or kept."""

    def __init__(self, file: BinaryIO, entries: dict[str, _Entry]) -> None:
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


def _open(path: Path) -> tuple[_File, dict[str, str]]:
    """Open a safetensors file to read; returns its metadata too."""
    file = path.open("rb")
    try:
        size = path.stat().st_size
        length = int.from_bytes(file.read(8), "little")
        if length > size - 8:
            raise ValueError("it is truncated or no safetensors file")
        found: dict[str, Any] = json.loads(file.read(length))
        metadata = found.pop("__metadata__", {})
        entries = {
            name: _Entry(_DTYPES[entry["dtype"]], tuple(entry["shape"]), 8 + length + entry["data_offsets"][0])
            for name, entry in found.items()
        }
        if any(entry.at + entry.nbytes > size for entry in entries.values()):
            raise ValueError("it is truncated")
    except (ValueError, KeyError, TypeError) as error:
        file.close()
        raise UnifiedFileError(f"{path}: cannot be read: {error}") from error
    return _File(cast(BinaryIO, file), entries), metadata


def unify_file(
    before: Path | None, delta: Path, after: Path, *, task: str, rescaler: Rescaler = "l1", piece: int = PIECE
) -> None:
    """Unify one more task's delta, from files to a file.

    Args:
        before: What :meth:`UnifiedDelta.save` wrote of the earlier tasks; ``None`` for the first task.
        delta: The task's delta, a safetensors file of floating-point tensors.
        after: The file to write; it appears whole or not at all.
        task: The task's name, new.
        rescaler: As in :func:`~condu_ray.merging.unify.unify`.
        piece: Positions in hand at a time.

    Raises:
        UnifiedFileError: A file is damaged or not what it should be.
        DeltaError: The delta does not fit, or holds NaN or infinity; or the result overflows.
        ValueError: The task was unified before, or the rescaler differs.
    """
    new, _ = _open(delta)
    with new.file:
        if before is None:
            _unify(None, (), Unification({}, {}, (), ()), new, after, task, rescaler, piece)
            return
        old, metadata = _open(before)
        with old.file:
            tasks, kept = read_header(before, metadata)
            written = json.loads(metadata[KEY]).get("fingerprint")  # files from before there were checksums have none
            if written is not None and written != old.digest(header_of(tasks, kept)):
                raise UnifiedFileError(f"{before}: content differs from its checksum")
            if task in tasks or rescaler != kept:
                raise ValueError(f"{before}: has task {task!r}" if task in tasks else f"{before}: rescaler is {kept!r}")
            numbers = [torch.empty(len(tasks), dtype=torch.float64) for _ in range(2)]
            for name, into in zip(("norms", "rescalers"), numbers, strict=True):
                old.read(name, 0, len(tasks), into)
            state = Unification({}, {}, *(tuple(into.tolist()) for into in numbers))
            _unify(old, tasks, state, new, after, task, rescaler, piece)


def _unify(
    old: _File | None,
    tasks: tuple[str, ...],
    state: Unification,
    new: _File,
    after: Path,
    task: str,
    rescaler: Rescaler,
    piece: int,
) -> None:
    names = sorted(new.entries)
    _check(old, new, task)
    partial = after.with_name(f".{after.name}.{uuid.uuid4().hex}")
    header = header_of((*tasks, task), rescaler)
    try:
        with partial.open("x+b") as file:
            out = _create(file, new, len(tasks) + 1, header)
            sizes = []
            for name in names:
                sums = [_piece(old, new, out, name, state, *at) for at in block_ranges(new.entries[name].numel, piece)]
                found = torch.cat([*sums, torch.empty(0, len(tasks) + 2, dtype=torch.float64)])
                assert len(found) == block_count(new.entries[name].numel)
                sizes.append(total_of_blocks(found))
                if not bool(sizes[-1][-1].isfinite()):
                    raise DeltaError(f"task {task!r}: tensor {name!r} holds NaN or infinity")
            counts = [new.entries[name].numel for name in names]
            dtype = new.entries[names[0]].dtype
            norms, rescalers = factors(state.norms, torch.stack(sizes), counts, rescaler, dtype, task)
            out.write("norms", 0, torch.tensor(norms, dtype=torch.float64))
            out.write("rescalers", 0, torch.tensor(rescalers, dtype=torch.float64))
            _mark(out, header)
        os.replace(partial, after)
    finally:
        partial.unlink(missing_ok=True)


def _check(old: _File | None, new: _File, task: str) -> None:
    """Whether the delta has the layout of the earlier ones."""
    if not new.entries:
        raise DeltaError(f"task {task!r}: the delta is empty")
    for name, entry in new.entries.items():
        if not entry.dtype.is_floating_point:
            raise DeltaError(f"task {task!r}: tensor {name!r} is {entry.dtype}, not floating-point")
    if old is None:
        return
    known = {name.partition("/")[2]: entry for name, entry in old.entries.items() if name.startswith("unified/")}
    if different := sorted(known.keys() ^ new.entries.keys()):
        raise DeltaError(f"task {task!r}: {different[0]!r} is not in both the delta and {old.file.name}")
    for name, entry in new.entries.items():
        if entry[:2] != known[name][:2]:
            raise DeltaError(f"task {task!r}: tensor {name!r} is {entry[:2]}, not {known[name][:2]}")


def _strips(width: int, numel: int, start: int, stop: int) -> Iterator[tuple[int, int, int]]:
    """Of each strip that has positions in columns ``start:stop``: its number, the first position, their number."""
    for k in range(8):
        first = k * width + start
        if (count := min(k * width + stop, numel) - first) > 0:
            yield k, first, count


def _piece(old: _File | None, new: _File, out: _File, name: str, state: Unification, start: int, stop: int) -> Tensor:
    """Unify columns ``start:stop`` of a tensor; returns the sums of its blocks.

    A piece is worked on as a tensor of its own that has these columns alone: the same strips, rows and blocks.
    """
    assert start % BLOCK == 0
    entry, columns, tasks = new.entries[name], stop - start, len(state.norms)
    width = trigger_bytes(entry.numel)
    d, u = (torch.zeros(8, columns, dtype=entry.dtype) for _ in range(2))
    rows = torch.empty(tasks, columns, dtype=torch.uint8)
    for k, first, count in _strips(width, entry.numel, start, stop):
        new.read(name, first, count, d[k])
        if old is not None:
            old.read(f"unified/{name}", first, count, u[k])
    for index, row in enumerate(rows):
        assert old is not None
        old.read(f"trigger/{name}", index * width + start, columns, row)
    before = state._replace(unified={name: u.view(-1)}, triggers={name: rows}) if old is not None else state
    unified, triggers, sums = unify_blocks(before, {name: d.view(-1)})
    for k, first, count in _strips(width, entry.numel, start, stop):
        out.write(f"unified/{name}", first, unified[name].view(8, columns)[k, :count])
    for index, row in enumerate(triggers[name]):
        out.write(f"trigger/{name}", index * width + start, row)
    return sums[name]


def _create(file: BinaryIO, new: _File, tasks: int, header: str) -> _File:
    """Write the head of the file of ``tasks`` tasks, its checksum still to come, and make it as long as it gets."""
    layout: dict[str, tuple[torch.dtype, tuple[int, ...]]] = dict.fromkeys(
        ("norms", "rescalers"), (torch.float64, (tasks,))
    )
    layout |= {f"unified/{name}": entry[:2] for name, entry in new.entries.items()}
    layout |= {
        f"trigger/{name}": (torch.uint8, (tasks, trigger_bytes(entry.numel))) for name, entry in new.entries.items()
    }
    ranks = list(_NAMES)
    head: dict[str, Any] = {"__metadata__": {KEY: _marked(header, "0" * 64)}}
    at = 0
    for name in sorted(layout, key=lambda name: (ranks.index(layout[name][0]), name)):
        entry = _Entry(*layout[name], at)
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
    entries = {name: _Entry(*layout[name], 8 + len(text) + head[name]["data_offsets"][0]) for name in layout}
    return _File(file, entries)


def _marked(header: str, fingerprint: str) -> str:
    return json.dumps(json.loads(header) | {"fingerprint": fingerprint}, sort_keys=True)


def _mark(out: _File, header: str) -> None:
    """Fill in the checksum, which is as long as what stands there."""
    out.file.flush()
    fingerprint = out.digest(header)
    old, new = (json.dumps(_marked(header, mark), ensure_ascii=False).encode() for mark in ("0" * 64, fingerprint))
    out.file.seek(0)
    head = out.file.read(8 + int.from_bytes(out.file.read(8), "little"))
    place = out.file.tell() - len(head) + head.index(old)
    out.file.seek(place)
    out.file.write(new)
