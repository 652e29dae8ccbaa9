"""Look inside a run: one HTML page of its sessions, sizes, fidelity, layers, routing, feature space and lineage."""

from collections.abc import Sequence
from pathlib import Path

from condu_ray.command_line import ConfigError, Parser
from condu_ray.commands.job import job
from condu_ray.console import output
from condu_ray.store.location import home


@job("the run is as it was, and the same command makes the page from the start")
def main(argv: Sequence[str] | None = None) -> None:
    """Writes the page into the run's report, or into a file."""
    parser = Parser(__doc__)
    parser.add_argument("run", metavar="RUN", help="a run's name in --storage, or its folder")
    parser.add_argument("--storage", default="storage", help="storage folder of a name (default: storage)")
    parser.add_argument("--method", help="whose layers, routes and features; default: the first that routes")
    parser.add_argument("--images", type=int, default=200, help="test images a task, at most; 0: all (default: 200)")
    parser.add_argument("--output", metavar="FILE", help="an .html file; default: inspect.html in the run's report")
    arguments = parser.parse_args(argv)
    page = Path(home(arguments.output)) if arguments.output else None
    if page and (page.suffix != ".html" or not page.parent.is_dir()):
        raise ConfigError(f"--output {arguments.output}: give a name that ends with .html, in a folder that is there")
    if arguments.images < 0:
        raise ConfigError(f"--images {arguments.images}: give 1 or more, or 0 for all")
    from condu_ray.plan.opened import open_run, run_place
    from condu_ray.report.text import write
    from condu_ray.store.artifacts import WriteError, is_file, read_bytes
    from condu_ray.store.backend import backend
    from condu_ray.store.layout import config_path, inspect_path, run_folder
    from condu_ray.store.writable import require_writable
    from condu_ray.use.inspect import inspected

    storage, name = run_place(arguments.run, arguments.storage)
    settings = config_path(run_folder(storage, name))  # a trial's may have been removed

    def said() -> bytes:
        return read_bytes(settings) if is_file(settings) else b""

    before = said()
    found = open_run(storage, name)
    path = page or inspect_path(found.config.run_folder)
    try:
        require_writable(path)
    except WriteError as error:
        raise ConfigError(f"{error}; --output FILE writes the page elsewhere") from error
    write(path, inspected(found, arguments.method, arguments.images))
    # A change replaces the settings, and then removes the page: what was written by then goes with it, the rest here.
    if page is None and said() != before:
        backend(path).remove(path)
        raise ConfigError(f"{name}: was changed meanwhile, and the page was of before; give the command again")
    output().print(f"page: {path}")
