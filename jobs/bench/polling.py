"""What asks storage in a loop while experts are open, against the store's latency, and how often.

    python jobs/bench/polling.py --experts 1000 --latency 0.02 --json FILE

The store is a server of this process that answers so many seconds late (jobs/faults/object_server.py). A look of the
board is timed, beside a request an expert; then each of those who ask again and again does so for some seconds as it
does in a run, without Ray, and its requests are counted.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

sys.path.insert(0, str(Path(__file__).parents[2]))

from condu_ray.config import Experiment
from condu_ray.orchestration.lanes import board as module
from condu_ray.orchestration.lanes import work
from condu_ray.orchestration.lanes.board import Board
from condu_ray.orchestration.lanes.trainer import await_artifact
from condu_ray.orchestration.run import LOOK_SECONDS
from condu_ray.plan.expert import PlannedExpert
from condu_ray.store import artifacts
from condu_ray.store.claims import Claims
from condu_ray.store.layout import claims_folder, expert_folder, session_folder
from condu_ray.store.location import Location, Place
from jobs.faults.object_server import ObjectServer

LOOKS = 20
SINGLE = 20
"""Experts that are asked for one by one."""
LANES = 8
"""Lanes that wait, or train."""
CLAIMED = 8
"""Experts that a lane has claimed."""
COLUMNS = ["who asks", "requests a second"]


def main() -> None:
    """Prints a line a store, and one for each of those who ask."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--experts", type=int, default=1000, help="open ones")
    parser.add_argument("--latency", type=float, default=0.02, help="seconds that an answer of the bucket takes")
    parser.add_argument("--seconds", type=float, default=20.0, help="that each of those who ask is watched; 0: not")
    parser.add_argument("--json", type=Path, help="write their rows here too")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["CONDU_RAY_CACHE"] = f"{folder}/copies"
        with ObjectServer() as server:
            os.environ |= server.environment()
            server.after = lambda asked: time.sleep(given.latency)
            bucket = Location("s3://bucket/storage")
            for name, storage in (("disk", Location(folder)), ("bucket", bucket)):
                print(f"{name}: {look(storage, given.experts, lambda: len(server.asked))}", flush=True)
            rows = []
            for words, ask in askers(bucket, given.experts).items() if given.seconds else ():
                rows.append([words, round(rate(ask, given.seconds, lambda: len(server.asked)), 1)])
                print(f"{words}: {rows[-1][1]:.1f} requests a second", flush=True)
    if given.json:
        given.json.write_text(json.dumps({"columns": COLUMNS, "rows": rows}, indent=1))


def planned(config: Experiment, count: int) -> list[PlannedExpert]:
    """Experts that start from theta0."""
    return [PlannedExpert(config, "condu", f"task{number}", number, f"key{number}") for number in range(count)]


def look(storage: Place, count: int, asked: Callable[[], int]) -> str:
    """Returns in words what a look of the board costs of so many open experts."""
    for number in range(3):
        artifacts.publish(expert_folder(storage, f"there{number}"), {}, lambda draft: None)
    experts = planned(Experiment(storage=storage, run="r"), count)
    begin = time.perf_counter()
    board = Board(experts)
    start, seconds, before, used = time.perf_counter() - begin, [], asked(), time.process_time()
    with mock.patch.multiple(module, LOOK_SECONDS=0.0, LOOK_SHARE=float("inf")):
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


class Watched(threading.Event):
    """Set when somebody who asks shall end."""

    def __init__(self) -> None:
        super().__init__()
        self.begun = threading.Event()


Ask = Callable[[Watched], None]
"""Asks as in a run, once it has begun and until it is told to end."""


def rate(ask: Ask, seconds: float, asked: Callable[[], int]) -> float:
    """Requests a second of somebody who asks, once its first ones are over."""
    end = Watched()
    thread = threading.Thread(target=ask, args=(end,))
    thread.start()
    end.begun.wait()
    time.sleep(seconds / 4)
    before, begin = asked(), time.perf_counter()
    time.sleep(seconds)
    found = (asked() - before) / (time.perf_counter() - begin)
    end.set()
    thread.join()
    return found


def askers(storage: Location, count: int) -> dict[str, Ask]:
    """Those who ask again and again, as they do in a run, by what the table says of them."""
    config = Experiment(storage=storage, run="r")
    return {
        f"the driver's main loop, {count} experts open": lambda end: main_loop(Board(planned(config, count)), end),
        f"{LANES} lanes that wait, all {count} being trained by another run": lambda end: held(config, count, end),
        f"{LANES} lanes that wait, {count} experts starting from states of 100 trials": lambda end: chains(
            config, count, end
        ),
        f"{LANES} lanes that train, {CLAIMED} experts claimed by each": lambda end: claimed(storage, end),
        f"{LANES} workers that wait for a state to start from": lambda end: starts(config, end),
    }


def main_loop(board: Board, end: Watched) -> None:
    """What a run's driver asks: the board; its pulse and its merges ask storage for nothing in a loop."""
    end.begun.set()
    while not end.is_set():
        board.read()
        time.sleep(LOOK_SECONDS)


class _EndedError(Exception):
    pass


def lanes(config: Experiment, board: Board, claims: list[Claims], end: Watched) -> None:
    """Lanes that ask for work and get none."""
    one_by_one = threading.Lock()  # as an actor answers

    def take(*given: Any) -> Any:
        if end.is_set():
            raise _EndedError
        with one_by_one:
            return board.take(*given)

    def lane(number: int) -> None:
        actor = SimpleNamespace(take=SimpleNamespace(remote=take), keep=SimpleNamespace(remote=board.keep))
        try:
            work._take(SimpleNamespace(number=number, board=actor, config=config), claims[number])  # type: ignore[arg-type]
        except _EndedError:
            return

    end.begun.set()
    with mock.patch("ray.get", lambda value: value):
        threads = [threading.Thread(target=lane, args=(number,)) for number in range(LANES)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()


def held(config: Experiment, count: int, end: Watched) -> None:
    """Lanes that are offered what another run has claimed, by a process that lives (its touches are left out)."""
    experts, folder = planned(config, count), claims_folder(config.storage)
    with Claims(folder) as other, mock.patch("condu_ray.store.claims.STALE_SECONDS", float("inf")):
        store = artifacts.backend(folder)
        for expert in experts:
            store.create(other._path(expert.key), json.dumps(other._owner).encode())
        lanes(config, Board(experts, LANES), [Claims(folder) for _ in range(LANES)], end)
        for expert in experts:
            store.remove(other._path(expert.key))


def chains(config: Experiment, count: int, end: Watched) -> None:
    """Lanes whose experts start from states that nobody has merged yet."""
    experts = []
    for number, expert in enumerate(planned(config, count)):
        run = config.model_copy(update={"run": f"r{number % 100}"})
        needs = session_folder(run.run_folder, "pam", 0, expert.task, f"state{number}")
        before = ((f"task{number - 1}", f"earlier{number}"),)
        experts.append(
            PlannedExpert(run, "pam", expert.task, number, expert.key, state=f"s{number}", needs=needs, earlier=before)
        )
    lanes(config, Board(experts, LANES), [Claims(claims_folder(config.storage)) for _ in range(LANES)], end)


def claimed(storage: Location, end: Watched) -> None:
    """Lanes that show that they live."""
    each = [Claims(claims_folder(storage)) for _ in range(LANES)]
    for lane, claims in enumerate(each):
        for number in range(CLAIMED):
            assert claims.acquire(f"lane{lane}-{number}")
    end.begun.set()
    end.wait()
    for claims in each:
        claims.close()


def starts(config: Experiment, end: Watched) -> None:
    """Workers whose experts start from a state that is being merged."""

    def told(folder: Place) -> bool:
        if end.is_set():
            raise _EndedError
        return False

    def wait() -> None:
        try:
            await_artifact(session_folder(config.run_folder, "pam", 0, "task", "state"), told)
        except _EndedError:
            return

    end.begun.set()
    threads = [threading.Thread(target=wait) for _ in range(LANES)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


if __name__ == "__main__":
    main()
