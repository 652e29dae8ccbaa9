"""Prepare MTIL's eleven data sets as tasks: `python jobs/prepare_datasets.py --help`."""

import argparse
import sys
from pathlib import Path

from rich.console import Console

from condu_ray.benchmark.mtil import CATALOG, prepare, show
from condu_ray.command_line import ConfigError, nearest, refuse
from condu_ray.store.location import Location, LocationError


def main() -> None:
    """Prepares what is asked for; the exit code is 0 if all of it is ready, 1 if not, 2 for a wrong argument."""
    parser = argparse.ArgumentParser(description=__doc__.split(":")[0], allow_abbrev=False)
    parser.add_argument("--root", type=Path, required=True, help="folder of the original files (torchvision's root)")
    parser.add_argument("--out", required=True, help="folder of the tasks; give it to run_mtil.py as --data")
    parser.add_argument("--only", default=",".join(CATALOG), help="names of data sets, comma-separated; default: all")
    parser.add_argument("--download", action="store_true", help="fetch what is missing (37 GB for SUN397 alone)")
    parser.add_argument("--check", action="store_true", help="only say what is there; convert nothing")
    parser.add_argument(
        "--allow-counts", action="store_true", help="accept other numbers of images than the originals'"
    )
    arguments = parser.parse_args()
    names = [name.strip() for name in arguments.only.split(",") if name.strip()]
    if not names:
        refuse(ConfigError(f"--only: names no data set (known: {', '.join(CATALOG)})"))
    for name in names:
        if name not in CATALOG:
            refuse(ConfigError(f"--only: unknown data set {name!r}{nearest(name, list(CATALOG))}"))
    try:
        out = Location(arguments.out)
    except LocationError as error:
        refuse(ConfigError(f"--out: {error}"))
    console = Console()
    outcomes = prepare(
        [CATALOG[name] for name in dict.fromkeys(names)],
        arguments.root,
        out,
        download=arguments.download,
        check=arguments.check,
        allow_counts=arguments.allow_counts,
        say=console.print,
    )
    show(outcomes, console)
    sys.exit(0 if all(outcome.good for outcome in outcomes) else 1)


if __name__ == "__main__":
    main()
