"""The matrix of a finished run against evaluating each of its cells separately, and K experts against K models.

``python jobs/bench/evaluation.py RUN --storage DIR --method condu --json FILE``. One side is what evaluators do: one
process, images decoded once, features kept by weights, prompts cut. The other measures every cell as if it were the
only one, its model already loaded: the state is read from storage, images are decoded, every expert that an image asks
is put together, and all prompts are encoded at full context. Both compute in one precision, and their accuracies are
compared before a time is printed. With ``--every N`` the other side measures every N-th cell of a row's learned and
not learned tasks, and these stand for the others. How near to the experts is what serves the learned tasks, and how
well that is calibrated, the first side finds beside.

The sides take turns, a session's row each; times are seconds of this process' CPU, for other work on the machine
lengthens the others. Then every image of a drawn task is answered by K of T experts: by T models in memory, the public
way, and by one whose weights are swapped; a figure is the median of the turns.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

sys.path.insert(0, str(Path(__file__).parents[2]))

import torch
from torch import Tensor
from torch.nn import functional

from condu_ray.benchmark import Task
from condu_ray.benchmark.label_space import label_space
from condu_ray.benchmark.rows import sample
from condu_ray.learn.chunks import task_images
from condu_ray.learn.decoded import test_labels
from condu_ray.learn.evaluate import class_ids, first_of, mix
from condu_ray.learn.loop import compute_context
from condu_ray.learn.routing import answers, load_routing, mixture
from condu_ray.merging.delta import Delta
from condu_ray.orchestration.measure.evaluator import Measurer
from condu_ray.plan.measurement import Measurement, routed
from condu_ray.plan.opened import open_run, run_place
from condu_ray.plan.run_plan import plan_run
from condu_ray.plan.stored_run import StoredRun
from condu_ray.store.experts import load_expert
from condu_ray.vlm import router
from condu_ray.vlm.inputs import normalise
from condu_ray.vlm.model import Backbone, load_backbone, set_weights
from jobs.bench.serving import Aggregation, apart_by, same_answers
from jobs.bench.steps import backbone, drawn

R = TypeVar("R")


class Apart:
    """Measures cells, each as if it were the only one.

    Args:
        run: the run.
        precision: of all that is not theta0's for routing.
    """

    def __init__(self, run: StoredRun, precision: str) -> None:
        self._run, self._precision = run, precision
        self._backbone: Backbone = load_backbone(run.plan.checked.spec)
        self._theta0 = self._backbone.snapshot()
        self._scale = float(self._backbone.model.logit_scale.detach().exp())

    @torch.no_grad()
    def measure(self, wanted: Measurement) -> int:
        """Returns how many images of a cell are classified rightly."""
        one = self._run.methods[wanted.method]
        method, state, tasks = one.method, one.state(wanted.entry.position), self._run.tasks
        task = next(each for each in tasks if each.name == wanted.task)
        space, apart = label_space(wanted.protocol, tasks), wanted.protocol == "xtail"
        classes = space or (task,)
        rows = sample(test_labels(task), self._run.config.evaluation.max_images)
        read = list(task_images(task.test, self._backbone.spec.preprocess, 250, rows))
        pixels, label_N = (torch.cat([torch.from_numpy(part[at]) for part in read]) for at in (0, 1))

        def delta(name: str) -> Delta | None:
            return method.delta(state, name, lambda key: load_expert(self._run.config.storage, key))

        if not routed(method, wanted.seen, wanted.protocol):
            found = None if method.skips_trigger(state) else delta(wanted.task)
            image_ND, text_CD = self._encode(found, pixels, classes, self._precision)
            return self._count((image_ND @ text_CD.T).argmax(dim=1), label_N, classes, task, apart)

        inference = method.inference
        base_ND, base_CD = self._encode(None, pixels, classes, "fp32")

        def logits(expert: int, wanted_N: Tensor, columns: Tensor | None = None) -> Tensor:
            if expert == router.PRETRAINED:
                return self._scale * base_ND[wanted_N] @ base_CD.T
            image_WD, text_CD = self._encode(delta(state.tasks[expert]), pixels[wanted_N], classes, self._precision)
            return self._scale * image_WD @ text_CD.T

        learned = [each for name in state.tasks for each in tasks if each.name == name]
        storage = self._run.config.storage
        routing = load_routing(storage, self._backbone.fingerprint, learned, inference, self._scale)
        if inference.aggregation == "mixture":
            id_C = class_ids(classes, apart)
            who = answers(classes, learned, id_C, apart)
            predicted_N = first_of(id_C)[mixture(base_ND, base_CD, routing, who, id_C, logits).predicted()]
        else:
            predicted_N = mix(routing.similarities(base_ND), inference, logits).logits.argmax(dim=1)
        return self._count(predicted_N, label_N, classes, task, apart)

    def _encode(
        self, delta: Delta | None, pixels: Tensor, classes: Sequence[Task], precision: str
    ) -> tuple[Tensor, Tensor]:
        model, found = self._backbone.model, self._backbone
        set_weights(found, self._theta0, delta)
        with compute_context(torch.device("cpu"), precision):
            image_ND = torch.cat([
                model.encode_image(normalise(part, found.spec.preprocess), normalize=True).float()
                for part in pixels.split(250)
            ])  # fmt: skip
            sums = []
            for task in classes:
                total = torch.zeros(())
                for template in task.templates:
                    tokens = found.tokenizer([template.replace("{}", name) for name in task.classes])
                    total = total + model.encode_text(tokens, normalize=True).float()
                sums.append(functional.normalize(total, dim=-1))
        return image_ND, torch.cat(sums)

    def _count(self, predicted_N: Tensor, label_N: Tensor, space: Sequence[Task], task: Task, apart: bool) -> int:
        names = [other.name for other in space]
        before = sum(len(other.classes) for other in space[: names.index(task.name)])
        id_C = class_ids(space, apart)
        return int((id_C[predicted_N] == id_C[before + label_N]).sum())


def matrix(
    run: StoredRun, wanted: Sequence[Measurement], precision: str, repeats: int, every: int = 1
) -> list[dict[str, Any]]:
    """Times both sides, a row of the table a protocol and one of all.

    Args:
        run: the run.
        wanted: the cells, session by session.
        precision: `fp32` or `bf16`.
        repeats: turns, each with evaluators that know nothing yet.
        every: cells of a row of which the other side measures one.

    Raises:
        SystemExit: an accuracy differs; names the cell.
    """
    config, checked = run.config.absolute(), run.plan.checked
    folders = {task.name: task.folder for task in run.tasks}
    Apart(run, precision).measure(wanted[0])  # what is compiled at first is compiled now
    turns: list[dict[tuple[str, str], float]] = []
    for _ in range(repeats):
        actor = Measurer(checked.spec, config, precision, folders, False)
        actor._evaluator.features._storage = None  # what an earlier run left is not used, and nothing is left
        torch.set_num_threads(1)
        reference, spent = Apart(run, precision), dict[tuple[str, str], float]()
        for row in _rows(wanted):
            right = [_timed(spent, ("matrix", one.protocol), partial(actor.measure, one)).correct for one in row]
            chosen = list(zip(row, right, strict=True))[(every - 1) // 2 :: every] or [(row[0], right[0])]
            for one, found in chosen:
                key, counts = ("cell by cell", one.protocol), len(row) / len(chosen)
                told = _timed(spent, key, partial(reference.measure, one), counts)
                if found != told:
                    where = f"{one.method}, session {one.entry.position + 1}, {one.task}, {one.protocol}"
                    raise SystemExit(f"{where}: {found} images right, cell by cell {told}")
        turns.append(spent)
    rows = []
    for protocols in (*([one] for one in dict.fromkeys(one.protocol for one in wanted)), None):
        cells = [one for one in wanted if protocols is None or one.protocol in protocols]
        sums = {
            side: statistics.median(
                sum(spent for (which, protocol), spent in turn.items() if which == side and
                    (protocols is None or protocol in protocols)) for turn in turns
            )
            for side in ("matrix", "cell by cell")
        }  # fmt: skip
        rows.append({"protocol": protocols[0] if protocols else "all", "cells": len(cells)} | sums)
        rows[-1]["times"] = sums["cell by cell"] / sums["matrix"]
    return rows if len(rows) > 2 else rows[:1]


def _rows(wanted: Sequence[Measurement]) -> list[list[Measurement]]:
    """Parts cells by session, protocol, and whether the task is learned: those of a part cost about the same."""
    found: dict[tuple[int, str, bool], list[Measurement]] = {}
    for one in wanted:
        found.setdefault((one.entry.position, one.protocol, one.seen), []).append(one)
    return list(found.values())


def _timed(spent: dict[tuple[str, str], float], key: tuple[str, str], work: Callable[[], R], counts: float = 1) -> R:
    begin = time.process_time()
    found = work()
    spent[key] = spent.get(key, 0.0) + counts * (time.process_time() - begin)
    return found


def together(size: str, tasks: Sequence[int], top_k: int, repeats: int) -> list[dict[str, Any]]:
    """Times K of T experts an image: T models against one.

    Raises:
        SystemExit: their answers differ.
    """
    found = backbone(size, "cpu")
    work = drawn(found, 100, 50, 2)
    model_mib = sum(one.nbytes for one in found.model.parameters()) / 2**20
    rows = []
    for count in tasks:
        sides = Aggregation(work, count, top_k)
        ways: dict[str, Callable[[], Any]] = {
            "models": sides.apart,
            "one": lambda sides=sides: sides.swapped("fp32", on_the_device=True),  # type: ignore[misc]
        }
        times: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(repeats):
            answered = {}
            for name, way in ways.items():
                answered[name] = way()
                times[name].append(answered[name].seconds)
            one, other = answered["one"].scores, answered["models"].scores
            if apart_by(one, other) > 1e-3 or same_answers(one, other) < 0.99:
                raise SystemExit(f"{count} experts: one model answers otherwise than {count} models")
        kept = sides._state.nbytes / 2**20
        seconds = {name: statistics.median(each) for name, each in times.items()}
        rows.append({
            "tasks": count, "models_s": seconds["models"], "one_s": seconds["one"],
            "times": seconds["models"] / seconds["one"], "models_mib": count * model_mib,
            "one_mib": 2 * model_mib + kept,
        })  # fmt: skip
    return rows


def matrices(arguments: argparse.Namespace) -> dict[str, list[dict[str, Any]]]:
    """Measures and prints the first table; by method its rows.

    Raises:
        SystemExit: the run has no such cells, or an accuracy differs.
    """
    run, found = open_run(*run_place(arguments.run, arguments.storage)), {}
    if arguments.images:
        evaluation = run.config.evaluation.model_copy(update={"max_images": arguments.images})
        config = run.config.model_copy(update={"evaluation": evaluation})
        run = StoredRun(plan_run(run.plan.checked.under(config), run.plan.precision))
    print("| method | protocol | cells | matrix, CPU s | cell by cell, CPU s | times |")
    print("| :-- | :-- " + "| --: " * 4 + "|")
    for method in arguments.method:
        wanted = [
            one for one in run.wanted
            if one.method == method
            and (not arguments.protocol or one.protocol in arguments.protocol)
            and (not arguments.sessions or one.entry.position + 1 in arguments.sessions)
        ]  # fmt: skip
        if not wanted:
            raise SystemExit(
                f"{arguments.run}: has no such cells of {method}; look at --method, --protocol, --sessions"
            )
        found[method] = matrix(run, wanted, arguments.precision, arguments.repeats, arguments.every)
        for row in found[method]:
            numbers = " | ".join(f"{row[key]:,.1f}" for key in ("matrix", "cell by cell", "times"))
            print(f"| {method} | {row['protocol']} | {row['cells']} | {numbers} |", flush=True)
    return found


def main(argv: Sequence[str] | None = None) -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "run", nargs="?", help="a finished run's name in --storage, or its folder; none: no first table"
    )
    parser.add_argument("--storage", default="storage")
    parser.add_argument("--method", nargs="+", default=["condu"], help="methods of the run")
    parser.add_argument("--protocol", nargs="+", help="of those that the run was measured by; default: all")
    parser.add_argument("--sessions", nargs="+", type=int, help="rows of the matrix, from 1; default: all")
    parser.add_argument("--every", type=int, default=1, help="measure every N-th cell of a row separately")
    parser.add_argument("--images", type=int, default=0, help="test images a task; 0: as the run")
    parser.add_argument("--precision", default="fp32", choices=["fp32", "bf16"])
    parser.add_argument("--size", default="tiny-clip", help="backbone of the second table (jobs/bench/steps.py)")
    parser.add_argument("--tasks", nargs="*", type=int, default=[4, 11], help="T of the second table; none: no table")
    parser.add_argument("--top_k", type=int, default=4, help="K of the second table")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write the numbers here too")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    results: dict[str, Any] = {"settings": {key: str(value) for key, value in vars(arguments).items()}}
    if arguments.run:
        results["matrix"] = matrices(arguments)
    if arguments.tasks:
        results["experts"] = together(arguments.size, arguments.tasks, arguments.top_k, arguments.repeats)
        print(f"\n| {arguments.top_k} of T experts | T models, s | one, s | times | T models, MiB | one, MiB |")
        print("| --: " * 6 + "|")
        for row in results["experts"]:
            keys = ("models_s", "one_s", "times", "models_mib", "one_mib")
            shown = " | ".join(f"{row[key]:,.1f}" for key in keys)
            print(f"| {row['tasks']} | {shown} |", flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
