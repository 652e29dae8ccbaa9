"""What training and measuring in bf16 changes against fp32, on mini-MTIL: `python jobs/bench/precision.py --seeds 2`.

Each task's expert is trained from theta0 with the same batches in either precision and measured by itself
(`individual`); then ConDU merges them over task orders, and Last is measured. In this process, without Ray.
"""

import argparse
import json
from functools import partial
from statistics import fmean, stdev

import numpy as np
import torch

from condu_ray.benchmark import load_tasks
from condu_ray.benchmark.mini_mtil.draw import MINI_MTIL_DEFAULT, mini_mtil
from condu_ray.benchmark.orders import draw_orders
from condu_ray.face.learning import fine_tune
from condu_ray.learn.evaluate import Evaluator
from condu_ray.learn.features import Weights
from condu_ray.merging import UnifiedDelta
from condu_ray.recipes import mini_mtil as recipe
from condu_ray.report.results_page import FOLDER, dumps, read_results
from condu_ray.report.statistics import signed_rank_p
from condu_ray.store.location import Location
from condu_ray.store.provenance import provenance
from condu_ray.vlm.model import backbone_spec, load_backbone

PRECISIONS = ("fp32", "bf16")


def measured(precision: str, seed: int, given: argparse.Namespace) -> tuple[dict[str, float], dict[str, float]]:
    """Returns accuracies (percent) of one precision and seed: of each expert on its task, and Last by order."""
    base = recipe()
    training = base.training.model_copy(update={"precision": precision, "steps": given.steps or base.training.steps})
    config = base.model_copy(update={"training": training, "seed": seed})
    tasks = {task.name: task for task in load_tasks(Location(given.data), MINI_MTIL_DEFAULT)}
    trained, loaded = load_backbone(backbone_spec()), load_backbone(backbone_spec())
    device = "cuda" if torch.cuda.is_available() else "cpu"
    evaluator = Evaluator(loaded, batch_size=250, precision=precision, device=device)
    deltas = {name: fine_tune(trained, task, config=config) for name, task in tasks.items()}
    alone = {
        name: evaluator.known(tasks[name], Weights(name, partial(deltas.__getitem__, name))).percent for name in tasks
    }
    last = {}
    for order in draw_orders(list(tasks), given.orders, 0):
        state = UnifiedDelta.empty()
        for name in order.tasks:
            state = state.unify(name, deltas[name])
        found = [
            evaluator.known(tasks[name], Weights(f"{order.name}/{name}", partial(state.decouple, name))).percent
            for name in tasks
        ]
        last[order.name] = fmean(found)
    return alone, last


def main() -> None:
    """Measures, prints, and writes `condu_ray/report/results/precision.json` where that is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="storage/precision", help="folder of mini-MTIL's tasks, drawn if not there")
    parser.add_argument("--keep", action="store_true", help="write the committed results")
    for name, default in (("seeds", 2), ("orders", 4), ("steps", 0)):
        parser.add_argument(f"--{name}", type=int, default=default)
    given = parser.parse_args()
    mini_mtil(Location(given.data), tasks=MINI_MTIL_DEFAULT)
    found: dict[str, dict[str, dict[str, float]]] = {"individual": {}, "condu": {}}
    for kind in found.values():
        kind |= {precision: {} for precision in PRECISIONS}
    for seed in range(given.seeds):
        for precision in PRECISIONS:
            for kind, values in zip(found.values(), measured(precision, seed, given), strict=True):
                kind[precision] |= {f"{seed}/{name}": value for name, value in values.items()}
            print(precision, seed, json.dumps({name: kind[precision] for name, kind in found.items()}), flush=True)
    rows = []
    for name, what in (("individual", "an expert on its task"), ("condu", "Last of an order")):
        fp32, bf16 = (np.array(list(found[name][precision].values())) for precision in PRECISIONS)
        differences = bf16 - fp32
        rows.append(
            [f"`{name}`, {what}", len(fp32), fmean(fp32), fmean(bf16), fmean(differences), stdev(differences),
             float(np.abs(differences).max()), signed_rank_p(differences)]
        )  # fmt: skip
        print(rows[-1])
    made = {
        "title": "What bf16 changes",
        "columns": ["method", "pairs", "fp32", "bf16", "difference", "its deviation", "largest", "p"],
        "rows": rows,
        "decimals": {"difference": 2, "its deviation": 2, "p": 3},
        "command": f"python jobs/bench/precision.py --seeds {given.seeds} --orders {given.orders}"
        + (f" --steps {given.steps}" if given.steps else ""),
        "setting": f"Percent, mini-MTIL's six tasks, {given.seeds} seeds, {given.orders} orders; torch "
        f"{provenance()['torch']}.",
    }
    if given.keep:
        path = FOLDER / "precision.json"
        before = read_results(path) if path.exists() else {}
        path.write_text(dumps(made | {k: v for k, v in before.items() if k in ("title", "about", "notes")}), "utf-8")


if __name__ == "__main__":
    main()
