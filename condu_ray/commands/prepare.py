"""Prepare MTIL's eleven data sets as tasks."""

import sys
from argparse import ArgumentParser
from collections.abc import Sequence
from pathlib import Path

from condu_ray.command_line import EXIT_CODES, ConfigError, program
from condu_ray.commands.job import job
from condu_ray.console import output
from condu_ray.names import nearest
from condu_ray.store.location import LocationError, given, home


@job()
def main(argv: Sequence[str] | None = None) -> None:
    """Prepares what is asked for; the exit code is 0 if all of it is ready, 1 if not, 2 for a wrong argument."""
    parser = ArgumentParser(prog=program(), description=__doc__, epilog=EXIT_CODES, allow_abbrev=False)
    parser.add_argument("--root", required=True, help="folder of the original files (torchvision's root)")
    parser.add_argument("--out", required=True, help="folder of the tasks; give it to a run as --data")
    parser.add_argument("--only", help="names of data sets, comma-separated; default: all")
    parser.add_argument("--download", action="store_true", help="fetch what is missing (37 GB for SUN397 alone)")
    parser.add_argument("--check", action="store_true", help="only say what is there; convert nothing")
    parser.add_argument(
        "--allow-counts", action="store_true", help="accept other numbers of images than the originals'"
    )
    arguments = parser.parse_args(argv)
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
    console = output()
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
