"""The console command: `condu-ray NAME`, or `python -m condu_ray.commands NAME`."""

from __future__ import annotations

import sys
from argparse import ArgumentParser
from collections.abc import Callable
from importlib import import_module

from condu_ray import __version__
from condu_ray.command_line import CONSOLE, ConfigError, Parser
from condu_ray.console import refuse
from condu_ray.names import nearest

COMMANDS = (
    "run", "sweep", "report", "prepare", "import", "add", "rollback", "forget", "predict", "serve", "export",
    "evaluate", "inspect", "methods",
    "ablate-merging", "ablate-inference", "ablate-bits",
)  # fmt: skip
MODULES = {"import": "import_expert"}
"""Modules whose name is not the command's."""


def command(name: str) -> tuple[Callable[[], None], str]:
    """Returns what runs a command, and its purpose in a line."""
    module = import_module(f"condu_ray.commands.{MODULES.get(name, name.replace('-', '_'))}")
    return module.main, module.__doc__ or ""


def main() -> None:
    """Runs the command that `sys.argv` names; the exit code is its own, or 2 where it names none."""
    name = next(iter(sys.argv[1:]), "--help")
    if name in COMMANDS:
        sys.argv[:2] = [f"{CONSOLE} {name}"]  # help, reports and refusals name the command as it was typed
        command(name)[0]()
        return
    if not name.startswith("-"):
        refuse(ConfigError(f"unknown command {name!r}{nearest(name, COMMANDS)}"))
    purpose = "Continual learning of CLIP-like models by merging, on Ray."
    parser = Parser(purpose, prog=CONSOLE)
    parser.add_argument("--version", action="version", version=f"condu_ray {__version__}")
    commands = parser.add_subparsers(
        parser_class=ArgumentParser, metavar="NAME", title="commands", description=f"{CONSOLE} NAME --help tells more"
    )
    for known in COMMANDS:
        commands.add_parser(known, help=command(known)[1])
    try:
        parser.parse_args([name])
    except ConfigError as error:
        refuse(error)


if __name__ == "__main__":
    main()
