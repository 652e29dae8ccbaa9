"""What the commands share that use a run: how it is named, and the words of lists."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from typing import TYPE_CHECKING

from condu_ray.command_line import EXIT_CODES, ConfigError, program

if TYPE_CHECKING:
    from condu_ray.use.served import Served


def run_parser(purpose: str | None, *, bundles: bool = True) -> ArgumentParser:
    """Returns a parser of RUN and of the flags that say which of its states is meant."""
    parser = ArgumentParser(prog=program(), description=purpose, epilog=EXIT_CODES, allow_abbrev=False)
    what = "a run's name in --storage, or its folder" + (", or a bundle's folder" if bundles else "")
    parser.add_argument("run", metavar="RUN", help=what)
    parser.add_argument("--storage", default="storage", help="storage folder of a name (default: storage)")
    parser.add_argument("--method", help="one of the run's methods; default: its only one")
    parser.add_argument(
        "--session", type=int, metavar="N", help="state after N learned tasks; default: the last that is committed"
    )
    return parser


def change_parser(purpose: str | None) -> ArgumentParser:
    """Returns a parser of a RUN that shall be changed, all of its methods together."""
    parser = ArgumentParser(prog=program(), description=purpose, epilog=EXIT_CODES, allow_abbrev=False)
    parser.add_argument("run", metavar="RUN", help="a run's name in --storage, or its folder")
    parser.add_argument("--storage", default="storage", help="storage folder of a name (default: storage)")
    return parser


def session(arguments: Namespace) -> int | None:
    """Returns the 0-based session that is meant; None: the last.

    Raises:
        ConfigError: no session has that number.
    """
    if arguments.session is None:
        return None
    if arguments.session < 1:
        raise ConfigError(f"--session {arguments.session}: sessions are counted from 1")
    return int(arguments.session) - 1


def served(arguments: Namespace) -> Served:
    """Loads what RUN and its flags name.

    Raises:
        ValueError, ArtifactError: it is not there, or damaged.
    """
    from condu_ray.use.loading import load_served

    return load_served(arguments.run, session(arguments), arguments.method, storage=arguments.storage)


def words(text: str | None) -> list[str] | None:
    """Returns the parts of `a,b,c`, without blanks around them; None for None."""
    return None if text is None else [part.strip() for part in text.split(",") if part.strip()]
