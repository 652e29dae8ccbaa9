"""What a look at open experts costs the board, against the store's latency; beside a request an expert.

    python jobs/bench/polling.py --experts 1000 --latency 0.02

The store is a server of this process that answers so many seconds late (jobs/faults/object_server.py).
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from condu_ray.config import Experiment
from condu_ray.orchestration.lanes import board as module
from condu_ray.orchestration.lanes.board import Board
from condu_ray.plan.expert import PlannedExpert
from condu_ray.store import artifacts
from condu_ray.store.layout import expert_folder
from condu_ray.store.location import Location, Place
from jobs.faults.object_server import ObjectServer

LOOKS = 20
SINGLE = 20
"""Experts that are asked for one by one."""


def main() -> None:
    """Prints a line a store."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--experts", type=int, default=1000, help="open ones")
    parser.add_argument("--latency", type=float, default=0.02, help="seconds that an answer of the bucket takes")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["CONDU_RAY_CACHE"] = f"{folder}/copies"
        with ObjectServer() as server:
            os.environ |= server.environment()
            server.after = lambda asked: time.sleep(given.latency)
            for name, storage in (("disk", Location(folder)), ("bucket", Location("s3://bucket/storage"))):
                print(f"{name}: {look(storage, given.experts, lambda: len(server.asked))}", flush=True)


def look(storage: Place, count: int, asked: Callable[[], int]) -> str:
    """Returns in words what a look of the board costs of so many open experts."""
    config = Experiment(storage=storage, run="r")
    for number in range(3):
        artifacts.publish(expert_folder(storage, f"there{number}"), {}, lambda draft: None)
    experts = [PlannedExpert(config, "condu", f"task{number}", number, f"key{number}") for number in range(count)]
    begin = time.perf_counter()
    board = Board(experts)
    start, module.LOOK_SECONDS = time.perf_counter() - begin, 0.0
    seconds, before, used = [], asked(), time.process_time()
    for _ in range(LOOKS):
        begin = time.perf_counter()
        assert len(board.read().open) == count
        seconds.append(time.perf_counter() - begin)
    requests, used = (asked() - before) / LOOKS, (time.process_time() - used) / LOOKS
    begin = time.perf_counter()
    assert not any(expert.finished for expert in experts[:SINGLE])
    single = (time.perf_counter() - begin) / SINGLE * count
    return (
        f"{count} open experts: a look {1e3 * statistics.median(seconds):.1f} ms (longest {1e3 * max(seconds):.1f}), "
        f"{1e3 * used:.1f} ms of CPU (the server's too), {requests:.1f} requests; "
        f"the board's start {1e3 * start:.0f} ms; one by one a look would be {single:.1f} s"
    )


if __name__ == "__main__":
    main()
