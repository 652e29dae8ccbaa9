"""Unify from file to file under an enforced limit of memory: ``jobs/bench/unify.py --disk PARAMS``."""

from __future__ import annotations

import json
import multiprocessing
import resource
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

SHARES = (0.30, 0.25, 0.2, 0.12, 0.08, 0.04, 0.009, 0.001)  # as in a transformer: few large tensors, many small


def disk(params: int, limit_gib: float, folder: Path) -> None:
    """Unify from file to file under a limit, in processes of their own. The disk has three files at most at a time."""
    processes = multiprocessing.get_context("spawn")

    def apart(work: Callable[..., None], *arguments: Any) -> Any:
        queue = processes.Queue()
        (child := processes.Process(target=work, args=(*arguments, queue))).start()
        child.join()
        if child.exitcode:
            raise SystemExit(f"{work.__name__.strip('_')}: ended with {child.exitcode}")
        return queue.get()

    needed = 12 * params + params // 2
    if (free := shutil.disk_usage(folder).free) < needed:
        raise SystemExit(f"{folder} has {free / 1e9:.1f} GB free, {needed / 1e9:.1f} GB are needed; choose a --folder")
    for number in range(2):
        apart(_made, params, number, str(folder))
        seconds, peak, moved = apart(_from_disk, limit_gib, number, str(folder))
    print(f"{params / 1e6:,.0f} M parameters, second task, from disk to disk in {seconds:.1f} s "
          f"({moved / seconds / 1e9:.2f} GB/s read and written); peak of the process {peak / 1024:.0f} MiB, "
          f"limit {limit_gib:g} GiB (RLIMIT_DATA, enforced)")  # fmt: skip


def _made(params: int, number: int, folder: str, queue: Any) -> None:
    make_delta(params, number, Path(folder, f"delta{number}"))
    queue.put(None)


def enforce(limit_gib: float) -> None:
    """Has this process refuse itself more memory of its own (RLIMIT_DATA); ends it where that does not hold."""
    limit = int(limit_gib * (1 << 30))
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    try:
        torch.empty(limit // 4 + 1)
    except RuntimeError:
        return
    raise SystemExit("the limit does not hold")


def make_delta(params: int, number: int, path: Path) -> None:
    """A random delta, written a piece at a time."""
    counts = {str(index): int(params * share) for index, share in enumerate(SHARES)}
    head, at = {}, 0
    for name, count in counts.items():
        head[name] = {"dtype": "F32", "shape": [count], "data_offsets": [at, at + 4 * count]}
        at += 4 * count
    text = json.dumps(head).encode()
    text += b" " * (-len(text) % 8)
    generator = torch.Generator().manual_seed(number)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for count in counts.values():
            for start in range(0, count, 1 << 24):
                piece = torch.empty(min(1 << 24, count - start)).normal_(0, 1e-3, generator=generator)
                file.write(piece.numpy().data)


def _from_disk(limit_gib: float, number: int, folder: str, queue: Any) -> None:
    """Unifies a delta with what there is, and removes its file."""
    from condu_ray.merging.streamed import unify_file

    enforce(limit_gib)
    files = [Path(folder, f"unified{number - 1}")] if number else []
    delta, after = Path(folder, f"delta{number}"), Path(folder, f"unified{number}")
    begin = time.perf_counter()
    unify_file(files[0] if files else None, delta, after, task=str(number))
    seconds = time.perf_counter() - begin
    moved = sum(path.stat().st_size for path in (*files, delta, after))
    delta.unlink()
    queue.put((seconds, status("VmHWM"), moved))


def status(key: str) -> int:
    """KiB of a line of this process's status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{key}:"))
