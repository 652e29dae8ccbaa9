"""What changes bits and what does not: ``python jobs/bench/determinism.py``.

Plays one run (three drawn tasks, the embedded backbone) in storages of its own: once more, with more lanes, with more
evaluators, with more threads, with more workers, in fp32 (where the machine's choice is bf16); and compares experts,
unified deltas and accuracies with the first.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from safetensors.torch import load_file

sys.path.insert(0, str(Path(__file__).parents[2]))

from condu_ray.merging import reconstruction
from condu_ray.store.layout import results_path, run_folder
from jobs.faults.victim import Victim
from jobs.faults.whole_runs import SECONDS, Arena

VARIANTS: dict[str, dict[str, object]] = {
    "the first": {},
    "the same once more": {},
    "2 lanes": {"training__lanes": 2},
    "2 evaluators": {"evaluation__evaluators": 2},
    "2 threads": {"training__threads": 2},
    "2 workers": {"training__workers": 2},
    "fp32": {"training__precision": "fp32"},
}


def play(arena: Arena, name: str, changes: Mapping[str, object], method: str) -> Path:
    """Runs once to the end.

    Returns:
        The storage folder.
    """
    storage = arena.folder / name.replace(" ", "-")
    log = storage.with_suffix(".log")
    victim = Victim("run_mtil.py", arena.flags(storage, method=method, **changes), log)
    try:
        if victim.process.wait(SECONDS):
            sys.exit(f"{name}: the run failed: {log.read_text(encoding='utf-8')[-2000:]}")
    finally:
        victim.stop()
    return storage


def deltas(storage: Path) -> dict[str, dict[str, torch.Tensor]]:
    """Returns every expert's delta by its task."""
    found = {}
    for path in sorted(storage.glob("experts/[!.]*/meta.json")):
        task = json.loads(path.read_text(encoding="utf-8"))["task"]
        found[task] = load_file(path.with_name("delta.safetensors"))
    return found


def accuracies(storage: Path) -> list[float]:
    """Returns the whole matrix of every method, row by row, in percent."""
    results = json.loads((results_path(run_folder(storage, "r"))).read_text(encoding="utf-8"))
    return [value for found in results["methods"].values() for row in found["accuracy"] for value in row]


def main() -> None:
    """Plays all variants and prints the table."""
    parser = argparse.ArgumentParser(description="What changes bits and what does not.")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--method", default="condu")
    options = parser.parse_args()
    arena = Arena(Path(tempfile.mkdtemp(prefix="determinism-")), options.steps)
    table = Table("run", "equal experts", "largest relative L2", "equal states", "accuracy differs by", "seconds")
    first: Path | None = None
    for name, changes in VARIANTS.items():
        begin = time.monotonic()
        storage = play(arena, name, changes, options.method)
        seconds = time.monotonic() - begin
        first = first or storage
        own, theirs = deltas(storage), deltas(first)
        equal = sum(all(torch.equal(own[task][key], theirs[task][key]) for key in theirs[task]) for task in theirs)
        apart = max(reconstruction(theirs[task], own[task]).relative_l2 for task in theirs)
        states = [sorted(place.glob("runs/r/*/sessions/[!.]*/*.safetensors")) for place in (storage, first)]
        same = sum(one.read_bytes() == other.read_bytes() for one, other in zip(*states, strict=True))
        points = max(abs(a - b) for a, b in zip(accuracies(storage), accuracies(first), strict=True))
        row = [f"{equal} of {len(theirs)}", f"{apart:.2g}", f"{same} of {len(states[1])}", f"{points:.1f} points"]
        table.add_row(name, *row, f"{seconds:.0f}")
        print(f"{name}: {', '.join(row)}, {seconds:.0f} s", flush=True)
    Console().print(table)


if __name__ == "__main__":
    main()
