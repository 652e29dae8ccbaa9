"""Measure a state of a run, or a bundle, on any tasks' folders without training: accuracy, by class, confusions."""

from collections.abc import Sequence
from pathlib import Path

from condu_ray.command_line import ConfigError
from condu_ray.commands.job import job
from condu_ray.commands.using import run_parser, served, words
from condu_ray.console import output
from condu_ray.store.location import given


@job()
def main(argv: Sequence[str] | None = None) -> None:
    """Prints a table a task; all of it goes into --output."""
    parser = run_parser(__doc__)
    parser.add_argument("--data", required=True, metavar="DIR", help="folder of task folders, as a run's --data")
    parser.add_argument("--tasks", help="which of them, comma-separated; default: all")
    parser.add_argument("--by", metavar="TASK", help="whose expert answers; default: the same task's, or the router's")
    parser.add_argument("--rows", type=int, default=10, help="classes and confusions shown a task (default: 10)")
    parser.add_argument("--output", metavar="FILE", help="write all numbers, confusion tables too, into a .json file")
    parser.add_argument("--device", help="such as cpu or cuda; default: the GPU if there is one")
    arguments = parser.parse_args(argv)
    path = Path(arguments.output) if arguments.output else None
    if path is not None and (path.suffix != ".json" or not path.parent.is_dir()):
        raise ConfigError(f"--output {path}: give a name that ends with .json, in a folder that is there")
    from rich.table import Table

    from condu_ray.benchmark import load_tasks
    from condu_ray.report.text import json_text, write
    from condu_ray.use.confusion import confusion
    from condu_ray.use.predictor import Predictor

    tasks = load_tasks(given(arguments.data), words(arguments.tasks))
    predictor, console = Predictor(served(arguments), arguments.device), output()
    if arguments.by is not None:
        predictor.classes(arguments.by)
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
        console.print(table)
        table = Table("Class", "Taken for", "Images", title=f"{one.task}: confusions")
        for truth, predicted, images in one.confused()[: arguments.rows]:
            table.add_row(truth, predicted, str(images))
        console.print(table)
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
