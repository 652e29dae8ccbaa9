"""What the main job costs at full size: ViT-B/16 with random weights through the whole of it, on this machine's CPUs.

`python jobs/rehearse_full_size.py` makes ViT-B-16-quickgelu in open_clip's layout (600 MB of float32), runs
`jobs/run_mtil.py` on three of mini-MTIL's tasks for a few steps, and prints and keeps seconds a phase, memory by
process (PSS, sampled) and bytes on disk. Accuracies are those of noise; nothing else differs from a run with OpenAI's
weights.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import psutil

from condu_ray.report.results_page import FOLDER, dumps, read_results
from condu_ray.store.provenance import provenance
from jobs.faults.victim import Victim

MODEL = "ViT-B-16-quickgelu"
SAMPLE_SECONDS = 2.0
"""Between two looks at memory: PSS costs a walk over a process's pages."""


def make_weights(path: Path) -> None:
    """Writes random weights of the architecture, if they are not there."""
    if path.exists():
        return
    import open_clip
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(0)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(open_clip.create_model(MODEL, pretrained=None).state_dict(), path)


class Memory:
    """The most that the processes of a job took, by what they are and all together, in bytes."""

    def __init__(self) -> None:
        self.most: dict[str, int] = {}

    def look(self, job: Victim) -> None:
        """Takes a sample."""
        roles = job.roles() | {"driver": [psutil.Process(job.process.pid)]}
        total = 0
        for role, processes in roles.items():
            sizes = []
            for process in processes:
                with suppress(psutil.Error):
                    sizes.append(process.memory_full_info().pss)
            total += sum(sizes)
            role = role.strip()  # Ray's titles are as long as the command lines that they stand in for
            self.most[role] = max(self.most.get(role, 0), *sizes, 0)
        self.most["all together"] = max(self.most.get("all together", 0), total)


def seconds(storage: Path, run: str) -> dict[str, float]:
    """Returns the seconds of each kind of work, as storage has them: sums over experts, sessions and measurements."""
    experts = [json.loads(path.read_text()) for path in storage.glob("experts/[!.]*/meta.json")]
    lines = [line for path in storage.glob(f"runs/{run}/*/ledger.jsonl") for line in path.read_text().splitlines()]
    measured = [json.loads(path.read_text()) for path in storage.glob("evaluations/*.json")]
    return {
        f"{len(experts)} experts": sum(one["seconds"] for one in experts),
        f"{len(lines)} merges": sum(json.loads(line)["seconds"] for line in lines),
        f"{len(measured)} measurements": sum(one["seconds"] for one in measured),
    }


def sizes(storage: Path, run: str) -> dict[str, int]:
    """Returns bytes on disk by kind."""
    places = {
        "experts": storage / "experts", "sessions": storage / "runs" / run, "prototypes": storage / "prototypes",
        "features": storage / "features",
    }  # fmt: skip
    return {
        name: sum(path.stat().st_size for path in place.rglob("*") if path.is_file()) for name, place in places.items()
    }


def rehearse(given: argparse.Namespace) -> dict[str, Any]:
    """Runs the main job and returns what it cost."""
    weights, storage = given.folder / f"{MODEL}.safetensors", given.folder / "storage"
    make_weights(weights)
    shutil.rmtree(storage, ignore_errors=True)
    flags = {
        "model": MODEL, "pretrained": weights, "storage": storage, "run": "rehearsal", "tasks": given.tasks,
        "method": given.method, "training.steps": given.steps, "training.batch_size": given.batch_size,
        "shots": given.shots,
        "evaluation.max_images": given.max_images, "training.lanes": given.lanes, "training.threads": given.threads,
        "training.precision": "fp32", "lora.scale": 0.125, "lora.rank": 64,
    }  # fmt: skip
    begin, memory = time.perf_counter(), Memory()
    log = given.folder / "log"
    job = Victim("run_mtil.py", [part for name, value in flags.items() for part in (f"--{name}", str(value))], log)
    while job.process.poll() is None:
        with suppress(psutil.Error):
            memory.look(job)
        time.sleep(SAMPLE_SECONDS)
    if job.process.returncode:
        raise SystemExit(f"the job failed:\n{log.read_text()}")
    spent = {"in all": time.perf_counter() - begin} | seconds(storage, "rehearsal")
    return {"seconds": spent, "memory": memory.most, "disk": sizes(storage, "rehearsal"), "versions": provenance()}


def table(found: Mapping[str, Any], given: argparse.Namespace) -> dict[str, Any]:
    """Returns what was found as a file of results has it."""
    rows: list[list[Any]] = [["time", name, f"{value:.1f} s"] for name, value in found["seconds"].items()]
    by_size = sorted(found["memory"].items(), key=lambda entry: -entry[1])
    rows += [["memory, at most", name, f"{value / 2**30:.2f} GiB"] for name, value in by_size if value > 2**28]
    rows += [["disk", name, f"{value / 1e6:,.1f} MB"] for name, value in found["disk"].items()]
    versions = found["versions"]
    return {
        "title": "A rehearsal at full size",
        "columns": ["what", "of what", "how much"],
        "rows": rows,
        "command": "python jobs/rehearse_full_size.py",
        "setting": f"{MODEL} with random weights, {given.tasks}, {given.method}, {given.steps} steps of "
        f"{given.batch_size} images, {given.shots} training images a class, {given.max_images} test images a task, "
        f"{given.threads} threads, fp32; torch {versions['torch']}, revision {versions['git'][:7]}.",
    }


def main() -> None:
    """Reads flags, rehearses, prints, and writes `condu_ray/report/results/full_size.json` where that is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("storage/full_size"), help="for weights and storage")
    parser.add_argument("--tasks", default="charts,digits,faces", help="of mini-MTIL")
    parser.add_argument("--method", default="condu,condu-lora")
    for name, default in (
        ("steps", 4),
        ("batch_size", 8),
        ("shots", 5),
        ("max_images", 20),
        ("lanes", 1),
        ("threads", 2),
    ):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--keep", action="store_true", help="write the committed results")
    given = parser.parse_args()
    made = table(rehearse(given), given)
    for row in made["rows"]:
        print("{:16} {:24} {}".format(*row))
    if given.keep:
        path = FOLDER / "full_size.json"
        before = read_results(path) if path.exists() else {}
        kept = {key: value for key, value in before.items() if key in ("title", "about", "notes")}
        path.write_text(dumps(made | kept), encoding="utf-8")


if __name__ == "__main__":
    main()
