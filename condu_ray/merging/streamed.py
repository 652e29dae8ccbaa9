"""Unify from file to file, a piece of a tensor at a time: for deltas that are larger than memory.

The file is the one that ``UnifiedDelta.unify`` and ``save`` would write, byte for byte.
"""

from __future__ import annotations

import json
import os
import uuid
from pathlib import Path
from typing import get_args

import torch
from torch import Tensor

from condu_ray.merging.blocks import BLOCK, block_ranges
from condu_ray.merging.pieces import (
    PIECE,
    TensorFile,
    check_layouts,
    create,
    mark,
    open_file,
    read_delta,
    read_state,
    size_of,
    unified_entries,
    unify_piece,
    write_state,
)
from condu_ray.merging.unified_file import KEY, UnifiedFileError, header_of, read_header
from condu_ray.merging.unify import Rescaler, Unification, factors


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
        ValueError: The task was unified before or has no name, or the rescaler is unknown or differs.
    """
    if not task:
        raise ValueError("a task needs a name")
    if rescaler not in get_args(Rescaler):  # of which no file can be read again
        raise ValueError(f"rescaler {rescaler!r} is not one of {', '.join(map(repr, get_args(Rescaler)))}")
    new, _ = open_file(delta)
    with new.file:
        if before is None:
            _unify(None, (), Unification({}, {}, (), ()), new, after, task, rescaler, piece)
            return
        old, metadata = open_file(before)
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
    old: TensorFile | None,
    tasks: tuple[str, ...],
    state: Unification,
    new: TensorFile,
    after: Path,
    task: str,
    rescaler: Rescaler,
    piece: int,
) -> None:
    names = sorted(new.entries)
    known = None if old is None else unified_entries(old)
    check_layouts(known, "" if old is None else old.file.name, new.entries, task)
    partial = after.with_name(f".{after.name}.{uuid.uuid4().hex}")
    header = header_of((*tasks, task), rescaler)
    try:
        with partial.open("x+b") as file:
            out = create(file, new.entries, len(tasks) + 1, header)
            sizes = []
            for name in names:
                sums = [_piece(old, new, out, name, state, *at) for at in block_ranges(new.entries[name].numel, piece)]
                sizes.append(size_of(sums, name, new.entries[name].numel, len(tasks), task))
            counts = [new.entries[name].numel for name in names]
            dtype = new.entries[names[0]].dtype
            norms, rescalers = factors(state.norms, torch.stack(sizes), counts, rescaler, dtype, task)
            out.write("norms", 0, torch.tensor(norms, dtype=torch.float64))
            out.write("rescalers", 0, torch.tensor(rescalers, dtype=torch.float64))
            mark(out, header)
        os.replace(partial, after)
    finally:
        partial.unlink(missing_ok=True)


def _piece(
    old: TensorFile | None, new: TensorFile, out: TensorFile, name: str, state: Unification, start: int, stop: int
) -> Tensor:
    """Unify columns ``start:stop`` of a tensor; returns the sums of its blocks."""
    assert start % BLOCK == 0
    before = None if old is None else read_state(old, name, len(state.norms), start, stop)
    u, rows, sums = unify_piece(state.rescalers, before, read_delta(new, name, start, stop))
    write_state(out, name, start, u, rows)
    return sums
