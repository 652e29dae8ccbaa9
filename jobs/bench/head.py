"""The head's memory against the number of lanes, and what the lanes take of the nodes that work.

``python jobs/bench/head.py --lanes 1 4 8 --json FILE``. A cluster on this machine, of a head without CPUs, where this
driver stands, and two nodes that work. Lanes are real (`orchestration/lanes/fit.py`): controller, its actors,
callbacks, the driver's threads. Their workers sleep in place of training and are left out, as are idle processes.
``--alone`` has no other nodes, so that all stands with the driver. ``--workers 2`` takes lanes that set up a process
group, as those on GPUs do. Memory is what a process has to itself (USS), so that what all share counts once, with the
fixed part.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

import psutil
from rich.console import Console
from rich.table import Table

OTHERS = ("RayTrainWorker", "IDLE", "TrainWorker")
"""Processes that are left out, by their titles' beginnings."""
SETTLE = 5.0
NODES = 2


def asleep(given: dict[str, Any]) -> None:
    """What a worker does here: says that it is there, and waits for its end."""
    folder = Path(str(given["lane"].config.storage))
    (folder / f"at-work-{given['lane'].number}-{os.getpid()}").touch()
    while not (folder / "end").exists():
        time.sleep(0.2)


def memory(raylets: dict[int, str]) -> dict[str, list[float]]:
    """MiB of every process of Ray's on this machine, and of this one, by where it stands and its title.

    Args:
        raylets: of the nodes that work, by their process's number, what to call the node.
    """
    found: dict[str, list[float]] = defaultdict(list)
    me = psutil.Process()
    for process in [me, *me.children(recursive=True)]:
        try:
            words = process.cmdline()
            title = "the driver" if process == me else Path(words[0].split()[0]).name if words else "?"
            if title.startswith("ray::"):
                title = title.removeprefix("ray::").split(".")[0].split("(")[0]
            elif process != me and title.startswith("python"):
                title = next((Path(word).name for word in words[1:] if word.endswith(".py")), title)
            where = next((raylets[one.pid] for one in [process, *process.parents()] if one.pid in raylets), "head")
            if not title.startswith(OTHERS):
                found[f"{where}: {title}"].append(process.memory_full_info().uss / 2**20)
        except psutil.NoSuchProcess:
            continue
    return found


def once(lanes: int, workers: int, alone: bool) -> dict[str, list[float]]:
    """Starts so many lanes and returns the memory of all processes with all of them at work."""
    import ray
    from ray.cluster_utils import Cluster

    from condu_ray.config import Experiment
    from condu_ray.orchestration.cluster import env
    from condu_ray.orchestration.cluster.background import background
    from condu_ray.orchestration.cluster.room import Room
    from condu_ray.orchestration.lanes import fit
    from condu_ray.orchestration.lanes.board import Board
    from condu_ray.orchestration.lanes.lane import Lane
    from condu_ray.orchestration.lanes.places import Places

    env.apply()
    fit.train_lane = asleep
    cpus = 8 * lanes * workers
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": cpus if alone else 0})
    nodes = [] if alone else [cluster.add_node(num_cpus=cpus) for _ in range(NODES)]
    raylets = {one.process.pid: "node" for node in nodes for one in node.all_processes["raylet"]}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        config = Experiment(storage=folder, run="bench", training={"workers": workers})  # type: ignore[arg-type]
        ray.init(cluster.address, log_to_driver=False, namespace=env.namespace("bench"))
        board = ray.remote(Board).options(num_cpus=0, **env.named("board", "bench")).remote()
        given = [Lane(number, config, None, {}, "fp32", 1, board) for number in range(lanes)]  # type: ignore[arg-type]
        room, places = Room(lanes, 0, 0, 1), Places()
        running = [background(fit.Fit(lane, room, folder / "train", places).run) for lane in given]
        while len(list(folder.glob("at-work-*"))) < lanes * workers:
            if any(one.done() for one in running):
                raise SystemExit("a lane has ended")
            time.sleep(0.5)
        time.sleep(SETTLE)
        found = memory(raylets)
        (folder / "end").touch()
        for one in running:
            one.result()
        ray.shutdown()
        cluster.shutdown()
    return found


def main() -> None:
    """Prints a column a number of lanes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lanes", type=int, nargs="+", default=[1, 4, 8])
    parser.add_argument("--workers", type=int, default=1, help="training workers a lane")
    parser.add_argument("--alone", action="store_true", help="no nodes but the driver's")
    parser.add_argument("--json", type=Path, help="write what was found here too")
    given = parser.parse_args()
    columns = {count: once(count, given.workers, given.alone) for count in given.lanes}
    titles = sorted({title for found in columns.values() for title in found})
    table = Table("where: process (how many): MiB", *(f"{count} lanes" for count in columns))
    for title in titles:
        cells = [found.get(title, []) for found in columns.values()]
        table.add_row(title, *(f"{sum(each):.0f} ({len(each)})" for each in cells))
    for where in ("head", "node"):
        sums = {
            count: sum(sum(each) for title, each in found.items() if title.startswith(where))
            for count, found in columns.items()
        }
        table.add_row(f"{where}: all", *(f"{value:.0f}" for value in sums.values()))
        (first, low), (last, high) = min(sums.items()), max(sums.items())
        if last > first:
            more = f"{(high - low) / (last - first):.0f}"
            table.add_row(f"{where}: a lane more", *([""] * (len(columns) - 1)), more)
    Console(width=140).print(table)
    if given.json:
        given.json.write_text(json.dumps({str(count): found for count, found in columns.items()}, indent=1))


if __name__ == "__main__":
    main()
