"""Kill everything, everywhere, and see that nothing is lost: ``python jobs/faults/chaos.py --kills 100 --seed 0``.

First without Ray: what three sessions put into storage, SIGKILLed at every commit point (before and after every fsync,
rename, link and removal, in the middle of a ledger's line), by every method given; then with the power cut there, so
that what no fsync had put on the disk is gone as well. The same with storage in a bucket, before and after every
request, each of which is also lost, or answered by a fault or slowly. Then whole runs on Ray, until as many kills were
carried out as asked: of the driver, Train workers and their controller, data workers, the state actor, evaluators,
Ray's own daemons, the whole machine, nodes of a cluster and the MLflow server, at commit points and at random moments.
After each the same command runs to the end, and what it made is compared with an undisturbed run.

``--bucket`` has the storage of the whole runs in a bucket, of which one request in fifty goes wrong, and in place of
commit points kills whoever sends a request, before or after it is carried out; the first part is then the bucket's too.
``--short`` leaves the whole runs out and tries every point of the first two methods once. Exit code 1 when anything was
lost or differs.
"""

import argparse
import json
import random
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import closing, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[2]))

from jobs.faults.bucket_runs import BucketArena
from jobs.faults.commits import Harness, Outcome
from jobs.faults.object_commits import requests
from jobs.faults.servers import Nodes, mlflow_server
from jobs.faults.victim import ROOT
from jobs.faults.whole_runs import METHODS, Arena, Kill, Round

ROLES = (
    "train worker", "state actor", "evaluator", "data worker", "driver", "train controller", "board",
    "measuring service",
    "machine",
    "raylet", "gcs_server",
)  # fmt: skip
"""Who is killed at random moments, in turn."""
MOMENTS = 3
"""Kills at random moments in a round."""
COMMITS = re.compile(r"(rename|replace|link) .*, after|(write|fsync) .*ledger")
"""Points after which something has its name, which it must not have had before it was on the disk."""
EVERY = 5
"""Every so many rounds, one loses nodes and one loses its MLflow server."""


def commit_points(folder: Path, methods: Sequence[str], once: bool, every: int = 1) -> dict[str, list[Outcome]]:
    """Kills at commit points, without Ray, once the process and once the machine.

    Args:
        folder: an empty folder.
        methods: methods that merge.
        once: whether to kill once at every point that has a name, and not every time that it is passed; and to cut the
            power only where something has just been renamed or linked, or a ledger's line was written.
        every: how many of the points to pass for one that is tried.

    Returns:
        Outcomes by method and by what dies.
    """
    found = {}
    for method in methods:
        place = folder / method
        place.mkdir(parents=True)
        harness = Harness(place, method)
        points = harness.points()
        if once:
            points = list({point.point: point for point in points}.values())
        found[f"{method}, the process"] = [harness.kill(point) for point in points[::every]]
        if once:
            points = [point for point in points if COMMITS.search(point.point)]
        found[f"{method}, the power"] = [harness.kill(point, power=True) for point in points[::every]]
    return found


def whole_runs(arena: Arena, kills: int, seed: int, console: Console, first: int = 0) -> list[Round]:
    """Plays rounds until so many kills were carried out.

    Args:
        arena: prepared.
        kills: how many.
        seed: of what is drawn.
        console: where a line a round goes.
        first: number of the first round.
    """
    rounds: list[Round] = []
    while sum(len(one.killed) for one in rounds) < kills:
        number = first + len(rounds)
        draw = random.Random(f"{seed} {number}")
        if number % EVERY == EVERY - 2:
            with closing(Nodes()) as cluster:
                found = arena.play(
                    f"round{number}",
                    [Kill("node")] * 4,
                    draw,
                    changes={"cluster__address": cluster.address},
                    others={"node": cluster.lose},
                    pause=(20.0, 40.0),
                )
        elif number % EVERY == EVERY - 1:
            found = without_mlflow(arena, f"round{number}", draw)
        else:
            planned = []
            for role, count in arena.shares.items():
                points = [point for point in arena.points if point.role == role]
                planned += [Kill(role, one.point, draw.randint(1, one.hit)) for one in draw.sample(points, count)]
            planned += [Kill(ROLES[(number * MOMENTS + place) % len(ROLES)]) for place in range(MOMENTS)]
            found = arena.play(f"round{number}", planned, draw)
        rounds.append(found)
        words = "finished" if found.finished else "NOT FINISHED"
        same = "identical" if found.identical else "DIFFERENT"
        console.print(
            f"round {number}: {len(found.killed)} kills, {words}, {same}, {found.lost} sessions lost, "
            f"{found.seconds:.0f} s  {found.problem}"
        )
    return rounds


def without_mlflow(arena: Arena, name: str, draw: random.Random) -> Round:
    """Plays a round that loses its MLflow server, and sends afterwards what did not arrive."""
    with mlflow_server(arena.folder / f"{name}-mlflow") as server:
        kills, where = [Kill("MLflow server")] * 3, {"tracking__uri": server.uri}
        found = arena.play(name, kills, draw, changes=where, others={"MLflow server": server.lose}, pause=(8.0, 20.0))
        server.wait()
        report = [sys.executable, str(ROOT / "jobs" / "report.py"), "r", "--storage", str(arena.storage(name))]
        synced = subprocess.run(
            [*report, "--sync-mlflow", "--tracking-uri", server.uri], capture_output=True, text=True
        )
        if synced.returncode or (sent := finished_runs(server.uri)) != len(METHODS):
            missing = synced.stderr[-500:] or f"MLflow has {sent} finished runs of {len(METHODS)}"
            found.identical, found.problem = False, missing
    return found


def finished_runs(uri: str) -> int:
    """Returns how many runs of the experiment have ended well."""
    from mlflow import MlflowClient

    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("condu_ray")
    runs = client.search_runs([experiment.experiment_id]) if experiment else []
    return sum(run.info.status == "FINISHED" for run in runs)


def table_of_points(found: dict[str, list[Outcome]]) -> Table:
    """Returns outcomes of kills at commit points, a row a method and what dies."""
    table = Table("three sessions without Ray", "points", "kills", "ended", "identical", "sessions lost")
    for name, outcomes in found.items():
        row = [len({one.point.point for one in outcomes}), sum(one.killed for one in outcomes)]
        row += [sum(one.finished for one in outcomes), sum(one.identical for one in outcomes)]
        table.add_row(name, *map(str, [*row, sum(one.lost for one in outcomes)]))
    return table


def table_of_runs(rounds: Sequence[Round]) -> Table:
    """Returns outcomes of whole runs, a row a kind of kill; a run counts in each row of which it had a kill."""
    table = Table("whole runs: killed", "when", "kills", "runs", "ended", "identical", "sessions lost")
    for role, when in sorted({kill for one in rounds for kill in one.killed}):
        own = [one for one in rounds if (role, when) in one.killed]
        row = [sum(one.killed.count((role, when)) for one in own), len(own), sum(one.finished for one in own)]
        table.add_row(role, when, *map(str, [*row, sum(one.identical for one in own), sum(one.lost for one in own)]))
    row = [sum(len(one.killed) for one in rounds), len(rounds), sum(one.finished for one in rounds)]
    row += [sum(one.identical for one in rounds), sum(one.lost for one in rounds)]
    table.add_row("all", "", *map(str, row), style="bold")
    return table


def main() -> None:
    """Kills, and prints what came of it."""
    parser = argparse.ArgumentParser(description="Kill everything, everywhere, and see that nothing is lost.")
    parser.add_argument("--kills", type=int, default=100, help="kills in whole runs, at least")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="number of the first whole run, to play one again")
    parser.add_argument(
        "--methods",
        default="condu,condu-svd,condu-sign,pam,sequential",
        help="for the kills without Ray; none: leave these out",
    )
    parser.add_argument("--short", action="store_true", help="no whole runs, every point of the first two methods once")
    parser.add_argument("--bucket", action="store_true", help="whole runs with storage in a bucket, no points on disk")
    parser.add_argument("--out", type=Path, help="folder for chaos.json; default: none is written")
    options = parser.parse_args()
    console = Console(highlight=False, soft_wrap=True)
    folder, begin = Path(tempfile.mkdtemp(prefix="chaos-")), time.monotonic()
    methods = [] if options.methods == "none" else options.methods.split(",")
    points: dict[str, list[Outcome]] = {}
    if not options.bucket:
        points |= commit_points(folder / "points", methods[:2] if options.short else methods, options.short)
    for method in methods[:1] if options.short else methods:
        points |= requests(folder / "requests" / method, method, options.short)
    console.print(table_of_points(points))
    rounds: list[Round] = []
    undisturbed = 0.0
    if not options.short:
        arena = BucketArena(folder / "runs", options.seed) if options.bucket else Arena(folder / "runs")
        arena.prepare()
        undisturbed = arena.undisturbed
        console.print(f"undisturbed run: {undisturbed:.0f} s, {len(arena.points)} commit points")
        with suppress(KeyboardInterrupt):
            rounds = whole_runs(arena, options.kills, options.seed, console, options.first)
        console.print(table_of_runs(rounds))
        kills = max(1, sum(len(one.killed) for one in rounds))
        more = sum(one.seconds - undisturbed for one in rounds)
        console.print(
            f"{kills} kills cost {more:.0f} s of work done again and started again: {more / kills:.0f} s a kill"
        )
        if isinstance(arena, BucketArena):
            console.print(f"{arena.faults} requests of {arena.requests} to the bucket went wrong")
            arena.close()
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        written: dict[str, Any] = {"points": {name: [asdict(one) for one in found] for name, found in points.items()}}
        written |= {"rounds": [asdict(one) for one in rounds], "undisturbed": undisturbed, "seed": options.seed}
        (options.out / "chaos.json").write_text(json.dumps(written, indent=1), encoding="utf-8")
    outcomes = [one for found in points.values() for one in found]
    bad = [one for one in outcomes if not (one.killed and one.finished and one.identical) or one.lost]
    bad_rounds = [one for one in rounds if not (one.finished and one.identical) or one.lost]
    for problem in [*bad, *bad_rounds]:
        console.print(problem, markup=False)
    console.print(f"{time.monotonic() - begin:.0f} s in all; the storages are in {folder}")
    if bad or bad_rounds:
        sys.exit(f"{len(bad)} kills and {len(bad_rounds)} runs did not end as they must")


if __name__ == "__main__":
    main()
