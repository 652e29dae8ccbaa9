"""The unified delta in shards: who merges holds a part of every position's range, and all together what one would.

Unify goes position by position but for two things: the rescalers' denominators, which are sums over all positions, and
the file of a session. For the first a shard gives the sums of its blocks, which are added in the order of
``blocks.py``, whoever computed them; for the second its pieces, one by one. So the file is that of `UnifiedDelta.save`,
byte for byte, for every number of shards.

A shard's part is changed in place: it holds one state, whose identity it knows. A shard with another than is asked for
(it was restarted, or a merge failed) reads its part from the last session's file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from condu_ray.merging.blocks import BLOCK, block_count
from condu_ray.merging.pieces import (
    PIECE,
    Entry,
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
from condu_ray.merging.trigger import trigger_bytes
from condu_ray.merging.unified_file import header_of, read_header
from condu_ray.merging.unify import Rescaler, factors

_TRIES = 3
"""How often a state is computed again whose shards were lost before it was written."""


class ShardLostError(RuntimeError):
    """A shard that has not the state that it is asked for."""


class Span(NamedTuple):
    """Columns ``start:stop`` of a tensor."""

    name: str
    start: int
    stop: int


class Job(NamedTuple):
    """One merge, as a shard is told.

    Attributes:
        parent: identity of the state before; empty before the first task.
        file: what it is read from where a shard has it not; None before the first task.
        rescalers: its tasks'.
        state: identity of the state after.
        delta: what the new delta is read from.
    """

    parent: str
    file: Any
    rescalers: tuple[float, ...]
    state: str
    delta: Any


def cut(entries: Mapping[str, Entry], shards: int, piece: int = 0) -> list[list[Span]]:
    """Shares a delta's positions out, as equally as whole blocks can be, in pieces that are worked on at a time.

    Args:
        entries: Of the delta.
        shards: How many shares; some are empty where there are fewer blocks.
        piece: Positions of a piece at most, but for one block; 0: `PIECE`.
    """
    total = sum(block_count(entry.numel) for entry in entries.values())
    ends = [total * (index + 1) // shards for index in range(shards)]
    found: list[list[Span]] = [[] for _ in range(shards)]
    step, done, index = max(1, (piece or PIECE) // (8 * BLOCK)), 0, 0
    for name in sorted(entries):
        width, block, blocks = trigger_bytes(entries[name].numel), 0, block_count(entries[name].numel)
        while block < blocks:
            while done >= ends[index]:
                index += 1
            count = min(step, blocks - block, ends[index] - done)
            found[index].append(Span(name, block * BLOCK, min((block + count) * BLOCK, width)))
            block, done = block + count, done + count
    return found


class Shard:
    """One share of a unified delta.

    Args:
        path: from what a :class:`Job` names to the file's path here.
    """

    def __init__(self, path: Callable[[Any], Path] = Path) -> None:
        self._path = path
        self._state, self._spans = "", list[Span]()
        self._parts: list[tuple[Tensor, Tensor]] = []

    def unify(self, spans: list[Span], job: Job, again: bool = False) -> list[Tensor]:
        """Merges one more delta into its share.

        Args:
            spans: The share.
            job: The merge.
            again: Whether it was done before, so that a shard that has its result does nothing.

        Returns:
            Of each span the sums of its blocks, ``unify_piece``'s.
        """
        if again and (self._state, self._spans) == (job.state, spans):
            return []
        held = job.file is not None and (self._state, self._spans) == (job.parent, spans)
        with ExitStack() as files:
            delta = files.enter_context(_opened(self._path(job.delta)))
            old = None if held or job.file is None else files.enter_context(_opened(self._path(job.file)))
            self._state, self._spans, sums = "", spans, []  # neither state until all is done
            if not held:
                self._parts = []
            for index, span in enumerate(spans):
                # A piece before and after at a time: all that is read before all that is made would be the state twice.
                before = self._parts[index] if held else _before(old, span, len(job.rescalers))
                u, rows, found = unify_piece(job.rescalers, before, read_delta(delta, *span))
                del before
                self._parts[index : index + 1] = [(u, rows)]
                sums.append(found)
        self._state = job.state
        return sums

    def part(self, index: int, state: str) -> tuple[Tensor, Tensor]:
        """Returns u ``[8, C]`` and the masks ``[T, C]`` of one of its spans.

        Raises:
            ShardLostError: It has another state.
        """
        if self._state != state:
            raise ShardLostError(f"a shard has not the state {state}")
        return self._parts[index]


@contextmanager
def _opened(path: Path) -> Iterator[TensorFile]:
    file, _ = open_file(path)
    with file.file:
        yield file


def _before(old: TensorFile | None, span: Span, tasks: int) -> tuple[Tensor, Tensor] | None:
    return None if old is None else read_state(old, span.name, tasks, span.start, span.stop)


class Group(Protocol):
    """Shards, wherever they are."""

    @property
    def count(self) -> int:
        """How many."""

    def path(self, source: Any) -> Path:
        """Where this process reads what a :class:`Job` names."""

    def ask(self, shard: int, what: str, *given: Any) -> Any:
        """Calls a method of one; returns what `wait` takes."""

    def wait(self, asked: Sequence[Any]) -> list[Any]:
        """Returns the results of calls."""


class Here:
    """Shards in this process, one after the other."""

    def __init__(self, count: int) -> None:
        self._shards = [Shard() for _ in range(count)]
        self.count = count

    def path(self, source: Any) -> Path:
        """As it is named."""
        return Path(source)

    def ask(self, shard: int, what: str, *given: Any) -> Any:
        """Calls at once."""
        return getattr(self._shards[shard], what)(*given)

    def wait(self, asked: Sequence[Any]) -> list[Any]:
        """What the calls gave."""
        return list(asked)


@dataclass(frozen=True)
class ShardedDelta:
    """A unified delta whose tensors are with shards: what is here is what a merge is reduced to.

    Attributes:
        group: the shards.
        entries: names, shapes and dtypes of the deltas.
        tasks: in order.
        rescaler: how deltas are measured.
        norms: as of :class:`~condu_ray.merging.unify.Unification`.
        rescalers: likewise.
        state: its identity.
        file: what it can be read from.
        job: the merge that made it; None where it was read from a file.
    """

    group: Group
    entries: Mapping[str, Entry]
    tasks: tuple[str, ...]
    rescaler: Rescaler
    norms: tuple[float, ...]
    rescalers: tuple[float, ...]
    state: str
    file: Any
    job: Job | None = None

    @classmethod
    def empty(cls, group: Group, rescaler: Rescaler) -> ShardedDelta:
        """Before the first task."""
        return cls(group, {}, (), rescaler, (), (), "", None)

    @classmethod
    def opened(cls, group: Group, file: Any, state: str) -> ShardedDelta:
        """Reads the numbers of a file that was saved; the tensors stay where they are.

        Raises:
            UnifiedFileError: It is no such file.
        """
        path = group.path(file)
        old, metadata = open_file(path)
        with old.file:
            tasks, rescaler = read_header(path, metadata)
            numbers = {name: torch.empty(len(tasks), dtype=torch.float64) for name in ("norms", "rescalers")}
            for name, into in numbers.items():
                old.read(name, 0, len(tasks), into)
            norms, rescalers = (tuple(numbers[name].tolist()) for name in ("norms", "rescalers"))
            return cls(group, unified_entries(old), tasks, rescaler, norms, rescalers, state, file)

    def unify(self, task: str, delta: Any, *, state: str, file: Any) -> ShardedDelta:
        """Unifies one more task.

        Args:
            task: its name, new and not empty.
            delta: what its delta is read from, as the shards find it.
            state: identity of the result.
            file: what the result can be read from once it is saved.

        Raises:
            DeltaError: The delta cannot be merged, as of :func:`~condu_ray.merging.unify.unify`.
            ValueError: The task has no name, or was unified before.
        """
        if not task or task in self.tasks:
            raise ValueError(f"task {task!r} was unified before" if task else "a task needs a name")
        new, _ = open_file(self.group.path(delta))
        new.file.close()
        entries = new.entries
        check_layouts(self.entries if self.tasks else None, "the earlier ones", entries, task)
        job = Job(self.state, self.file, self.rescalers, state, delta)
        shares = cut(entries, self.group.count)
        sums: dict[str, list[Tensor]] = {name: [] for name in sorted(entries)}
        for spans, found in zip(shares, _all(self.group, shares, job), strict=True):
            for span, one in zip(spans, found, strict=True):
                sums[span.name].append(one)
        sizes = [size_of(sums.pop(name), name, entries[name].numel, len(self.tasks), task) for name in sorted(entries)]
        counts, dtype = [entries[name].numel for name in sorted(entries)], next(iter(entries.values())).dtype
        norms, rescalers = factors(self.norms, torch.stack(sizes), counts, self.rescaler, dtype, task)
        return ShardedDelta(self.group, entries, (*self.tasks, task), self.rescaler, norms, rescalers, state, file, job)

    def save(self, path: Path) -> None:
        """Writes the file that `UnifiedDelta.save` would write, a piece at a time, in place.

        Raises:
            OSError: The disk is full or fails.
            ShardLostError: Shards are lost again and again.
        """
        for left in reversed(range(_TRIES)):
            try:
                self._write(path)
                return
            except ShardLostError:
                path.unlink(missing_ok=True)
                if not left or self.job is None:
                    raise
                _all(self.group, cut(self.entries, self.group.count), self.job, True)

    def _write(self, path: Path) -> None:
        header, shares = header_of(self.tasks, self.rescaler), cut(self.entries, self.group.count)
        with path.open("x+b") as file:
            out = create(file, self.entries, len(self.tasks), header)
            for turn in _turns(shares):  # one piece of each shard at a time
                asked = [self.group.ask(shard, "part", index, self.state) for shard, index in turn]
                for (shard, index), (u, rows) in zip(turn, self.group.wait(asked), strict=True):
                    write_state(out, shares[shard][index].name, shares[shard][index].start, u, rows)
            out.write("norms", 0, torch.tensor(self.norms, dtype=torch.float64))
            out.write("rescalers", 0, torch.tensor(self.rescalers, dtype=torch.float64))
            mark(out, header)


def _all(group: Group, shares: Sequence[list[Span]], job: Job, again: bool = False) -> list[Any]:
    return group.wait([group.ask(shard, "unify", spans, job, again) for shard, spans in enumerate(shares)])


def _turns(shares: Sequence[list[Span]]) -> Iterator[list[tuple[int, int]]]:
    for index in range(max(map(len, shares))):
        yield [(shard, index) for shard, spans in enumerate(shares) if index < len(spans)]
