"""What a run or a sweep takes in time, memory moved, storage and money, by a model: `python cluster/costs.py`.

Prints the tables of `cluster/COSTS.md`: the model's predictions beside what was measured, and what it says of models
and numbers of tasks and orders that nobody has run here. Its terms, for N trainable parameters, T tasks, O orders, C
classes of p tokens, n test images a task, and G GPUs of which one in eight evaluates:

- a step: a + F / r + 28 N / m. F = 3 (batch x image encoder + C x text encoder), an encoder being tokens x layers x
  (24 width^2 + 4 tokens x width) FLOP forward; a is what the host needs to start the kernels, 1 / r what the device
  needs for a FLOP, both fitted to two measured points of one model; AdamW moves 28 bytes a parameter.
- a merge on the CPU: N (b + c T), fitted to two measured points, and its bytes through storage.
- a cell of the accuracy matrix: n image encodings by each expert that is asked; 1 where the task is known, K where the
  image is routed (Transfer). Learned tasks T (T + 1) / 2 cells, unlearned T (T - 1) / 2.
- experts: T for all orders together where each begins at theta0, T an order where one begins at the last.
- bytes: 4 N an expert; 4 N + T N / 8 a session of condu (`sizing.state_bytes`), which its evaluators fetch once.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import sizing
from sizing import Load, Shape, Tower, state_bytes

RESULTS = Path(__file__).parents[1] / "condu_ray" / "report" / "results"
ADAMW_BYTES = 28
"""Bytes that AdamW moves a parameter and step: weights, gradient and two moments in fp32, three of them written too."""
MEMORY = 2.4e12
"""Bytes a second of an H100's memory, of the 3.35e12 of its data sheet."""
STORE = 1e9
"""Bytes a second that storage gives one reader or takes from one writer: a volume or bucket of some 8 Gbit/s."""
START = 20.0
"""Seconds until a lane's first step: processes, theta0, the first decoded images."""
ASKED = 4.0
"""Experts that a routed image asks by the paper's rule (results `routing_mini`)."""
EVALUATORS = 1 / 8
"""Share of the GPUs that evaluate (`evaluation.evaluators`)."""
TRIALS = 8
"""Trials of a sweep side by side; each merges its order, one session after the other."""
SMALL = 14_000_000
"""Parameters of the model of `results/bundles.json`."""
LAYERS = 24
"""Layers of the two encoders of ViT-B/16, at which the host's time was fitted; it grows with the layers."""


@dataclass(frozen=True)
class Rates:
    """What was fitted.

    Attributes:
        host: seconds a step that do not depend on the arithmetic, at `LAYERS` layers.
        flops: FLOP a second beyond that.
        merge: seconds a position of a merge: constant, and a task.
    """

    host: float
    flops: float
    merge: tuple[float, float]


@dataclass(frozen=True)
class Plan:
    """What is run: tasks, orders, steps of an expert, test images a task, GPUs."""

    tasks: int
    orders: int
    steps: int
    images: int
    gpus: int


def encoder(tower: Tower, tokens: int) -> float:
    """FLOP of one input's forward pass."""
    return tokens * tower.layers * (24 * tower.width**2 + 4 * tokens * tower.width)


def step_flops(model: Shape, load: Load) -> float:
    """FLOP of a training step, forward and backward."""
    prompt = min(load.prompt, model.text.tokens)
    images = load.batch * encoder(model.vision, model.vision.tokens)
    return 3 * (images + load.classes * encoder(model.text, prompt))


def step_seconds(model: Shape, load: Load, rates: Rates) -> float:
    """Seconds of a training step on one GPU."""
    host = rates.host * (model.vision.layers + model.text.layers) / LAYERS
    return host + step_flops(model, load) / rates.flops + ADAMW_BYTES * model.parameters / MEMORY


def merge_seconds(parameters: float, tasks: int, rates: Rates) -> float:
    """Seconds of merging one more task, on one thread."""
    return parameters * (rates.merge[0] + rates.merge[1] * tasks)


def line(first: tuple[float, float], second: tuple[float, float]) -> tuple[float, float]:
    """Returns constant and slope of the line through two points."""
    slope = (second[1] - first[1]) / (second[0] - first[0])
    return first[1] - slope * first[0], slope


def rows(name: str) -> dict[str, list[str]]:
    """Returns a committed table of results, by the first column."""
    found = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))["rows"]
    return {str(row[0]): [str(value) for value in row[1:]] for row in found}


def measured_steps(row: str) -> list[float]:
    """Seconds a step of 64 images for 10, 100 and 397 classes, from `gpu_training`."""
    return [64 / float(cell.split()[0]) for cell in rows("gpu_training")[row][:3]]


def fitted(precision: str) -> Rates:
    """Fits the step to the public way's 10 and 397 classes at 77 tokens, the merge to its shortest and longest row."""
    model = sizing.shape("ViT-B-16")
    seconds = measured_steps({"fp32": "the public way: fp32, prompts at 77 tokens", "bf16": "+ bf16"}[precision])
    adamw = ADAMW_BYTES * model.parameters / MEMORY
    ends = [
        (step_flops(model, Load(classes=c, prompt=77)), t - adamw) for c, t in zip((10, 397), seconds[::2], strict=True)
    ]
    host, slope = line(*ends)
    merges = [(float(tasks), float(cells[0]) / 1e3 / 20e6) for tasks, cells in rows("unify_cost").items()]
    return Rates(max(host, 0.0), 1 / slope, line(merges[0], merges[-1]))


def predictions() -> list[list[str]]:
    """Returns the table of predictions beside what was measured."""
    model, found = sizing.shape("ViT-B-16"), []

    def row(what: str, predicted: float, measured: float, unit: str, fit: bool = False) -> None:
        off = "fitted" if fit else f"{100 * (predicted / measured - 1):+.0f} %"
        found.append([what, f"{predicted:.3g} {unit}", f"{measured:.3g} {unit}", off])

    for precision, name, prompt, title in (
        ("fp32", "the public way: fp32, prompts at 77 tokens", 77, "fp32, prompts at 77 tokens"),
        ("fp32", "condu_ray's loop, fp32", 13, "fp32, prompts cut"),
        ("bf16", "+ bf16", 77, "bf16, prompts at 77 tokens"),
        ("bf16", "+ fused AdamW", 13, "bf16, prompts cut"),
    ):
        rates = fitted(precision)
        for classes, seconds in zip((10, 100, 397), measured_steps(name), strict=True):
            predicted = step_seconds(model, Load(classes=classes, prompt=prompt), rates)
            row(
                f"a step, {title}, {classes} classes",
                predicted * 1e3,
                seconds * 1e3,
                "ms",
                prompt == 77 and classes != 100,
            )
    for tasks, cells in rows("unify_cost").items():
        predicted = merge_seconds(20e6, int(tasks), fitted("fp32"))
        row(f"a merge, 20 M parameters, task {tasks}", predicted * 1e3, float(cells[0]), "ms", tasks != "11")
    bundles = {int(tasks): float(cells[0]) for tasks, cells in rows("bundles").items()}
    small, last = sizing.Shape(SMALL, Tower(0, 0, 0), Tower(0, 0, 0)), max(bundles)
    growth = (state_bytes(small, last) - state_bytes(small, 1)) / 1e6
    row(f"condu's state from task 1 to {last}, 14 M parameters", growth, bundles[last] - bundles[1], "MB more")
    nodes = json.loads((RESULTS / "nodes.json").read_text(encoding="utf-8"))
    for lanes, seconds in list(zip(nodes["columns"][1:], nodes["rows"][0][1:], strict=True))[1::2]:
        one_lane = nodes["rows"][1][1]
        row(f"128 experts of 1 to 3 s in {lanes} lanes", one_lane / int(lanes), seconds, "s")
    return found


def forecast(name: str, method: str, plan: Plan, dollars: float) -> list[str]:
    """Returns a column of the second table: what a run or sweep of one method takes."""
    model, load, rates = sizing.shape(name), Load(tasks=plan.tasks), fitted("bf16")
    step, chained = step_seconds(model, load, rates), method == "sequential"
    expert = START + plan.steps * step + 2 * 4 * model.parameters / STORE
    experts = plan.tasks * (plan.orders if chained else 1)
    evaluators = max(plan.gpus * EVALUATORS, 1)
    lanes = max(plan.gpus - evaluators, 1)
    depth = plan.tasks * expert if chained else expert  # what cannot be split: an order's chain, or one expert
    training = max(experts * expert / lanes, depth)
    learned, unlearned = plan.tasks * (plan.tasks + 1) / 2, plan.tasks * (plan.tasks - 1) / 2
    encodings = plan.images * (learned + unlearned * (1 if chained else ASKED)) * plan.orders
    evaluation = encodings * encoder(model.vision, model.vision.tokens) / rates.flops
    states = [4 * model.parameters if chained else state_bytes(model, task) for task in range(1, plan.tasks + 1)]
    merges = [
        (merge_seconds(model.parameters, task, rates) + (8 * model.parameters + 2 * state) / STORE) * (not chained)
        for task, state in enumerate(states, 1)
    ]
    merging = sum(merges) * max(plan.orders / TRIALS, 1)
    stored = experts * 4 * model.parameters + (0 if chained else plan.orders * sum(states))
    moved = experts * 8 * model.parameters + plan.orders * 2 * sum(states)
    wall = max(training, evaluation / evaluators, merging)
    return [
        f"{name}, {method}",
        f"{plan.tasks}",
        f"{plan.orders:,}",
        f"{plan.images:,}",
        f"{plan.gpus}",
        f"{step * 1e3:.0f}",
        f"{experts:,}",
        hours(experts * expert),
        hours(evaluation),
        hours(merging),
        hours(wall),
        tera(moved),
        tera(stored),
        f"{wall / 3600 * plan.gpus * dollars:,.0f}",
    ]


def hours(seconds: float) -> str:
    """Shows seconds as hours."""
    found = seconds / 3600
    return f"{found:.2f}" if found < 10 else f"{found:,.0f}"


def tera(count: float) -> str:
    """Shows bytes as terabytes."""
    return f"{count / 1e12:.2f}" if count < 1e13 else f"{count / 1e12:,.0f}"


TALLY_HEAD = [
    "", "tasks", "experts read, TB: all anew", "with a tally", "a new actor each time", "tallies written, TB",
    "sessions written, TB", "tally on disk, GB", "memory, GiB: all anew", "with a tally",
]  # fmt: skip


def tallied(name: str, method: str, tasks: int) -> list[str]:
    """Returns a row of the third table: bytes and memory of all merges of a run by a rule of all experts at once."""
    model = sizing.shape(name)
    n, each = model.parameters, sizing.TALLIES[method]
    states = [n * 4.0 if method == "ties" else state_bytes(model, task) for task in range(1, tasks + 1)]
    written = [task for task in range(1, tasks + 1) if each <= 4 * task]  # from where a tally takes less than experts
    restarted = 4 * n * tasks + sum(n * each + states[task - 1] for task in written[:-1])
    restarted += sum(4 * n * (task - 1) for task in range(1, written[0] + 1))
    bits = 0 if method == "ties" else 3 * tasks / 8  # of masks before, of values above and below 0
    before = n * (18 if method == "ties" else 20 + bits)
    return [
        f"{name}, {method}",
        f"{tasks}",
        tera(4 * n * tasks * (tasks + 1) / 2),
        tera(4 * n * tasks),
        tera(restarted),
        tera(n * each * len(written)),
        tera(sum(states)),
        f"{n * each / 1e9:.1f}",
        f"{before / sizing.GIB:.0f}",
        f"{sizing.merge_bytes(model, tasks, method) / sizing.GIB:.0f}",
    ]


HEAD = [
    "", "tasks", "orders", "images", "GPUs", "step, ms", "experts", "training, GPU-hours", "evaluation, GPU-hours",
    "merging, hours", "wall, hours", "moved, TB", "stored, TB", "dollars",
]  # fmt: skip
FORECASTS = (
    ("ViT-B-16", Plan(11, 1, 1000, 2000, 4)),
    ("ViT-B-16", Plan(11, 12, 1000, 2000, 4)),
    ("ViT-L-14", Plan(11, 1, 1000, 2000, 4)),
    ("ViT-H-14", Plan(100, 1, 1000, 2000, 64)),
    ("ViT-H-14", Plan(100, 1000, 1000, 2000, 64)),
    ("ViT-H-14", Plan(100, 1000, 1000, 100, 64)),
)


def show(head: Sequence[str], body: Sequence[Sequence[str]]) -> None:
    """Prints a table in Markdown."""
    for row in (head, ["---", *["--:"] * (len(head) - 1)], *body):
        print("| " + " | ".join(row) + " |")


def main(given: Sequence[str]) -> int:
    """Prints the tables."""
    parser = argparse.ArgumentParser(prog="costs.py", description="What a run costs, by a model; not measured.")
    parser.add_argument("--model", help="an open_clip name: forecasts of this one alone")
    for name, default, what in (
        ("tasks", 11, "tasks of an order"),
        ("orders", 1, "orders of the tasks"),
        ("steps", 1000, "training steps of an expert"),
        ("images", 2000, "test images a task"),
        ("gpus", 4, "GPUs as fast as an H100"),
    ):
        parser.add_argument(f"--{name}", type=sizing.count, default=default, help=f"{what}; {default}")
    parser.add_argument("--dollars", type=float, default=3.0, help="price of a GPU-hour; 3")
    found = parser.parse_args(given)
    if not 0 <= found.dollars < math.inf:
        parser.error(f"argument --dollars: {found.dollars} is no price")
    for name in ("tasks", "orders", "steps", "images", "gpus"):
        if not found.model and getattr(found, name) != parser.get_default(name):
            parser.error(f"argument --{name}: is of a forecast of your own; give its --model too")
    plans = FORECASTS
    if found.model:
        plans = ((found.model, Plan(found.tasks, found.orders, found.steps, found.images, found.gpus)),)
    try:
        body = [
            forecast(name, method, plan, found.dollars) for name, plan in plans for method in ("condu", "sequential")
        ]
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if not found.model:
        show(["what", "predicted", "measured", "off"], predictions())
        print()
    show(HEAD, body)
    if not found.model:
        print()
        runs = [(name, method, tasks) for name in sizing.MODELS for method in sizing.TALLIES for tasks in (11, 100)]
        show(TALLY_HEAD, [tallied(*run) for run in runs])
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
