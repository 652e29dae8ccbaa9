"""Load test of `condu-ray serve` on this machine: latency, throughput, overload, killed replicas, a swap under load.

`python jobs/bench/serve.py RUN --storage DIR --data DIR` starts Ray Serve on a free port of 127.0.0.1, compares its
answers with the Predictor's before it prints a time, and ends it. RUN needs two sessions. Prints a table, and writes
it as a file of results with `--json FILE`.
"""

import argparse
import asyncio
import json
import os
import platform
import signal
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import pyarrow.parquet as pq
import torch

from condu_ray import Predictor, __version__
from condu_ray.benchmark import load_tasks
from condu_ray.orchestration.serving.server import Server, serving
from condu_ray.use.loading import load_source, resolved
from condu_ray.use.serving import ServeArguments

COLUMNS = ["what", "at once", "answers a second", "p50, ms", "p95, ms", "p99, ms", "answered", "503", "lost"]
TOLERANCE = {"fp32": 1e-4, "bf16": 0.05}
"""Largest difference of a probability: another batch rounds otherwise."""
Item = tuple[str, bytes]
"""A task and an encoded picture."""


@dataclass
class Tally:
    """What became of requests."""

    seconds: list[float] = field(default_factory=list)
    statuses: Counter[str] = field(default_factory=Counter)
    sessions: Counter[int] = field(default_factory=Counter)
    wall: float = 0.0

    def row(self, what: str, at_once: int) -> list[Any]:
        """Returns a row of the table; `lost` is all that is neither an answer nor a 503."""
        p50, p95, p99 = (
            [float(1e3 * value) for value in np.percentile(self.seconds, [50, 95, 99])] if self.seconds else [None] * 3
        )
        answered, refused = self.statuses["200"], self.statuses["503"]
        lost = self.statuses.total() - answered - refused
        return [what, at_once, answered / self.wall, p50, p95, p99, answered, refused, lost]


class Load:
    """Clients that each send the next picture when they have an answer.

    Args:
        address: the server's.
        items: pictures, sent in turn.
        known: whether requests name the task.
        at_once: clients.
    """

    def __init__(self, address: str, items: list[Item], known: bool, at_once: int) -> None:
        self._address, self._items, self._known, self.at_once = address, cycle(items), known, at_once
        self.tally, self._over = Tally(), False

    async def run(self, seconds: float, meanwhile: Callable[[], Awaitable[None]] | None = None) -> Tally:
        """Sends for some seconds, and longer where what is done meanwhile takes longer."""
        connector = aiohttp.TCPConnector(limit=0)
        begin = time.perf_counter()
        async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=120)) as session:
            clients = [asyncio.create_task(self._client(session)) for _ in range(self.at_once)]
            if meanwhile is not None:
                await asyncio.sleep(seconds / 4)
                await meanwhile()
            await asyncio.sleep(max(0.0, seconds - (time.perf_counter() - begin)))
            self._over = True
            await asyncio.gather(*clients)
        self.tally.wall = time.perf_counter() - begin
        return self.tally

    async def _client(self, session: aiohttp.ClientSession) -> None:
        while not self._over:
            begin, (status, document) = time.perf_counter(), await self._one(session)
            self.tally.statuses[status] += 1
            if status == "200":
                self.tally.seconds.append(time.perf_counter() - begin)
                self.tally.sessions[document["session"]] += 1
            elif status == "503":
                await asyncio.sleep(0.05)  # a client that heeded Retry-After would be gentler

    async def _one(self, session: aiohttp.ClientSession) -> tuple[str, dict[str, Any]]:
        task, image = next(self._items)
        try:
            query = {"task": task} if self._known else {}
            async with session.post(f"{self._address}/predict", params=query, data=image) as answer:
                text = await answer.text()
                return str(answer.status), json.loads(text) if answer.status == 200 else {}
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            return type(error).__name__, {}


def pictures(folder: Path, names: tuple[str, ...], most: int) -> list[Item]:
    """The first test pictures of each task, tasks mixed."""
    found = []
    for task in load_tasks(folder, names):
        images = pq.read_table(task.test, columns=["image"])["image"].slice(0, most).to_pylist()
        found.append([(task.name, image) for image in images])
    return [one for several in zip(*found, strict=False) for one in several]


async def compare(address: str, predictor: Predictor, items: list[Item], known: bool) -> float:
    """Returns the largest difference of a probability between answers and the Predictor's.

    Raises:
        SystemExit: it is more than another order of additions explains.
    """
    worst = 0.0
    async with aiohttp.ClientSession() as session:
        for task, image in items:
            query = {"top_k": "100000"} | ({"task": task} if known else {})
            async with session.post(f"{address}/predict", params=query, data=image) as answer:
                document = await answer.json()
            (own,) = predictor.predict(image, task if known else None, top_k=100_000)
            told = {one["name"]: one["probability"] for one in document["classes"]}
            expected = dict(zip(own.classes, own.probabilities, strict=True))
            if told.keys() != expected.keys():
                raise SystemExit(f"a picture of {task}: answers are of other classes than the Predictor's")
            worst = max(worst, *(abs(told[name] - expected[name]) for name in told))
    if worst > TOLERANCE[predictor.served.precision]:
        raise SystemExit(f"answers differ from the Predictor's by {worst:.2g}: nothing is timed")
    return worst


def processes(name: str) -> Iterator[int]:
    """Process ids of a deployment's replicas that run."""
    from ray.serve.context import _get_global_client

    client: Any = _get_global_client()
    (application,) = client.get_serve_details()["applications"].values()
    for replica in application["deployments"][name]["replicas"]:
        if replica["state"] == "RUNNING":
            yield replica["pid"]


async def kill(name: str) -> None:
    """Kills a replica, and waits until there are as many as before."""

    def alive() -> set[int]:
        return set(processes(name))

    before = await asyncio.to_thread(alive)
    victim = next(iter(before))
    os.kill(victim, signal.SIGKILL)
    while len(await asyncio.to_thread(alive) - {victim}) < len(before):
        await asyncio.sleep(0.2)


def main(argv: list[str] | None = None) -> int:
    """Runs all of it; the exit code is 1 where something was lost that should not be."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run")
    parser.add_argument("--storage", default="storage")
    parser.add_argument("--method")
    parser.add_argument("--data", type=Path, required=True, help="folder of the run's tasks")
    parser.add_argument("--seconds", type=float, default=10, help="of each measurement")
    parser.add_argument("--replicas", type=int, default=1, help="of the router and of the experts")
    parser.add_argument("--threads", type=int, default=1, help="a replica")
    parser.add_argument("--pictures", type=int, default=20, help="a task")
    parser.add_argument("--json", type=Path, help="file of results")
    options = parser.parse_args(argv)
    last = resolved(ServeArguments(run=options.run, storage=options.storage, method=options.method).source)
    assert last.session is not None, "resolved"
    before = resolved(last.model_copy(update={"session": last.session - 1}))
    arguments = ServeArguments(
        **last.model_dump(),
        threads=options.threads,
        min_replicas=options.replicas,
        max_replicas=options.replicas,
        time_limit=120,  # a replica takes long to start on a machine that is full
    )
    predictor = Predictor(load_source(last), "cpu")
    items = pictures(options.data, predictor.tasks, options.pictures)
    with serving(arguments, "127.0.0.1", 0) as server:
        differ = [asyncio.run(compare(server.address, predictor, items[:24], known)) for known in (True, False)]
        print(f"answers are the Predictor's: probabilities differ by at most {max(differ):.1g}")
        rows, wrong = measure(server, items, options.seconds, before, last)
    show(rows)
    if options.json:
        write(options, predictor, rows, max(differ))
    for sentence in wrong:
        print(f"wrong: {sentence}")
    return int(bool(wrong))


def measure(server: Server, items: list[Item], seconds: float, before: Any, last: Any) -> tuple[list[Any], list[str]]:
    """Returns the table's rows, and what is not as it should be."""
    rows: list[Any] = []
    wrong: list[str] = []

    def load(what: str, known: bool, at_once: int, meanwhile: Callable[[], Awaitable[None]] | None = None) -> Tally:
        tally = asyncio.run(Load(server.address, items, known, at_once).run(seconds, meanwhile))
        rows.append(tally.row(what, at_once))
        print(*rows[-1], flush=True)
        return tally

    asyncio.run(Load(server.address, items, True, 4).run(2))  # experts are decoupled, prompts encoded
    asyncio.run(Load(server.address, items, False, 4).run(2))
    for known, what in ((True, "task known"), (False, "task not known")):
        for at_once in (1, 8, 64):
            if rows_lost(load(what, known, at_once), at_once):
                wrong.append(f"{what}, {at_once} at once: requests were lost")
    tally = load("overload", False, 400)
    if not tally.statuses["503"] or tally.statuses.total() != tally.statuses["503"] + tally.statuses["200"]:
        wrong.append(f"overload: {dict(tally.statuses)}, not answers and 503 alone")
    if rows_lost(load("after the overload", False, 8), 8):
        wrong.append("after the overload: requests were lost")
    for name in ("Router", "Experts", "Front"):
        at_once = 8
        tally = load(f"a replica of {name} killed", False, at_once, partial(kill, name))
        # what a front had is lost with it; connections that the proxy had to it are refused until it knows
        if tally.row("", 0)[-1] > (at_once if name == "Front" else 0):
            wrong.append(f"{name} killed: more lost than it had: {dict(tally.statuses)}")

    async def swap() -> None:
        for source in (before, last):
            await asyncio.to_thread(server.deploy, source)
            async with aiohttp.ClientSession() as session:
                while True:
                    async with session.get(f"{server.address}/about") as answer:
                        if (await answer.json(content_type=None)).get("session") == source.session:
                            break
                    await asyncio.sleep(0.1)
            await asyncio.sleep(1)

    for at_once in (8, 64):
        tally = load("two swaps of the session", False, at_once, swap)
        if rows_lost(tally, at_once) or tally.statuses["503"]:
            wrong.append(f"swap: {dict(tally.statuses)}, not answers alone")
        if set(tally.sessions) != {before.session, last.session}:
            wrong.append(f"swap: answers by sessions {sorted(tally.sessions)} alone")
    return rows, wrong


def rows_lost(tally: Tally, at_once: int) -> int:
    """Requests that were neither answered nor refused."""
    return int(tally.row("", at_once)[-1])


def show(rows: list[Any]) -> None:
    """Prints the table."""
    from condu_ray.report.results_page import table

    print(table({"columns": COLUMNS, "rows": rows}))


def write(options: argparse.Namespace, predictor: Predictor, rows: list[Any], differ: float) -> None:
    """Writes the table as a file of results; what was written by hand there stays."""
    known = json.loads(options.json.read_text()) if options.json.exists() else {"title": "Serving"}
    found = known | {
        "columns": COLUMNS,
        "command": "python jobs/bench/serve.py RUN --storage DIR --data DIR --json FILE",
        "setting": f"{predictor.served.name}, {predictor.served.backbone.spec.name}; {options.replicas} replica(s) of "
        f"router and experts, {options.threads} thread(s) each; {os.cpu_count()} shared CPU cores "
        f"({platform.machine()}), clients on the same; answers differ from the Predictor's by at most {differ:.1g}; "
        f"condu_ray {__version__}, torch {torch.__version__.partition('+')[0]}.",
        "rows": rows,
    }
    options.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    raise SystemExit(main())
