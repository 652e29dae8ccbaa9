"""What the commands share that use a run: how it is named, and the words of lists."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import ValidationError

from condu_ray.command_line import ConfigError, Parser, field_names, main_config
from condu_ray.config import Experiment
from condu_ray.flags import meaning, takes

if TYPE_CHECKING:
    from condu_ray.settings import Settings
    from condu_ray.use.served import Served

    S = TypeVar("S", bound=Settings)


MAX_DROP = 2.0
"""Points that a learned task may lose, where nobody says."""


def run_parser(purpose: str | None) -> Parser:
    """Returns a parser of RUN and of the flags that say which of its states is meant."""
    parser = Parser(purpose)
    parser.add_argument("run", metavar="RUN", help="a run's name in --storage, or its folder, or a bundle's folder")
    parser.add_argument("--storage", default="storage", help="storage folder of a name (default: storage)")
    parser.add_argument("--method", help="one of the run's methods; default: its only one")
    parser.add_argument(
        "--session", type=int, metavar="N", help="state after N learned tasks; default: the last that is committed"
    )
    return parser


def precision_flag(parser: Parser) -> None:
    """Adds the flag of what is computed in."""
    parser.add_argument(
        "--precision", choices=("fp32", "bf16"),
        help="default: the one that the run was measured in; a CPU without bf16 is several times as fast in fp32",
    )  # fmt: skip


def change_parser(purpose: str | None) -> Parser:
    """Returns a parser of a RUN that shall be changed, all of its methods together."""
    parser = Parser(purpose)
    parser.add_argument("run", metavar="RUN", help="a run's name in --storage, or its folder")
    parser.add_argument("--storage", default="storage", help="storage folder of a name (default: storage)")
    return parser


def ablation_parser(purpose: str | None) -> Parser:
    """Returns a parser of an ablation's own flags, beside which it takes those of a run; `of_a_run` reads both."""
    parser = Parser(purpose, add_help=False, epilog=None)
    parser.others = run_flags()
    return parser


def run_flags() -> list[str]:
    """Returns the flags of a run, for parsers that hand them on: of its settings, and of whole parts as JSON."""
    names = field_names()
    parts = dict.fromkeys(name.partition(".")[0] for name in names)
    return ["-h", *(f"--{name}" for name in dict.fromkeys(("help", "config", *names, *parts)))]


def of_a_run(parser: Parser, argv: Sequence[str] | None) -> tuple[Namespace, list[str], Experiment]:
    """Returns an ablation's own flags, the others as they were given, and the run that these name.

    Raises:
        ConfigError: as `main_config`.
    """
    own, flags = parser.parse_known_args(argv)
    if {"-h", "--help"} & set(flags):  # then the run's help follows, and the end
        parser.print_help()
    return own, flags, main_config(Experiment, "Its flags as a run's.", flags)


def max_drop_flag(parser: Parser) -> None:
    """Adds the flag of what a change of a run may cost its learned tasks."""
    parser.add_argument(
        "--max_drop", type=float, metavar="POINTS",
        help="percentage points that a learned task may lose, by any method and protocol of the run; where one loses "
        f"more, the old state is kept (default: {MAX_DROP:g})",
    )  # fmt: skip


def max_drop(arguments: Namespace) -> float:
    """Returns the points that a learned task may lose.

    Raises:
        ConfigError: they are no points.
    """
    most = MAX_DROP if arguments.max_drop is None else float(arguments.max_drop)
    if not most >= 0:
        raise ConfigError(f"--max_drop {most}: give 0 or more")
    return most


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

    precision = getattr(arguments, "precision", None)  # of commands with its flag
    return load_served(
        arguments.run, session(arguments), arguments.method, storage=arguments.storage, precision=precision
    )


def words(text: str | None) -> list[str] | None:
    """Returns the parts of `a,b,c`, without blanks around them; None for None."""
    return None if text is None else [part.strip() for part in text.split(",") if part.strip()]


def settings_flags(parser: Parser, settings: type[Settings]) -> None:
    """Adds a flag for each field, its docstring as help."""
    for name, field in settings.model_fields.items():
        parser.add_argument(f"--{name}", metavar=takes(field.annotation), help=meaning(field))


def settings_from(settings: type[S], given: Mapping[str, Any], **more: Any) -> S:
    """Returns settings of the flags that were given.

    Args:
        settings: their class.
        given: what a parser returns, more than these maybe.
        **more: fields that have no flag of their own by `settings_flags`.

    Raises:
        ConfigError: a value is out of range or of the wrong kind; names its flag.
    """
    found = {name: given[name] for name in settings.model_fields if given.get(name) is not None}
    try:
        return settings.model_validate(found | more)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(map(str, first["loc"]))
        where = f"--{name} {first['input']}: " if name else ""
        raise ConfigError(f"{where}{first['msg'].removeprefix('Value error, ')}") from error
