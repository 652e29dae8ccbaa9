"""The head's memory against the number of lanes: what each fit of Ray Train pins on the driver's node.

``python jobs/bench/head.py --lanes 1 4 8 --json FILE``. Lanes are real (`orchestration/lanes/fit.py`): controller, its
actors, callbacks, the driver's threads. Their workers sleep in place of training, for they stand on other nodes in a
cluster, and are left out, as are idle processes. ``--torch`` takes the trainer of GPUs and of several workers a lane.
Memory is what a process has to itself (USS), so that what all share counts once, with the fixed part.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import threading
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

import psutil
from rich.console import Console
from rich.table import Table

OTHERS = ("RayTrainWorker", "IDLE", "TrainWorker")
"""Processes of other nodes, by their titles' beginnings."""
SETTLE = 5.0


def asleep(given: dict[str, Any]) -> None:
    """What a worker does here: says that it is there, and waits for its end."""
    folder = Path(str(given["lane"].config.storage))
    (folder / f"at-work-{given['lane'].number}").touch()
    while not (folder / "end").exists():
        time.sleep(0.2)


def memory() -> dict[str, list[float]]:
    """MiB of every process of Ray's on this machine that is a head's, and of this one, by its title."""
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
            if not title.startswith(OTHERS):
                found[title].append(process.memory_full_info().uss / 2**20)
        except psutil.NoSuchProcess:
            continue
    return found


def once(lanes: int, torch: bool) -> dict[str, list[float]]:
    """Starts so many lanes and returns the head's memory with all of them at work."""
    import ray

    from condu_ray.config import Experiment
    from condu_ray.orchestration.cluster import env
    from condu_ray.orchestration.cluster.room import Room
    from condu_ray.orchestration.lanes import fit
    from condu_ray.orchestration.lanes.lane import Lane

    env.apply()
    fit.train_lane = asleep
    if torch:
        from ray.train.torch import TorchTrainer

        fit.trainer_of = lambda workers, gpus: TorchTrainer
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        config = Experiment(storage=folder, run="bench")
        ray.init(num_cpus=8 * lanes, include_dashboard=False, log_to_driver=False, namespace=env.namespace("bench"))
        given = [Lane(number, config, None, {}, "fp32", 1, None) for number in range(lanes)]  # type: ignore[arg-type]
        room = Room(lanes, 0, 0, 1)
        threads = [threading.Thread(target=fit.fit_lane, args=(lane, room, folder / "train")) for lane in given]
        for thread in threads:
            thread.start()
        while len(list(folder.glob("at-work-*"))) < lanes:
            if not any(thread.is_alive() for thread in threads):
                raise SystemExit("the lanes have ended")
            time.sleep(0.5)
        time.sleep(SETTLE)
        found = memory()
        (folder / "end").touch()
        for thread in threads:
            thread.join()
        ray.shutdown()
    return found


def main() -> None:
    """Prints a column a number of lanes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lanes", type=int, nargs="+", default=[1, 4, 8])
    parser.add_argument("--torch", action="store_true", help="lanes whose trainer sets up a process group")
    parser.add_argument("--json", type=Path, help="write what was found here too")
    given = parser.parse_args()
    columns = {count: once(count, given.torch) for count in given.lanes}
    titles = sorted({title for found in columns.values() for title in found})
    table = Table("process (how many): MiB", *(f"{count} lanes" for count in columns))
    for title in titles:
        cells = [found.get(title, []) for found in columns.values()]
        table.add_row(title, *(f"{sum(each):.0f} ({len(each)})" for each in cells))
    sums = {count: sum(map(sum, found.values())) for count, found in columns.items()}
    table.add_row("all", *(f"{value:.0f}" for value in sums.values()))
    (first, low), (last, high) = min(sums.items()), max(sums.items())
    if last > first:
        table.add_row("a lane more", *([""] * (len(columns) - 1)), f"{(high - low) / (last - first):.0f}")
    Console(width=140).print(table)
    if given.json:
        given.json.write_text(json.dumps({str(count): found for count, found in columns.items()}, indent=1))


if __name__ == "__main__":
    main()
