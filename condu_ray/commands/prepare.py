"""Prepare data sets as tasks: MTIL's eleven, or your own in any form that is read."""

import json
import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError

from condu_ray.command_line import ConfigError, Parser
from condu_ray.commands.job import job
from condu_ray.console import output
from condu_ray.names import nearest
from condu_ray.store.backend import backend, on_disk
from condu_ray.store.location import LocationError, given, home


def _own(arguments: Namespace) -> None:
    """Converts a user's data sets, each of which appears whole or not at all."""
    from condu_ray.benchmark import load_task
    from condu_ray.benchmark.check import carry_verdict, cores
    from condu_ray.benchmark.ingest.bring import in_order
    from condu_ray.benchmark.ingest.convert import Options, prepare_own, unused_share
    from condu_ray.benchmark.ingest.find import LAYOUTS
    from condu_ray.benchmark.tasks import ORDER
    from condu_ray.config import Experiment
    from condu_ray.store.artifacts import names as task_names
    from condu_ray.store.artifacts import write_text

    others = [name for name in ("root", "out", "download", "check", "allow_counts") if getattr(arguments, name)]
    if others or arguments.source is None or arguments.to is None:
        raise ConfigError("--from and --to go together, with --only, --template and --test_share beside them alone")
    try:
        source, target = Path(home(arguments.source)).absolute(), given(arguments.to).absolute()
    except LocationError as error:
        raise ConfigError(f"--from or --to: {error}") from error
    if not source.exists():
        raise ConfigError(f"--from {source}: no such folder or file")
    said = {"template": arguments.template, "test_share": arguments.test_share}
    try:
        Experiment.model_validate(said)
    except ValidationError as error:
        raise ConfigError("; ".join(f"--{one['loc'][0]}: {one['msg']}" for one in error.errors())) from error
    names = None
    if arguments.only is not None:
        names = list(dict.fromkeys(name.strip() for name in arguments.only.split(",") if name.strip()))
    found = in_order(source, names)
    if not found:
        raise ConfigError(f"--from {source}: no data set there; what is read: {LAYOUTS}")
    console = output()
    for one in found:
        notes = prepare_own(one, target, Options(**said), console.print)["notes"]
        for note in filter(None, (*notes, unused_share(one, Options(**said)))):
            console.print(f"{one.name}: {note}")
        if on_disk(target) is not None:
            for problem in carry_verdict(load_task(target / one.name), workers=cores()):
                console.print(f"{one.name}: {problem}")
    ordered = [one.name for one in found]
    if names is None and (source / ORDER).is_file() and not backend(target).exists(target / ORDER):
        if others := [name for name in task_names(target) if name not in ordered]:
            console.print(
                f"{source / ORDER}: is not taken along, for {target} has other tasks too, such as {others[0]}"
            )
        else:  # a run learns them in this order from here, too
            write_text(target / ORDER, json.dumps(ordered, indent=1) + "\n")
    console.print(f"give it to a run: --data {target}")


@job("tasks that are ready stay, and the same command makes the others")
def main(argv: Sequence[str] | None = None) -> None:
    """Prepares what is asked for; the exit code is 0 if all of it is ready, 1 if not, 2 for a wrong argument."""
    parser = Parser(__doc__)
    parser.add_argument("--root", help="MTIL: folder of the original files (torchvision's root)")
    parser.add_argument("--out", help="MTIL: folder of the tasks; give it to a run as --data")
    parser.add_argument(
        "--from",
        dest="source",
        help="your own: class folders, Parquet of Hugging Face, WebDataset or CSV; or a folder of such",
    )
    parser.add_argument("--to", help="your own: folder of the tasks; give it to a run as --data")
    parser.add_argument("--template", help="your own: the prompt, {} for the class; default: 'a photo of a {}.'")
    parser.add_argument(
        "--test_share", type=float, default=0.2, help="your own: share of each class for the test, where there is none"
    )
    parser.add_argument("--only", help="names of data sets or tasks, comma-separated; default: all")
    parser.add_argument("--download", action="store_true", help="fetch what is missing (37 GB for SUN397 alone)")
    parser.add_argument("--check", action="store_true", help="only say what is there; convert nothing")
    parser.add_argument(
        "--allow-counts", action="store_true", help="accept other numbers of images than the originals'"
    )
    arguments = parser.parse_args(argv)
    if arguments.source is not None or arguments.to is not None:
        _own(arguments)
        return
    if arguments.root is None or arguments.out is None:
        raise ConfigError("give --root and --out for MTIL's data sets, or --from and --to for your own")
    from condu_ray.benchmark.mtil import CATALOG, prepare, show

    names = list(CATALOG)
    if arguments.only is not None:
        names = list(dict.fromkeys(name.strip() for name in arguments.only.split(",") if name.strip()))
    if not names:
        raise ConfigError(f"--only: names no data set (known: {', '.join(CATALOG)})")
    for name in names:
        if name not in CATALOG:
            raise ConfigError(f"--only: unknown data set {name!r}{nearest(name, CATALOG)}")
    try:
        root, out = Path(home(arguments.root)), given(arguments.out)
    except LocationError as error:
        raise ConfigError(f"--root or --out: {error}") from error
    console = output(styled=True)
    outcomes = prepare(
        [CATALOG[name] for name in names],
        root,
        out,
        download=arguments.download,
        check=arguments.check,
        allow_counts=arguments.allow_counts,
        say=console.print,
    )
    show(outcomes, console)
    sys.exit(0 if all(outcome.good for outcome in outcomes) else 1)
