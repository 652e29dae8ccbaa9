"""Images a second and peak memory of fine-tuning, beside the public way of doing it: ``python jobs/bench/train.py``.

Every row is a fresh process, as a task is in the public way: it starts, makes the backbone, and takes steps on a drawn
task whose images are in memory. Both take the same batches from the same weights; their loss curves are compared
before a time is printed. `--device cuda` takes ViT-B-16 in place of tiny-clip and ViT-B-32. What needs more memory
than is free is left out, and said. "CPU times" is the ratio of the CPU's seconds, which a busy machine does not change.
"of limit": what a step's own matrix products would take at this machine's rate (`limit.py`), as a share of the step.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

BEGIN = time.monotonic()
sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parents[2] / "cluster")]
SIDES = ("public", "condu_ray fp32", "condu_ray", "condu_ray compiled")
"""The public way; this package in fp32, in the precision that it takes on this machine, and so with its blocks compiled
(`training.compile`), whose first steps count as its start."""
HEAD = (
    "size", "classes", "side", "images/s", "times", "CPU times", "MiB", "less", "of limit", "start s", "curve off", "",
)  # fmt: skip


def child(options: argparse.Namespace) -> dict[str, Any]:
    """Trains in this process, and returns what was measured."""
    import torch

    from condu_ray.learn.precision import resolved_precision
    from condu_ray.vlm.towers import compiling
    from jobs.bench import limit, steps

    precision = "fp32" if options.side == SIDES[1] else resolved_precision("auto", options.device == "cuda")
    work = steps.drawn(steps.backbone(options.size, options.device), options.classes[0], options.batch)
    start = time.monotonic() - BEGIN
    if options.side == "public":
        precision, found = "fp32", steps.public(work, options.steps)
        products = limit.flops(lambda count: steps.public(work, count))
    else:
        if options.device == "cpu":  # as lanes do
            from condu_ray.orchestration.cluster.memory import keep_freed

            keep_freed()
        with compiling(work.backbone.model, options.side == SIDES[3]):
            if options.side == SIDES[3]:
                begin = time.monotonic()
                steps.ours(work, 2, precision)
                start += time.monotonic() - begin
            found = steps.ours(work, options.steps, precision)
        products = limit.flops(lambda count: steps.ours(work, count, precision))
    rate = limit.rate(work.device, torch.bfloat16 if precision == "bf16" else torch.float32)
    of_limit = products / rate / (found.cpu if options.device == "cpu" else found.step)
    return asdict(found) | {
        "start": start, "precision": precision, "threads": torch.get_num_threads(), "of limit": of_limit,
    }  # fmt: skip


def needed(size: str, classes: int, batch: int) -> float:
    """GiB that the public way needs by `cluster/sizing.py`; 0 for what it has no shape of."""
    import sizing

    if size in ("small", "tiny-clip"):
        return 0.0
    load = sizing.Load(batch=batch, classes=classes, prompt=77, bf16=False)
    return sizing.training_gpu(sizing.shape(size), load)


def free(device: str) -> float:
    """GiB of memory that are free."""
    if device == "cuda":
        import torch

        return float(torch.cuda.mem_get_info()[0]) / 2**30
    said = dict(line.split(":") for line in Path("/proc/meminfo").read_text(encoding="utf-8").splitlines())
    return int(said["MemAvailable"].split()[0]) / 2**20


def measured(options: argparse.Namespace, size: str, classes: int, side: str) -> dict[str, Any]:
    """Returns what a fresh process measured, the best of so many.

    Raises:
        CalledProcessError: it failed.
    """
    found: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "measured.json"
        command = [sys.executable, __file__, "--side", side, "--sizes", size, "--classes", str(classes)]
        command += ["--device", options.device, "--batch", str(options.batch), "--steps", str(options.steps)]
        for _ in range(options.repeats):
            subprocess.run([*command, "--out", str(path)], check=True, env=os.environ | {"PYTHONWARNINGS": "ignore"})
            found.append(json.loads(path.read_text(encoding="utf-8")))
    return max(found, key=lambda one: one["speed"])


def compared(options: argparse.Namespace, size: str, classes: int) -> list[dict[str, Any]]:
    """Returns the rows of one size and number of classes, each compared with the public way's."""
    from jobs.bench.steps import CURVE

    need, there = needed(size, classes, options.batch), free(options.device)
    if need > there:
        why = f"left out: the public way needs {need:.0f} GiB, {there:.0f} are free"
        return [{"size": size, "classes": classes, "side": why, "right": None}]
    rows: list[dict[str, Any]] = []
    for side in SIDES if options.compile else SIDES[:3]:
        row = measured(options, size, classes, side)
        first = rows[0] if rows else row
        apart = sum(abs(one - other) for one, other in zip(row["losses"], first["losses"], strict=True))
        row |= {
            "size": size,
            "classes": classes,
            "side": side if side == "public" else f"condu_ray {row['precision']}{', compiled' * (side == SIDES[3])}",
            "times": row["speed"] / first["speed"],
            "cpu times": first["cpu"] / row["cpu"],
            "less": first["memory"] / row["memory"],
            "off": apart / sum(first["losses"]),
        }
        row["right"] = row["off"] < CURVE[row["precision"]]
        if side == SIDES[2] and row["precision"] == "fp32":
            continue  # this machine has no bf16: it is the row before
        rows.append(row)
    return rows


def shown(row: dict[str, Any]) -> list[str]:
    """Returns a row's cells; none of a time where the curve is another one."""
    head = [row["size"], str(row["classes"]), row["side"]]
    if row["right"] is None:
        return head + [""] * 9
    if not row["right"]:
        return [*head, *[""] * 7, f"{row['off']:.1e}", "DIFFERS"]
    times = f"{row['speed']:.1f}", f"{row['times']:.2f}", f"{row['cpu times']:.2f}"
    numbers = *times, f"{row['memory']:.0f}", f"{row['less']:.2f}", f"{100 * row['of limit']:.0f} %"
    return [*head, *numbers, f"{row['start']:.1f}", f"{row['off']:.1e}", ""]


def main() -> int:
    """Measures everything in turn and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", help="tiny-clip, small, or open_clip architectures of CLIP")
    parser.add_argument("--classes", type=int, nargs="+", default=[10, 100, 397])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch", type=int, default=32, help="images a step")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--repeats", type=int, default=1, help="processes a row, of which the fastest counts")
    parser.add_argument("--compile", action="store_true", help="measure training.compile too (needs a C++ compiler)")
    parser.add_argument("--out", type=Path, help="JSON file of all rows")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        options.size = options.sizes[0]
        options.out.write_text(json.dumps(child(options)), encoding="utf-8")
        return 0
    rows: list[dict[str, Any]] = []
    print("| " + " | ".join(HEAD) + " |\n|" + " --- |" * len(HEAD))
    for size in options.sizes or (["ViT-B-16"] if options.device == "cuda" else ["tiny-clip", "ViT-B-32"]):
        for classes in options.classes:
            for row in compared(options, size, classes):
                rows.append(row)
                print("| " + " | ".join(shown(row)) + " |", flush=True)
                if options.out:
                    options.out.write_text(json.dumps(rows, indent=1), encoding="utf-8")
    return int(any(row["right"] is False for row in rows))


if __name__ == "__main__":
    sys.exit(main())
