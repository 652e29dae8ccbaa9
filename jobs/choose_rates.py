"""Choose mini_mtil's learning rate and steps on validation images: `python jobs/choose_rates.py --out rates.json`.

A tenth of each task's training images is held out. Of every rate and number of steps, each task's expert is trained
from theta0 on the rest and measured on what is held out (`individual`), and ConDU merges them over task orders (Last).
Test figures of the same experts are kept beside, and are not looked at to choose. In this process and some beside it,
without Ray; experts of one rate go side by side, on a GPU if there is one.
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import os
import time
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from condu_ray.ablation.side_by_side import SideBySide, stream
from condu_ray.benchmark import load_tasks
from condu_ray.benchmark.mini_mtil.draw import MINI_MTIL_DEFAULT, mini_mtil
from condu_ray.benchmark.orders import draw_orders
from condu_ray.benchmark.validation import hold_out
from condu_ray.learn.evaluate import Evaluator
from condu_ray.learn.features import Weights
from condu_ray.merging import UnifiedDelta
from condu_ray.methods import get
from condu_ray.recipes import mini_mtil as recipe
from condu_ray.report.results_page import FOLDER, dumps, read_results
from condu_ray.store.location import Location
from condu_ray.vlm.lora import materialise
from condu_ray.vlm.model import backbone_spec, load_backbone

SHARE = 0.1
GRID = {"condu": (3e-4, 1e-3, 2e-3, 4e-3), "condu-lora": (1e-3, 2.5e-3, 5e-3, 1e-2)}
STEPS = (100, 200, 400)
Point = tuple[str, float, int]


def point(given: Point, folder: str, device: str, orders: int) -> dict[str, Any]:
    """Returns accuracies (percent) of one method, rate and number of steps, on validation and on test images."""
    name, rate, steps = given
    torch.set_num_threads(1)
    base = recipe()
    rates = {"lr": rate, "lr_by_task": {}}
    config = base.model_copy(
        update={
            "training": base.training.model_copy(update=rates | {"steps": steps}),
            "lora": base.lora.model_copy(update=rates),
        }
    )
    method, backbone = get(name, config), load_backbone(backbone_spec())
    tasks = load_tasks(Location(folder), MINI_MTIL_DEFAULT)
    held, tested = (
        hold_out(tasks, Location(folder) / "held", share=SHARE, seed=0, measure_on=kind)
        for kind in ("validation", "test")
    )
    adapter = method.lora if method.adapter == "lora" else None
    side = SideBySide(backbone, method.training, adapter, device, config.seed)
    experts = side.train([stream(method.config, task, backbone, device) for task in held], [None] * len(held))
    if any(one is None for one in experts):
        return {"point": given, "lost": True}
    on_cpu = [{key: tensor.cpu() for key, tensor in (one or {}).items()} for one in experts]
    deltas = [materialise(one, method.lora.scale) if adapter else one for one in on_cpu]
    evaluator = Evaluator(backbone, batch_size=250, precision="fp32", device=device)
    found: dict[str, Any] = {"point": given}
    for kind, measured in (("validation", held), ("test", tested)):
        alone = [
            evaluator.known(task, Weights(f"alone/{task.name}", partial(lambda one: one, delta))).percent
            for task, delta in zip(measured, deltas, strict=True)
        ]
        lasts = []
        for order in draw_orders(list(MINI_MTIL_DEFAULT), orders, 0):
            state = UnifiedDelta.empty()
            for learned in order.tasks:
                state = state.unify(learned, deltas[MINI_MTIL_DEFAULT.index(learned)])
            lasts.append(
                fmean(
                    evaluator.known(
                        task, Weights(f"{order.name}/{task.name}", partial(state.decouple, task.name))
                    ).percent
                    for task in measured
                )
            )
        found[kind] = {"individual": fmean(alone), "last": fmean(lasts)}
    return found


def table(records: list[dict[str, Any]], about: str) -> dict[str, Any]:
    """Returns a file of results: a row a point; the best on validation of each method is bold."""
    rows = []
    kept = [one for one in records if not one.get("lost")]
    for name in GRID:
        mine = sorted((one for one in kept if one["point"][0] == name), key=lambda one: one["point"])
        best = max((one["validation"]["last"] for one in mine), default=None)
        for one in mine:
            _, rate, steps = one["point"]
            last = one["validation"]["last"]
            shown = f"**{last:.1f}**" if last == best else f"{last:.1f}"
            figures = [one["validation"]["individual"], one["test"]["last"], one["test"]["individual"]]
            rows.append([f"`{name}`", f"{rate:g}", steps, shown, *figures])
    return {
        "title": "mini_mtil's rate and steps, chosen on validation images",
        "columns": ["method", "rate", "steps", "Last, validation", "individual, validation", "Last, test",
                    "individual, test"],
        "rows": rows,
        "command": "python jobs/choose_rates.py --out rates.json\npython jobs/choose_rates.py --tables rates.json",
        "setting": f"Percent, means over six tasks and 4 orders, a tenth of the training images held out; {about}.",
    }  # fmt: skip


def main() -> None:
    """Reads flags, trains, and writes what is there after each point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("rates.json"), help="JSON file of the records")
    parser.add_argument("--tables", type=Path, help="nothing is trained: make the committed results of such a file")
    parser.add_argument("--data", default="storage/choose_rates", help="folder of mini-MTIL's tasks")
    parser.add_argument("--method", default=",".join(GRID))
    parser.add_argument("--steps", default=",".join(map(str, STEPS)), help="comma-separated")
    parser.add_argument("--processes", type=int, default=1)
    given = parser.parse_args()
    if given.tables:
        kept = json.loads(given.tables.read_text(encoding="utf-8"))
        path = FOLDER / "mini_mtil_rates.json"
        before = read_results(path) if path.exists() else {}
        made = table(kept["records"], f"fp32 on {kept['device']}, torch {kept['torch']}")
        path.write_text(dumps(made | {k: v for k, v in before.items() if k in ("title", "about", "notes")}), "utf-8")
        return
    begin, device = time.time(), "cuda" if torch.cuda.is_available() else "cpu"
    todo: list[Point] = [
        (name, rate, steps)
        for steps, name in itertools.product(map(int, given.steps.split(",")), given.method.split(","))
        for rate in GRID[name]
    ]
    todo.sort(key=lambda one: -one[2])
    mini_mtil(Location(given.data), tasks=MINI_MTIL_DEFAULT)
    tasks = load_tasks(Location(given.data), MINI_MTIL_DEFAULT)
    for kind in ("validation", "test"):
        hold_out(tasks, Location(given.data) / "held", share=SHARE, seed=0, measure_on=kind)  # type: ignore[arg-type]
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    records: list[dict[str, Any]] = []
    do = partial(point, folder=given.data, device=device, orders=4)
    with multiprocessing.get_context("spawn").Pool(given.processes) as pool:
        for found in pool.imap_unordered(do, todo):
            records.append(found)
            text = json.dumps({"device": device, "torch": torch.__version__, "records": records})
            given.out.write_text(text, encoding="utf-8")
            print(f"{time.time() - begin:.0f} s: {found}", flush=True)


if __name__ == "__main__":
    main()
