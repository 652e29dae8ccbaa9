"""Measure a state of a run, or a bundle, on any tasks' folders without training: accuracy, by class, confusions."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from condu_ray.command_line import ConfigError
from condu_ray.commands.job import job
from condu_ray.commands.using import precision_flag, run_parser, served, words
from condu_ray.console import output, whole
from condu_ray.names import nearest
from condu_ray.store.location import given, home

if TYPE_CHECKING:
    from condu_ray.benchmark import Task


def tasks_to_measure(arguments: Namespace) -> list[Task]:
    """Loads the tasks that are meant: those of --data, or the run's own as it was measured on them.

    Raises:
        ConfigError: a bundle has no data of its own, or the run has no such task.
        TaskError: a folder is not what it should be.
    """
    from condu_ray.benchmark import load_tasks
    from condu_ray.plan.opened import open_run, run_place
    from condu_ray.use.bundle import is_bundle

    names = words(arguments.tasks)
    if arguments.data is not None:
        return load_tasks(given(arguments.data), names)
    if is_bundle(given(arguments.run)):
        raise ConfigError(f"{arguments.run}: is a bundle, which has no images; give --data DIR")
    own = {task.name: task for task in open_run(*run_place(arguments.run, arguments.storage)).tasks}
    if unknown := [name for name in names or () if name not in own]:
        raise ConfigError(f"--tasks {unknown[0]}: is no task of {arguments.run}{nearest(unknown[0], list(own))}")
    return [own[name] for name in names or own]


@job("the run is as it was, and the same command measures from the start")
def main(argv: Sequence[str] | None = None) -> None:
    """Prints a table a task; all of it goes into --output."""
    parser = run_parser(__doc__)
    parser.add_argument(
        "--data", metavar="DIR", help="folder of task folders, in the package's form; default: the run's own tasks"
    )
    parser.add_argument("--tasks", help="which of them, comma-separated; default: all")
    parser.add_argument("--by", metavar="TASK", help="whose expert answers; default: the same task's, or the router's")
    parser.add_argument("--rows", type=int, default=10, help="classes and confusions shown a task (default: 10)")
    parser.add_argument("--output", metavar="FILE", help="write all numbers, confusion tables too, into a .json file")
    parser.add_argument("--device", help="such as cpu or cuda; default: the GPU if there is one")
    precision_flag(parser)
    arguments = parser.parse_args(argv)
    path = Path(home(arguments.output)) if arguments.output else None
    if path is not None and (path.suffix != ".json" or not path.parent.is_dir()):
        raise ConfigError(f"--output {path}: give a name that ends with .json, in a folder that is there")
    if path is not None:
        from condu_ray.store.writable import require_writable

        require_writable(path)
    from rich.table import Table

    from condu_ray.benchmark.subset import read_labels
    from condu_ray.benchmark.tasks import TEST
    from condu_ray.report.text import json_text, write
    from condu_ray.use.confusion import confusion, who_answers
    from condu_ray.use.predictor import Predictor
    from condu_ray.vlm.texts import check_texts

    tasks = tasks_to_measure(arguments)
    predictor, console = Predictor(served(arguments), arguments.device), output()
    if arguments.by is not None:
        predictor.classes(arguments.by)
    backbone, cut = predictor.served.backbone, predictor.served.method.config.long_prompts == "cut"
    for task in tasks:  # all of them before the first is measured
        check_texts(backbone.tokenizer, task, backbone.spec.name, cut=cut)
        who_answers(predictor, task, arguments.by)
        read_labels(task, TEST)
    found = []
    for task in tasks:
        one = confusion(predictor, task, arguments.by)
        found.append(one)
        who = ", ".join(f"{name} {100 * share:.0f} %" for name, share in one.experts.items())
        console.print(f"{one.task}: {one.percent:.2f} % of {one.images} images; answered by {who}")
        worst = sorted(one.by_class(), key=lambda row: (row[2] != row[2], row[2]))[: arguments.rows]
        table = Table("Class", "Images", "%", title=f"{one.task}: the classes that are known worst")
        for name, images, share in worst:
            table.add_row(name, str(images), f"{share:.1f}" if images else "–")
        console.print(whole(table))
        table = Table("Class", "Taken for", "Images", title=f"{one.task}: confusions")
        for truth, predicted, images in one.confused()[: arguments.rows]:
            table.add_row(truth, predicted, str(images))
        console.print(whole(table))
    if path is not None:
        numbers = {
            one.task: {
                "correct": one.correct, "images": one.images, "percent": one.percent, "experts": one.experts,
                "classes": list(one.classes), "confusion": one.counts_CC.tolist(),
            }
            for one in found
        }  # fmt: skip
        write(path, json_text({"of": predictor.served.name, "state": predictor.served.state.id, "tasks": numbers}))
        console.print(f"{path}: all numbers")
