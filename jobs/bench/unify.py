"""Time and peak memory of unify and decouple beside a copy of the bytes that they move, and beside the literal twin.

``python jobs/bench/unify.py --params 1000000 20000000 --tasks 2 11 32 100 --json FILE``. Every size and number of tasks
runs in a fresh process. Before a time is taken the result is held against torch's path (every bit) and, on a part of
every tensor, against the literal twin. The sides take turns; a figure is the median of the turns.

Like is beside like: unify as it is, whose results are new tensors, beside a copy into fresh memory (the pages must be
had from the system; large ones, as unify asks for), and the same work into memory that is there beside such a copy,
which is what the machine's memory gives at most.

``--disk PARAMS`` instead unifies the second of two random deltas of that size from file to file in a process that may
not have more than ``--limit-gib`` of memory of its own (RLIMIT_DATA), and shows its peak.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import multiprocessing
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[2]))

import condu_ray.merging.unify as module
from condu_ray.merging.blocks import BLOCK
from condu_ray.merging.memory import empty
from condu_ray.merging.reference import Reference
from condu_ray.merging.trigger import pack, trigger_bytes, unpack
from condu_ray.merging.unify import Unification, decouple, unify
from jobs.bench.unify_disk import SHARES, disk, status

CHECKED = 40 * 8 * BLOCK
"""Positions of a tensor that the literal twin checks."""
LITERAL = 400_000_000
"""Positions times tasks up to which the literal twin is timed: it takes some 20 bytes for each."""


def make(params: int, tasks: int) -> tuple[Unification, dict[str, Tensor]]:
    """A unification of ``tasks - 1`` tasks with random bits, and a delta; values of about 1e-3, some exactly 0."""
    generator = torch.Generator().manual_seed(0)
    unified, triggers, delta = {}, {}, {}
    for index, share in enumerate(SHARES):
        name, count = str(index), int(params * share) // 8 * 8
        unified[name], delta[name] = (torch.empty(count).normal_(0, 1e-3, generator=generator) for _ in range(2))
        delta[name][::20] = 0
        triggers[name] = torch.empty(tasks - 1, trigger_bytes(count), dtype=torch.uint8).random_(generator=generator)
    rescalers = torch.rand(tasks - 1, generator=generator, dtype=torch.float64).add(0.5).tolist()
    return Unification(unified, triggers, (1.0,) * (tasks - 1), tuple(rescalers)), delta


@contextmanager
def by_torch() -> Iterator[None]:
    """What is inside goes by torch's path."""
    before = module.FUSED_FROM, module.FUSED_AFTER
    module.FUSED_FROM = module.FUSED_AFTER = 1 << 62
    try:
        yield
    finally:
        module.FUSED_FROM, module.FUSED_AFTER = before


class Kept:
    """Memory of results that is there: what an `empty` of earlier calls gave, once more in the same order."""

    def __init__(self) -> None:
        self._given: list[Tensor] = []
        self._next = 0

    def __call__(self, shape: Any, dtype: torch.dtype, device: Any = "cpu") -> Tensor:
        """As `merging.memory.empty`."""
        if self._next == len(self._given):
            self._given.append(empty(shape, dtype, device))
        self._next += 1
        return self._given[self._next - 1]

    def run(self, work: Callable[[], Any]) -> None:
        """Does something whose results go to it."""
        before, self._next = module.empty, 0
        module.empty = self
        try:
            work()
        finally:
            module.empty = before


def same(one: Unification, other: Unification) -> bool:
    """Whether both are the same bit for bit."""
    bits = all(
        torch.equal(u.view(torch.int32), other.unified[name].view(torch.int32))
        and torch.equal(one.triggers[name], other.triggers[name])
        for name, u in one.unified.items()
    )
    return bits and one.norms == other.norms and one.rescalers == other.rescalers


def literal(state: Unification) -> Reference:
    """The literal twin where the state is."""
    tasks = range(len(state.norms))
    masks = [{name: unpack(state.triggers[name][t], u.shape) for name, u in state.unified.items()} for t in tasks]
    return Reference("l1", None, dict(state.unified), masks, list(state.rescalers))


def check(state: Unification, delta: dict[str, Tensor]) -> str:
    """Holds the result against torch's and the literal twin's; returns what was compared, or ends the program."""
    found = unify(state, delta)
    with by_torch():
        if not same(found, unify(state, delta)):
            raise SystemExit("the compiled loops and torch differ")
    part_of = {name: slice(0, min(len(d), CHECKED)) for name, d in delta.items()}
    part = Unification(
        {name: state.unified[name][at] for name, at in part_of.items()},
        {name: _cut(state.triggers[name], len(delta[name]), at.stop) for name, at in part_of.items()},
        state.norms,
        state.rescalers,
    )
    twin = literal(part)
    piece = {name: delta[name][at] for name, at in part_of.items()}
    earlier = [twin.decouple(task) for task in range(len(part.norms))]
    kernel = unify(part._replace(norms=tuple(map(twin.size, earlier))), piece)
    twin.unify(piece)
    for name, wanted in twin.unified.items():
        stack = torch.stack([*(one[name] for one in earlier), piece[name]])
        # Where the summands cancel to below their rounding, both signs are right.
        tie = stack.sum(0).abs() <= 2e-7 * len(stack) * stack.abs().sum(0)
        close = (kernel.unified[name] - wanted).abs() <= 2.4e-7 * wanted.abs()
        if not bool((close | tie).all()) or float(tie.float().mean()) > 1e-3 + float(
            (stack == 0).all(0).float().mean()
        ):
            raise SystemExit(f"tensor {name}: the literal twin disagrees")
    if not torch.allclose(torch.tensor(kernel.rescalers), torch.tensor(twin.rescalers), rtol=1e-4):
        raise SystemExit("the rescalers disagree with the literal twin's")
    return "every bit as torch's; the literal twin agrees"


def _cut(rows: Tensor, numel: int, count: int) -> Tensor:
    """The rows of a tensor's first ``count`` positions."""
    if count == numel:
        return rows
    whole = [unpack(row, (numel,))[:count] for row in rows]
    return torch.stack([pack(mask) for mask in whole]) if whole else rows[:, : trigger_bytes(count)]


def peak_above(work: Callable[[], Any]) -> float:
    """MiB by which the process's peak rises over what it has, outputs included."""
    ctypes.CDLL(None).malloc_trim(0)  # what was freed before must not be had for nothing
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = status("VmRSS")
    kept = work()
    after = status("VmHWM")
    del kept
    return (after - before) / 1024


def measure(params: int, tasks: int, repeats: int, threads: int, twin: bool, cpu: bool, queue: Any) -> None:
    """Times and memory of one size, in this process."""
    clock = time.process_time if cpu else time.perf_counter
    torch.set_num_threads(threads)
    module.FUSED_FROM = 1
    state, delta = make(params, tasks)
    checked = check(state, delta)
    count = sum(len(d) for d in delta.values())
    bits = sum(rows.shape[1] for rows in state.triggers.values())
    moved = 12 * count + (2 * tasks - 1) * bits
    source, there = (torch.ones(moved // 8) for _ in range(2))
    source_back, there_back = (torch.ones((8 * count + bits) // 8) for _ in range(2))
    places, places_back = Kept(), Kept()
    sides: dict[str, Callable[[], Any]] = {
        "unify": lambda: unify(state, delta),
        "unify there": lambda: places.run(lambda: unify(state, delta)),
        "copy": lambda: empty(source.shape, source.dtype).copy_(source),
        "copy there": lambda: there.copy_(source),
        "decouple": lambda: decouple(state.unified, state.triggers, 0, 1.1),
        "decouple there": lambda: places_back.run(lambda: decouple(state.unified, state.triggers, 0, 1.1)),
        "decouple copy": lambda: empty(source_back.shape, source_back.dtype).copy_(source_back),
        "decouple copy there": lambda: there_back.copy_(source_back),
    }
    if twin and count * tasks <= LITERAL:
        sides["literal"] = lambda: literal_of().unify(delta)
    if params <= 50_000_000:
        sides["torch"] = lambda: _torch(state, delta)
    masks = literal(state).masks if "literal" in sides else []

    def literal_of() -> Reference:
        return Reference("l1", None, dict(state.unified), [dict(mask) for mask in masks], list(state.rescalers))

    for name in ("unify there", "decouple there"):
        sides[name]()  # now it is there
    memory = {name: peak_above(sides[name]) for name in ("unify", "literal") if name in sides}
    times: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(repeats):
        for name, work in sides.items():
            if name in ("literal", "torch") and turn >= max(1, repeats // 3):
                continue
            begin = clock()
            work()
            times[name].append(clock() - begin)
    found = {name: statistics.median(each) for name, each in times.items()}
    queue.put({"params": params, "tasks": tasks, "moved": moved, "checked": checked} | found | {"memory": memory})


def _torch(state: Unification, delta: dict[str, Tensor]) -> Unification:
    with by_torch():
        return unify(state, delta)


def row_of(found: dict[str, Any]) -> list[Any]:
    """A line of the table."""
    memory, literal_seconds = found["memory"], found.get("literal")
    times = literal_seconds / found["unify"] if literal_seconds else None
    share = memory["literal"] / memory["unify"] if literal_seconds else None
    return [
        f"{found['params'] / 1e6:g} M, T = {found['tasks']}",
        1000 * found["unify"],
        found["unify"] / found["copy"],
        found["unify there"] / found["copy there"],
        found["decouple"] / found["decouple copy"],
        found["decouple there"] / found["decouple copy there"],
        found["torch"] / found["unify"] if "torch" in found else None,
        times,
        round(memory["unify"]),
        share,
    ]


COLUMNS = [
    "",
    "unify, ms",
    "copies",
    "copies, both into memory that is there",
    "decouple, copies",
    "decouple, copies, both into memory that is there",
    "torch's path, times",
    "literal, times",
    "extra MiB",
    "literal's, times",
]


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--params", type=int, nargs="+", default=[20_000_000])
    parser.add_argument("--tasks", type=int, nargs="+", default=[11])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall", help="cpu: where others use the machine")
    parser.add_argument("--literal", action=argparse.BooleanOptionalAction, default=True, help="time the literal twin")
    parser.add_argument("--json", type=Path, help="write the table here too")
    parser.add_argument("--disk", type=int, metavar="PARAMS", help="from file to file, with this many parameters")
    parser.add_argument("--limit-gib", type=float, default=2.0)
    parser.add_argument("--folder", type=Path, help="where the files of --disk are made; a temporary one if left out")
    args = parser.parse_args()
    if args.disk:
        with tempfile.TemporaryDirectory(dir=args.folder) as folder:
            disk(args.disk, args.limit_gib, Path(folder))
        return
    processes, rows = multiprocessing.get_context("spawn"), []
    print(" | ".join(COLUMNS))
    for params in args.params:
        for tasks in args.tasks:
            queue = processes.Queue()
            options = (params, tasks, args.repeats, args.threads, args.literal, args.clock == "cpu", queue)
            (child := processes.Process(target=measure, args=options)).start()
            child.join()
            if child.exitcode:
                raise SystemExit(f"{params} parameters, {tasks} tasks: ended with {child.exitcode}")
            rows.append(row_of(queue.get()))
            cells = (
                "–" if cell is None else f"{cell:.1f}" if isinstance(cell, float) else str(cell) for cell in rows[-1]
            )
            print(" | ".join(cells), flush=True)
            if args.json:  # after every row, for the large ones take long
                found = {"columns": COLUMNS, "rows": rows, "threads": args.threads, "clock": args.clock}
                args.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
