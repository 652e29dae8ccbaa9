"""Merging one more task by a rule that takes all experts at once: with a tally of those before, and all anew.

``python jobs/bench/tallies.py --params 10000000 --tasks 24``. The state actor's own work without Ray: experts are read
from storage, their checksums found right, the session and the tally published. Every row is a process of its own, and
before a figure is shown the last session's files are held against the first row's, to the byte.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

import torch
from rich.console import Console
from rich.table import Table

from condu_ray.config import Experiment
from condu_ray.methods import base, get
from condu_ray.methods.tallies import drop_counted
from condu_ray.orchestration.state import ModelKeeper
from condu_ray.plan.expert import PlannedExpert
from condu_ray.plan.sessions import PlannedSession
from condu_ray.store.experts import save_expert
from condu_ray.store.layout import session_folder, tallies_folder
from condu_ray.store.ledger import ROOT
from jobs.bench.unify import peak_above

ROWS = ("all anew", "a new actor each time", "one actor")
SHARES = (0.5, 0.3, 0.15, 0.04, 0.01)


def experts(storage: Path, params: int, tasks: int) -> None:
    """Stores random experts, a thousandth of whose values are 0."""
    generator = torch.Generator().manual_seed(0)
    for task in range(tasks):
        delta = {}
        for index, share in enumerate(SHARES):
            delta[str(index)] = torch.empty(int(params * share)).normal_(0, 1e-3, generator=generator)
            delta[str(index)][task::1000] = 0
        save_expert(storage, f"key{task}", delta, {})


def measure(storage: Path, method: str, how: str, tasks: int, queue: Any) -> None:
    """Merges all tasks; reports seconds and reads of each, extra memory of the last, and the last session's files."""
    torch.set_num_threads(1)
    config, read, load = Experiment(storage=storage, run=how.replace(" ", "-")), [], base.load_expert

    def counting(*given: Any) -> Any:
        read.append(given[1])
        return load(*given)

    base.load_expert = counting  # type: ignore[assignment]
    keeper, found, peak = ModelKeeper(config), [], 0.0
    for position in range(tasks):
        parent = f"{method}{position}" if position else ROOT
        expert = PlannedExpert(config, method, f"t{position}", position, f"key{position}")
        session = PlannedSession(position, f"t{position}", expert, parent, f"{method}{position + 1}")
        if how == "a new actor each time":
            keeper = ModelKeeper(config)
        elif how == "all anew" and position:
            found_method = get(method, config)
            drop_counted(config.run_folder, found_method)
            for state in keeper._latest.values():
                state.counted.tally = None
        read.clear()
        begin = time.process_time()
        if position == tasks - 1:
            peak = peak_above(partial(keeper.merge, method, session))
        else:
            keeper.merge(method, session)
        found.append((time.process_time() - begin, len(read)))
    folder = Path(session_folder(config.run_folder, method, tasks - 1, f"t{tasks - 1}", f"{method}{tasks}"))
    files = {path.name: path.read_bytes() for path in folder.glob("*.safetensors")}
    shelf = Path(tallies_folder(config.run_folder, method))
    kept = sum(path.stat().st_size for path in shelf.rglob("*.safetensors"))
    queue.put((found, peak, kept, files))


def main() -> None:
    """Prints a row a method and way."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--params", type=int, default=10_000_000, help="parameters of an expert")
    parser.add_argument("--tasks", type=int, default=24, help="tasks")
    parser.add_argument("--methods", nargs="*", default=["ties", "emr"], help="methods that have a tally")
    given = parser.parse_args()
    shown = sorted({2, min(11, given.tasks), given.tasks})
    columns = [f"CPU ms, task {task}" for task in shown] + [f"experts read, task {task}" for task in shown]
    table = Table("method", *columns, "extra MiB, last", "tally, MB", title=f"{given.params / 1e6:g} M parameters")
    spawn = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as name:
        storage = Path(name)
        experts(storage, given.params, given.tasks)
        for method in given.methods:
            first = None
            for how in ROWS:
                queue: Any = spawn.Queue()
                process = spawn.Process(target=measure, args=(storage, method, how, given.tasks, queue))
                process.start()
                found, peak, kept, files = queue.get()
                process.join()
                first = first or files
                if files != first:
                    raise SystemExit(f"{method}, {how}: the last session's files differ")
                times = [f"{1000 * found[task - 1][0]:.0f}" for task in shown]
                reads = [f"{found[task - 1][1]}" for task in shown]
                table.add_row(f"{method}, {how}", *times, *reads, f"{peak:.0f}", f"{kept / 1e6:.0f}")
    Console(width=150).print(table)


if __name__ == "__main__":
    main()
