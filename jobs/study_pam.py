"""What PAM's alignment does on mini-MTIL, over task orders and settings: `python jobs/study_pam.py --out pam.json`.

In this process and some beside it, without Ray or storage: needs torch, open_clip, pydantic, pyarrow, numpy, pillow and
rich alone. Trainings of one form go side by side on a GPU if there is one. What is measured: `condu_ray.ablation.pam`.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from condu_ray.ablation.pam import study
from condu_ray.ablation.pam_settings import SETTINGS, Form, Setting, by_form
from condu_ray.ablation.pam_tables import effects, inside
from condu_ray.benchmark import load_task
from condu_ray.benchmark.mini_mtil.draw import MINI_MTIL_DEFAULT, MINI_MTIL_TASKS, mini_mtil
from condu_ray.benchmark.orders import draw_orders
from condu_ray.names import nearest
from condu_ray.recipes import mini_mtil as recipe
from condu_ray.report.results_page import FOLDER, dumps, read_results
from condu_ray.store.location import Location
from condu_ray.vlm.model import backbone_spec, load_backbone

Work = tuple[Form, list[Setting], dict[str, tuple[str, ...]]]


def work(settings: list[Setting], orders: int, first: int, seed: int, at_once: int) -> list[Work]:
    """Returns what is to be done, the first orders of all forms first, so that what is cut short is whole in these."""
    found: list[Work] = []
    for form, group in by_form(settings).items():
        names = MINI_MTIL_DEFAULT if form.tasks == len(MINI_MTIL_DEFAULT) else MINI_MTIL_TASKS
        drawn = {one.name: one.tasks for one in draw_orders(names, first + orders, seed)[first:]}
        together = max(1, at_once // len(group))
        for start in range(0, orders, together):
            found.append((form, group, dict(list(drawn.items())[start : start + together])))
    return found


def one(given: Work, folder: str, device: str, threads: int, until: float) -> tuple[list[dict[str, Any]], str]:
    """Does one piece of the work in this process; nothing after `until` (seconds since 1970)."""
    if time.time() > until:
        return [], "too late"
    begin, (form, settings, orders) = time.time(), given
    torch.set_num_threads(threads)
    tasks = {name: load_task(Location(folder) / name) for name in next(iter(orders.values()))}
    backbone = load_backbone(backbone_spec("tiny-clip"))
    base = recipe()
    found = study(form, settings, orders, tasks, backbone, base, device)
    return found, f"{len(found)} sequences, {form}: {time.time() - begin:.0f} s"


def draw(name: str, folder: str) -> None:
    """Draws one task, if it is not there."""
    mini_mtil(Location(folder), tasks=[name])


def given_command(kept: dict[str, Any]) -> str:
    """Returns what measures the settings of some records again."""
    names = {record["setting"] for record in kept["records"] if record["align"]}
    chosen = [setting.name for setting in SETTINGS if setting.name in names]
    few = "" if len(chosen) == len(SETTINGS) else f" --settings {','.join(chosen)}"
    own, steps = {one.name: one.steps for one in SETTINGS}, {record["options"]["steps"] for record in kept["records"]}
    if len(steps) == 1 and any(own[name] not in steps for name in chosen):
        few += f" --steps {steps.pop()}"
    return f"python jobs/study_pam.py --out pam.json{few}"


def tables(file: Path) -> None:
    """Makes files of results of a study's records; what is written by hand there stays."""
    kept = json.loads(file.read_text(encoding="utf-8"))
    orders = len({record["order"] for record in kept["records"]})
    setting = f"Percent, {orders} orders, seed 0, fp32 on {kept['device']}; torch {kept['torch']}."
    for name, make in (("pam_alignment", effects), ("pam_inside", inside)):
        path = FOLDER / f"{name}.json"
        before = read_results(path) if path.exists() else {}
        made = make(kept["records"], given_command(kept), setting)
        path.write_text(dumps(made | {k: v for k, v in before.items() if k in ("title", "about", "notes")}), "utf-8")
        print(path)


def main() -> None:
    """Reads flags, does the work in processes, and writes what is there after each piece."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    known = [setting.name for setting in SETTINGS]
    parser.add_argument("--out", type=Path, default=Path("pam.json"), help="JSON file of the records")
    parser.add_argument("--tables", type=Path, help="no study: make the committed results of such a file")
    parser.add_argument("--data", default="storage/study_pam", help="folder of mini-MTIL's tasks, drawn if not there")
    parser.add_argument("--settings", default=",".join(known), help="names, comma-separated; default: all")
    parser.add_argument("--orders", type=int, default=8, help="orders of the tasks")
    parser.add_argument("--first", type=int, default=0, help="how many drawn orders are passed over before them")
    parser.add_argument("--seed", type=int, default=0, help="seed of the orders")
    parser.add_argument("--steps", type=int, help="steps of a training in place of each setting's, to try the study")
    parser.add_argument("--processes", type=int, default=1, help="side by side; two at most on one GPU")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads a process")
    parser.add_argument("--at_once", type=int, default=0, help="trainings side by side; 0: 16, or 96 on a GPU")
    parser.add_argument("--minutes", type=float, default=1e6, help="nothing is begun after")
    given = parser.parse_args()
    if given.tables:
        tables(given.tables)
        return
    begin, device = time.time(), "cuda" if torch.cuda.is_available() else "cpu"
    chosen = []
    for name in given.settings.split(","):
        if name not in known:
            parser.error(f"--settings {name}: there is none{nearest(name, known)}")
        chosen.append(next(setting for setting in SETTINGS if setting.name == name))
    if given.steps:
        chosen = [replace(setting, steps=given.steps) for setting in chosen]
    todo = work(chosen, given.orders, given.first, given.seed, given.at_once or (96 if device == "cuda" else 16))
    records: list[dict[str, Any]] = []
    context = multiprocessing.get_context("spawn")
    os.environ.setdefault("OMP_NUM_THREADS", str(given.threads))
    with context.Pool(given.processes) as pool:
        pool.map(partial(draw, folder=given.data), MINI_MTIL_TASKS)
        print(f"{len(todo)} pieces on {device}, drawn after {time.time() - begin:.0f} s", flush=True)
        until = begin + 60 * given.minutes
        do = partial(one, folder=given.data, device=device, threads=given.threads, until=until)
        for found, said in pool.imap_unordered(do, todo):
            records += found
            text = json.dumps({"device": device, "torch": torch.__version__, "records": records})
            given.out.write_text(text, encoding="utf-8")
            print(f"{time.time() - begin:.0f} s: {said}", flush=True)


if __name__ == "__main__":
    main()
