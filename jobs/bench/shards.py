"""One more task unified by one process and by shards in several: the same bits, and the time and memory of each.

``python jobs/bench/shards.py --params 100000000 --tasks 11 --shards 1 2 4``. Shards are processes here in place of
Ray's actors; each has one thread, reads its part of the session before from the file, merges, and hands its pieces to
who writes the next session. Files are held against that of one process without shards, by their sha256.

``--limit-gib`` has every process refuse itself more memory of its own (RLIMIT_DATA: what it wrote or may write to and
shares with nobody, which torch's import takes 0.7 GiB of); the one process then goes from file to file.
"""

from __future__ import annotations

import argparse
import multiprocessing
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

import torch
from rich.console import Console
from rich.table import Table

from condu_ray.merging import UnifiedDelta
from condu_ray.merging.shards import Shard, ShardedDelta
from condu_ray.merging.streamed import unify_file
from condu_ray.store.artifacts import file_hash
from jobs.bench.unify_disk import enforce, make_delta, status

SPAWN = multiprocessing.get_context("spawn")


def memory() -> int:
    """Peak KiB of this process."""
    return status("VmHWM")


def prepare(limit_gib: float) -> None:
    """One thread, at most so much memory, and a peak that begins here."""
    torch.set_num_threads(1)
    if limit_gib:
        enforce(limit_gib)
    Path("/proc/self/clear_refs").write_text("5")


def serve(pipe: Any, limit_gib: float) -> None:
    """A shard's process: answers calls until it is asked for its memory, peak and CPU seconds."""
    prepare(limit_gib)
    shard, before = Shard(), status("VmRSS")
    pipe.send("ready")
    while True:
        what, given = pipe.recv()
        if what == "end":
            pipe.send((memory(), memory() - before, time.process_time()))
            return
        pipe.send([one.numpy() for one in getattr(shard, what)(*given)])  # torch would share its memory


class Processes:
    """Shards in processes of their own."""

    def __init__(self, count: int, limit_gib: float) -> None:
        self.count, self._pipes, self._processes = count, [], []
        for _ in range(count):
            own, other = SPAWN.Pipe()
            process = SPAWN.Process(target=serve, args=(other, limit_gib))
            process.start()
            self._pipes.append(own)
            self._processes.append(process)
        self.wait(range(count))

    def path(self, source: Any) -> Path:
        """As it is named."""
        return Path(source)

    def ask(self, shard: int, what: str, *given: Any) -> Any:
        """Sends a call."""
        self._pipes[shard].send((what, given))
        return shard

    def wait(self, asked: Sequence[Any]) -> list[Any]:
        """Receives the results."""
        found = [self._pipes[shard].recv() for shard in asked]
        return [list(map(torch.from_numpy, one)) if isinstance(one, list) else one for one in found]

    def end(self) -> list[tuple[int, int, float]]:
        """Ends them; returns each one's peak KiB, that above what it had at the start, and CPU seconds."""
        found = self.wait([self.ask(shard, "end") for shard in range(self.count)])
        for process in self._processes:
            process.join()
        return found


def files(params: int, tasks: int, folder: Path) -> None:
    """Writes a session of so many random deltas but one, and the last one; neither is ever whole in memory."""
    needed = (8 + tasks / 4) * params + 4 * params  # two sessions, and the delta
    if (free := shutil.disk_usage(folder).free) < needed:
        raise SystemExit(f"{folder} has {free / 1e9:.1f} GB free, {needed / 1e9:.1f} GB are needed; choose a --folder")
    for number in range(tasks):
        make_delta(params, number, folder / "delta")
        if number < tasks - 1:
            before = folder / "before" if number else None
            unify_file(before, folder / "delta", folder / "before", task=f"t{number}")


def alone(folder: Path, limit_gib: float, queue: Any) -> None:
    """The same by one process: that holds all, or under a limit from file to file."""
    from safetensors.torch import load_file

    prepare(limit_gib)
    before, begin, middle = status("VmRSS"), time.perf_counter(), None
    if limit_gib:
        unify_file(folder / "before", folder / "delta", folder / "alone", task="last")
    else:
        state = UnifiedDelta.load(folder / "before").unify("last", load_file(folder / "delta"))
        middle = time.perf_counter()
        state.save(folder / "alone")
    end, own = time.perf_counter(), (memory(), memory() - before)
    digest = file_hash(folder / "alone")
    (folder / "alone").unlink()
    queue.put((digest, (middle or end) - begin, middle and end - middle, *own))


def sharded(folder: Path, count: int, limit_gib: float, queue: Any) -> None:
    """By shards; this process writes."""
    group = Processes(count, limit_gib)
    prepare(limit_gib)
    before, begin = status("VmRSS"), time.perf_counter()
    state = ShardedDelta.opened(group, folder / "before", "before")
    state = state.unify("last", folder / "delta", state="last", file=folder / "last")
    middle = time.perf_counter()
    state.save(folder / "last")
    end, own = time.perf_counter(), (memory(), memory() - before)
    digest = file_hash(folder / "last")
    (folder / "last").unlink()
    queue.put((digest, middle - begin, end - middle, *own, group.end()))


def main() -> None:
    """Prints a row a number of shards."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--params", type=int, default=100_000_000)
    parser.add_argument("--tasks", type=int, default=11, help="the merged one is the last")
    parser.add_argument("--shards", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--limit-gib", type=float, default=0.0, help="0: none")
    parser.add_argument("--alone", action=argparse.BooleanOptionalAction, default=True, help="without shards too")
    parser.add_argument("--folder", type=Path, help="where the files are made; a temporary one if left out")
    given = parser.parse_args()
    table = Table("", "same bits", "read and unify, s", "write, s", "a shard: CPU s", "peak MiB", "above its start",
                  "the writer: above its start", title=f"{given.params / 1e6:g} M, T = {given.tasks}")  # fmt: skip
    with tempfile.TemporaryDirectory(dir=given.folder) as name:
        folder = Path(name)
        _run(files, given.params, given.tasks, folder)
        first = None
        if given.alone:
            first, unify, write, peak, above = _result(alone, folder, given.limit_gib)
            how = ("one process, by pieces", "") if write is None else ("one process", f"{write:.1f}")
            table.add_row(how[0], "", f"{unify:.1f}", how[1], "", f"{peak >> 10}", f"{above >> 10}", "")
        for count in given.shards:
            digest, unify, write, _, own, each = _result(sharded, folder, count, given.limit_gib)
            first = first or digest
            largest = [max(one[column] for one in each) for column in range(3)]
            table.add_row(
                f"{count} shards", "yes" if digest == first else "NO", f"{unify:.1f}", f"{write:.1f}",
                f"{largest[2]:.1f}", f"{largest[0] >> 10}", f"{largest[1] >> 10}", f"{own >> 10}",
            )  # fmt: skip
            if digest != first:
                raise SystemExit(f"{count} shards: another file")
    Console(width=150).print(table)


def _run(work: Any, *given: Any) -> None:
    (child := SPAWN.Process(target=work, args=given)).start()
    child.join()
    if child.exitcode:
        raise SystemExit(f"{work.__name__}: ended with {child.exitcode}")


def _result(work: Any, *given: Any) -> Any:
    queue: Any = SPAWN.Queue()
    (child := SPAWN.Process(target=work, args=(*given, queue))).start()
    while queue.empty() and child.is_alive():
        time.sleep(0.05)
    if child.exitcode:
        raise SystemExit(f"{work.__name__}: ended with {child.exitcode}")
    found = queue.get()
    child.join()
    return found


if __name__ == "__main__":
    main()
