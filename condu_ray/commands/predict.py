"""Classify pictures with what a run, or a bundle, has learned."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from condu_ray.command_line import ConfigError
from condu_ray.commands.job import job
from condu_ray.commands.using import precision_flag, run_parser, served, session, words
from condu_ray.console import output as console_output
from condu_ray.console import whole
from condu_ray.store.location import given, home

SHOWN = 200
"""Rows of the table in a terminal, at most."""


def on_cluster(arguments: Namespace, folder: Path, asked: dict[str, Any]) -> Iterator[tuple[Path, bool]]:
    """Predicts by Ray Data; every place is absolute, for workers stand elsewhere."""
    from condu_ray.orchestration.predicting import Who, predict_on_cluster
    from condu_ray.plan.opened import run_place
    from condu_ray.use.bundle import is_bundle

    run, storage = arguments.run, given(arguments.storage).absolute()
    if is_bundle(given(run)):
        run = str(given(run).absolute())
    else:
        storage, run = run_place(run, storage)
    images = [str(Path(home(text)).absolute()) for text in arguments.images]
    who = Who(
        run, str(storage.absolute()), arguments.method, session(arguments), arguments.batch_size, 1, arguments.precision
    )
    return predict_on_cluster(who, images, folder.absolute(), asked, arguments.workers)


@job("the run is as it was; of an --output folder the finished parts stay, and the same command makes the others")
def main(argv: Sequence[str] | None = None) -> None:
    """Predicts every picture; one that cannot be read is a row with its error."""
    parser = run_parser(__doc__)
    parser.add_argument("images", nargs="+", help="pictures, folders, patterns such as 'a/*.jpg', Parquet files")
    parser.add_argument("--task", help="whose expert answers; default: the router finds the experts of each picture")
    parser.add_argument("--classes", help="other words to choose from, comma-separated")
    parser.add_argument("--template", help="prompt with one {} for --classes; default: the task's, or a photo of a {}.")
    parser.add_argument(
        "--protocol", choices=("union", "xtail"), default="union",
        help="over the classes of all tasks: one name is one class, or a class a task (default: union)",
    )  # fmt: skip
    parser.add_argument("--top_k", type=int, default=5, metavar="K", help="classes a picture, at most (default: 5)")
    parser.add_argument(
        "--sure", type=float, default=0.0, metavar="P",
        help="say 'not sure' in the terminal of pictures whose likeliest class has a smaller probability",
    )  # fmt: skip
    parser.add_argument(
        "--output", metavar="FILE", help="a .parquet, .csv, .json or .jsonl file, or a folder: resumable"
    )
    parser.add_argument("--device", help="such as cpu or cuda; default: the GPU if there is one")
    parser.add_argument(
        "--workers", type=int, metavar="N",
        help="N predictors side by side by Ray Data, on RAY_ADDRESS's cluster or this machine; --output is a folder",
    )  # fmt: skip
    parser.add_argument("--batch_size", type=int, help="images a forward pass; default: as the run's evaluators")
    precision_flag(parser)
    arguments = parser.parse_args(argv)
    if arguments.template is not None and arguments.classes is None:
        raise ConfigError("--template: is for --classes; a task has its own")
    if not 0 <= arguments.sure < 1:
        raise ConfigError(f"--sure {arguments.sure:g}: a probability, at least 0 and below 1")
    from contextlib import nullcontext
    from itertools import chain, tee

    from rich.table import Table

    from condu_ray.use.parts import predict_parts
    from condu_ray.use.predictor import Predictor
    from condu_ray.use.rows import check_output, output
    from condu_ray.use.sources import pictures

    path = Path(home(arguments.output)) if arguments.output else None
    in_parts = path is not None and not path.suffix and not path.is_file()
    if path is not None and not in_parts:
        check_output(path)
    if arguments.workers is not None and (arguments.workers < 1 or not in_parts or arguments.device):
        raise ConfigError("--workers N: is 1 or more, for an --output that is a folder; --device is not for it")
    found = pictures(arguments.images)
    first = next(found)  # what is not there is refused before a model is loaded
    named, images = tee(chain([first], found))
    console = console_output()
    asked: dict[str, Any] = {"task": arguments.task, "classes": words(arguments.classes), "top_k": arguments.top_k}
    asked["templates"] = [arguments.template] if arguments.template else None
    if arguments.protocol != "union":  # what earlier versions asked has no such word
        asked["protocol"] = arguments.protocol
    if path is not None and arguments.workers is not None:
        for part, made in on_cluster(arguments, path, asked):
            console.print(f"{part}{'' if made else ': was there'}")
        return
    predictor = Predictor(served(arguments), arguments.device, arguments.batch_size)
    if path is not None and in_parts:
        for part, made in predict_parts(predictor, arguments.images, path, asked):
            console.print(f"{part}{'' if made else ': was there'}")
        return
    predictions = predictor.stream(
        (image for _, image in images), **asked, errors="keep", names=(name for name, _ in named)
    )
    table = Table("Picture", "Class", "%", "Next", "Experts", title=predictor.served.name)
    count = broken = unsure = 0
    with output(path) if path else nullcontext() as sink:
        for one in predictions:
            count, broken = count + 1, broken + (one.error is not None)
            unsure += one.error is None and not one.sure(arguments.sure)
            if sink is not None:
                sink.put(one)
            elif count <= SHOWN:
                chance = "" if one.probability is None else f"{100 * one.probability:.1f}"
                others = zip(one.classes[1:3], one.probabilities[1:3], strict=True)
                shown = ", ".join(f"{name} {100 * value:.1f}" for name, value in others)
                who = ", ".join(f"{name} {value:.2f}" for name, value in one.experts.items())
                label = one.label if one.sure(arguments.sure) else f"not sure ({one.label})"
                table.add_row(one.image, f"error: {one.error}" if one.label is None else label, chance, shown, who)
    if path is None:
        console.print(whole(table))
        if unsure:
            console.print(f"not sure of {unsure} of {count} pictures: no class has {100 * arguments.sure:g} %")
        if count > SHOWN:
            console.print(f"the first {SHOWN} of {count} pictures; --output FILE has all of them")
    else:
        console.print(f"{path}: {count} pictures by {predictor.served.name}")
    if broken:
        console.print(f"{broken} of {count} pictures could not be read; their rows have an error")
