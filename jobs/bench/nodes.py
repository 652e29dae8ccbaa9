"""Time of a run against the number of nodes, with sleeping trainers: what the orchestration itself costs.

`python jobs/bench/nodes.py --out nodes.png` fine-tunes nothing: every expert sleeps for a known time, drawn by a seed.
All else is real: lanes take work from the run's board, a Ray actor, under claims in a storage folder, experts appear
there as files, and merges (which sleep too) follow in task order, one after the other, as the state actor does them.
Lanes are threads here and not nodes: start-up of Ray Train, decoding and the network are not in these figures.
"""

import argparse
import heapq
import random
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

NODES = (1, 2, 4, 8, 16, 32, 64)


def lane(board: Any, folder: Path, number: int, lengths: dict[str, float]) -> None:
    """What a lane does, with a sleep for the training."""
    import ray

    from condu_ray.orchestration.lanes.work import LOOK_SECONDS
    from condu_ray.store.artifacts import MANIFEST
    from condu_ray.store.claims import Claims

    with Claims(folder / ".claims") as claims:
        while (work := ray.get(board.take.remote(number, 1))) is not None:
            for expert in work:
                if claims.acquire(expert.key):
                    time.sleep(lengths[expert.key])
                    Path(expert.folder).mkdir(parents=True)
                    Path(expert.folder, MANIFEST).touch()
                    ray.get(board.trained.remote(expert.key))
                    claims.release(expert.key)
            if not work:
                time.sleep(LOOK_SECONDS)


def once(nodes: int, lengths: dict[str, float], merge: float) -> float:
    """Wall seconds of a run on so many lanes, from the first call of the board to the last merge."""
    import ray

    from condu_ray.config import Experiment
    from condu_ray.orchestration.lanes.board import Board
    from condu_ray.plan.expert import PlannedExpert

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        config = Experiment(storage=folder)
        work = [PlannedExpert(config, "condu", key, position, key) for position, key in enumerate(lengths)]
        board: Any = ray.remote(Board).options(num_cpus=0).remote(work, nodes)
        ray.get(board.close.remote())  # nothing more will be posted
        begin = time.perf_counter()
        lanes = [threading.Thread(target=lane, args=(board, folder, number, lengths)) for number in range(nodes)]
        for thread in lanes:
            thread.start()
        for expert in work:  # the state actor: one after the other, in task order
            while not expert.finished:
                time.sleep(0.01)
            time.sleep(merge)
        seconds = time.perf_counter() - begin
        for thread in lanes:
            thread.join()
        ray.kill(board)
    return seconds


def without_cost(nodes: int, lengths: dict[str, float]) -> float:
    """Seconds of the same experts, in the same order, on lanes that cost nothing: whichever is free takes the next."""
    ends = [0.0] * nodes
    for length in lengths.values():
        heapq.heapreplace(ends, ends[0] + length)
    return max(ends)


def draw(rows: list[tuple[int, float, float]], path: Path) -> None:
    """Time and efficiency over nodes, both beside what is ideal."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    nodes = [row[0] for row in rows]
    left.plot(nodes, [row[1] for row in rows], "o-", color="#1f5fa8", label="measured, sleeping trainers")
    left.plot(nodes, [row[2] for row in rows], "--", color="#8a8a8a", label="the same experts at no cost")
    left.set(xscale="log", yscale="log", xlabel="nodes", ylabel="seconds")
    right.plot(nodes, [100 * row[2] / row[1] for row in rows], "o-", color="#1f5fa8")
    right.set(xscale="log", xlabel="nodes", ylabel="% of the speed at no cost", ylim=(0, 105))
    for axes in (left, right):
        axes.set_xticks(nodes, [str(count) for count in nodes])
        axes.minorticks_off()
        axes.grid(alpha=0.3)
    left.legend(frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)


def main() -> None:
    """Runs all numbers of nodes, prints the table, draws the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--experts", type=int, default=128, help="experts of the run (default: 128)")
    parser.add_argument("--seconds", type=float, default=2.0, help="mean length of one; they differ by half of it")
    parser.add_argument("--merge", type=float, default=0.02, help="seconds of a merge (default: 0.02)")
    parser.add_argument("--out", type=Path, help="picture to write")
    arguments = parser.parse_args()
    from condu_ray.orchestration.cluster.env import ray_cluster
    from condu_ray.orchestration.watch.lines import Lines

    draws = random.Random(0)
    spread = arguments.seconds / 2
    lengths = {
        f"expert-{number:03d}": draws.uniform(arguments.seconds - spread, arguments.seconds + spread)
        for number in range(arguments.experts)
    }
    rows = []
    with ray_cluster("local", "bench_nodes", Lines()):
        for nodes in NODES:
            rows.append((nodes, once(nodes, lengths, arguments.merge), without_cost(nodes, lengths)))
    table = Table("Nodes", "Seconds", "At no cost", "% of its speed", title=f"{arguments.experts} experts, asleep")
    for nodes, seconds, least in rows:
        table.add_row(str(nodes), f"{seconds:.1f}", f"{least:.1f}", f"{100 * least / seconds:.0f}")
    Console().print(table)
    if arguments.out:
        draw(rows, arguments.out)


if __name__ == "__main__":
    main()
