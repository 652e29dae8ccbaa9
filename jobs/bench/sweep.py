"""What a sweep over task orders saves: its wall time against independent runs of the main job over the same orders.

`python jobs/bench/sweep.py --orders 12` sweeps mini-MTIL in empty storage, then runs every order on its own, each in
empty storage too; the tasks are drawn before, once for all. It prints both times, their ratio, the experts that were
fine-tuned, and whether every accuracy is the same number in both.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from condu_ray.store.layout import results_path, run_folder, sweep_folder, sweep_numbers_path

JOBS = Path(__file__).parents[1]


def timed(job: str, flags: list[str]) -> float:
    """Wall seconds of a job, which must succeed."""
    begin = time.perf_counter()
    done = subprocess.run([sys.executable, str(JOBS / job), *flags], check=False, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{job} {' '.join(flags)} failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return time.perf_counter() - begin


def read(path: Path) -> Any:
    """Returns what a JSON file holds."""
    return json.loads(path.read_text(encoding="utf-8"))


def main() -> None:
    """Runs the sweep, then the runs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--orders", type=int, default=12, help="orders of the tasks (default: 12)")
    parser.add_argument("--method", default="condu", help="methods, comma-separated (default: condu)")
    parser.add_argument("--steps", type=int, default=0, help="training steps a task; 0: the recipe's")
    arguments = parser.parse_args()
    from condu_ray.benchmark.mini_mtil.draw import MINI_MTIL_DEFAULT, mini_mtil

    methods = arguments.method.split(",")
    with tempfile.TemporaryDirectory() as folder:
        mini_mtil(Path(folder) / "data")
        common = ["--recipe", "mini_mtil", "--data", f"{folder}/data", "--method", arguments.method]
        common += ["--training.steps", str(arguments.steps)] if arguments.steps else []
        names = ["--tasks", ",".join(MINI_MTIL_DEFAULT)]
        swept = ["--orders", str(arguments.orders), "--run", "bench", "--storage", f"{folder}/sweep"]
        together = timed("sweep_orders.py", [*common, *names, *swept])
        trials = sweep_folder(Path(folder) / "sweep", "bench")
        experts = read(sweep_numbers_path(trials))["extra"]["costs"]["experts_different"]
        print(f"sweep: {arguments.orders} orders in {together:.0f} s, {experts} experts fine-tuned", flush=True)
        records = [read(path) for path in sorted(trials.glob("trials/*.json"))]
        wanted = {(record["method"], tuple(record["order"])): record["accuracy"] for record in records}
        apart, trained, same = 0.0, 0, 0
        for number, order in enumerate(dict.fromkeys(order for _, order in wanted)):
            storage = f"{folder}/run{number}"
            flags = ["--tasks", ",".join(order), "--run", "bench", "--storage", storage]
            seconds = timed("run_mtil.py", [*common, *flags])
            found = read(results_path(run_folder(Path(storage), "bench")))
            apart, trained = apart + seconds, trained + found["experts_trained"]
            same += sum(found["methods"][name]["accuracy"] == wanted[name, order] for name in methods)
            print(f"run {number + 1}: {seconds:.0f} s", flush=True)
    print(
        f"independent runs: {apart:.0f} s, {trained} experts fine-tuned; ratio {apart / together:.2f}; "
        f"the same accuracies in {same} of {len(wanted)} tables"
    )


if __name__ == "__main__":
    main()
