"""From arguments and YAML to a checked `Experiment`, before anything heavy is imported.

Flags, help texts and their types come from the config's fields by pydantic-settings; this file only adds the order
of precedence (flags over YAML over recipe) and the nearest right name for a wrong one.
"""

from __future__ import annotations

import re
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from reprlib import Repr
from types import UnionType
from typing import Annotated, Any, NoReturn, TypeVar, Union, get_args, get_origin, overload

from pydantic import BaseModel, Field, ValidationError, create_model
from pydantic_settings import BaseSettings, CliSettingsSource, SettingsConfigDict, SettingsError

from condu_ray.config import Experiment
from condu_ray.constants import published_settings
from condu_ray.flags import fields, for_people
from condu_ray.names import nearest
from condu_ray.pairs import key_twice
from condu_ray.recipes import RECIPES
from condu_ray.settings import without_old_names
from condu_ray.settings_file import ConfigError, read_yaml
from condu_ray.store.passwords import without_passwords

CONSOLE = "condu-ray"
"""The console command."""
EXIT_CODES = (
    "exit codes: 0 done, 1 failed, 2 refused (nothing was spent), 130, 143 or 129 stopped by Ctrl-C, SIGTERM or SIGHUP "
    "(a terminal that is closed)"
)
"""What a command's end means; its help ends with it."""
_short = Repr()
_short.maxstring = _short.maxother = 100
_short.maxlevel = 2


def field_names(model: type[BaseModel] = Experiment) -> list[str]:
    """Returns every field's dotted name, depth first."""
    return [name for name, _ in fields(model)]


class Parser(ArgumentParser):
    """argparse that raises `ConfigError`s, which name the nearest flag; `purpose` is a sentence for the help."""

    def __init__(self, purpose: str | None = None, **more: Any) -> None:
        own: dict[str, Any] = {"prog": program(), "epilog": EXIT_CODES, "allow_abbrev": False}
        super().__init__(**own | more, description=purpose)
        self.others: Sequence[str] = ()  # flags that it hands on

    def error(self, message: str) -> NoReturn:
        """Raises what argparse found."""
        raise ConfigError(message)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As `ArgumentParser.parse_known_args`, which of a wrong flag may only say that something else is missing."""
        given, flags = sys.argv[1:] if args is None else list(args), [*self._option_string_actions, *self.others]
        try:
            return super().parse_known_args(given, namespace)
        except ConfigError as error:
            wrong = [word for word in given if re.match("-[^-]|--.", word) and word.partition("=")[0] not in flags]
            raise ConfigError("; ".join([str(error), *map(self._unknown, wrong[:1])])) from error

    def parse_args(self, args: Any = None, namespace: Any = None) -> Namespace:  # type: ignore[override]
        """As `ArgumentParser.parse_args`; raises a `ConfigError` for what is no flag, and no argument that is taken."""
        parsed, unknown = self.parse_known_args(args, namespace)
        if unknown:
            raise ConfigError(self._unknown(next((word for word in unknown if word.startswith("-")), unknown[0])))
        return parsed

    def _unknown(self, word: str) -> str:
        """Says what is wrong with a word that is no flag, and no argument that is taken."""
        flag, flags = word.partition("=")[0], [*self._option_string_actions, *self.others]
        if word.startswith("-"):
            near = nearest(flag.lstrip("-"), [key[2:] for key in flags if key[2:]])
            slip = word.startswith("--") or "did you mean" in near  # the other is a value that a flag or a list lacks
            dash = f": a value that begins with - is written --flag={word}, a file's name ./{word}"
            return f"unknown flag {flag}{near if slip else dash}"
        return f"unexpected argument {word!r}: settings are given as --name value, all without a name stand together"


class _Settings(Parser):
    """A parser of a configuration's fields."""

    kind: type[Experiment] = Experiment

    def parse_args(self, args: Any = None, namespace: Any = None) -> Namespace:  # type: ignore[override]
        parsed = super().parse_args(args, namespace)
        mappings = [name for name, field in fields(self.kind) if get_origin(field.annotation) is dict]
        if twice := key_twice(vars(parsed), mappings):
            raise ConfigError(f"command line: {twice[0]}: {twice[1]} is there twice: keep one")
        return parsed

    def format_help(self) -> str:
        """As `ArgumentParser.format_help`, without a usage of a hundred flags and without Python's types."""
        for_people(self._actions, _arguments(self.kind))
        self.usage = "%(prog)s [--recipe NAME] [--config FILE] [--FLAG VALUE ...]"
        return super().format_help()


class _Flags(BaseSettings):
    """What the command line has beside the configuration's fields."""

    model_config = SettingsConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    config: Path | None = Field(None)
    """YAML file with any of these fields; flags override it."""


C = TypeVar("C", bound=Experiment)


@cache
def _arguments(kind: type[Experiment]) -> type[BaseSettings]:
    """Returns a configuration's fields as flags; made where they are read, for most processes read none."""
    return create_model(f"{kind.__name__}Arguments", __base__=(kind, _Flags))  # type: ignore[arg-type]


def merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Returns `base` with `over` laid on top, nested mappings merged."""
    found = dict(base)
    for key, value in over.items():
        mergeable = isinstance(value, Mapping) and isinstance(found.get(key), Mapping)
        found[key] = merged(found[key], value) if mergeable else value
    return found


def explained(error: ValidationError, source: str, kind: type[Experiment] = Experiment) -> ConfigError:
    """Turns pydantic's errors into lines a person can act on, each with where the settings are from."""
    lines = []
    for item in error.errors():
        name = ".".join(str(part) for part in item["loc"])
        if item["type"] == "extra_forbidden" and name in field_names(kind):  # with dots, as flags have it
            part, _, own = name.rpartition(".")
            lines.append(f"{source}: {name}: write {own} below a line '{part}:', further in")
        elif item["type"] == "extra_forbidden":
            lines.append(f"{source}: unknown field {name}{nearest(name, field_names(kind))}")
        else:
            lines.append(f"{source}: {name or 'settings'}: {item['msg']} (got {_short.repr(item.get('input'))})")
    return ConfigError(without_passwords("\n".join(lines)))


@overload
def parse(arguments: Sequence[str], *, purpose: str = ...) -> Experiment: ...
@overload
def parse(arguments: Sequence[str], kind: type[C], purpose: str = ...) -> C: ...
def parse(arguments: Sequence[str], kind: type[Experiment] = Experiment, purpose: str = "") -> Experiment:
    """Builds the configuration from command-line arguments.

    Args:
        arguments: the flags, without the program's name.
        kind: `Experiment` or `Sweep`.
        purpose: of the command, a sentence for its help.

    Returns:
        The checked configuration: flags over `--config` YAML over the recipe's defaults.

    Raises:
        ConfigError: with one line a problem, each naming the field and, for a wrong name, the nearest right one.
        SystemExit: for `--help`.
    """
    source = _source(kind)
    source.root_parser.prog = program()
    source.root_parser.description = f"{purpose} Settings come from --recipe, then --config, then flags."
    try:
        flags = source(args=list(arguments))()
    except SettingsError as error:
        cause = error.__cause__ or error  # what lies behind it, where it only says where it is
        why = without_passwords(str(error) if str(cause) in str(error) else f"{error} ({cause})")
        raise ConfigError(f"command line: {why}; lists are written a,b and rates a=1e-4,b=2e-4") from error
    path = flags.pop("config", None)
    from_file = read_yaml(path) if path is not None else {}
    default = "own_data" if flags.get("data") or from_file.get("data") else "mini_mtil"
    recipe = str(flags.get("recipe") or from_file.get("recipe") or default)
    if recipe not in RECIPES:
        raise ConfigError(f"unknown recipe {recipe!r}{nearest(recipe, RECIPES)}")
    layers = {f"--config {path}": from_file, "command line": flags}
    given = {given_by: _renamed(layer, given_by) for given_by, layer in layers.items()}
    for given_by, layer in given.items():
        _refuse_empty(layer, given_by, kind)
    found = _layered(RECIPES[recipe]().model_dump(), given, kind)
    if found.as_published:  # over the recipe, and under all that is given
        found = _layered(merged(RECIPES[recipe]().model_dump(), published_settings()), given, kind)
    return found


@cache
def _source(kind: type[Experiment]) -> CliSettingsSource[ArgumentParser]:
    """Returns what reads a configuration's flags, made once a process: a hundred flags take longer than to be read."""
    parser = _Settings()
    parser.kind = kind
    return CliSettingsSource(
        _arguments(kind),
        root_parser=parser,
        parse_args_method=_Settings.parse_args,
        cli_hide_none_type=True,
        cli_avoid_json=True,
        cli_use_class_docs_for_groups=True,
    )


def _layered(settings: Mapping[str, Any], layers: Mapping[str, Mapping[str, Any]], kind: type[C]) -> C:
    """Lays one layer of settings after the other on top; the last one's name is what an error says."""
    for given_by, over in layers.items():
        settings = merged(settings, over)
        try:
            found = kind.model_validate(settings)
        except ValidationError as error:
            raise explained(error, given_by, kind) from error
    return found


def _renamed(given: Mapping[str, Any], given_by: str) -> dict[str, Any]:
    """Returns settings under today's names; says on stderr which were old.

    Raises:
        ConfigError: an old name contradicts the new one.
    """
    try:
        found = without_old_names(given)
    except ValueError as error:
        raise ConfigError(f"{given_by}: {error}") from error
    if "label_space" in given and "label_space" not in found:
        old, new = given["label_space"], ",".join(found["protocol"])
        print(f"{given_by}: label_space {old} is an old name, read as protocol {new}", file=sys.stderr)
    return found


def _refuse_empty(given: Mapping[str, Any], given_by: str, kind: type[BaseModel]) -> None:
    """Refuses an empty text, as a shell makes of a variable that is not set, where it would stand for the default.

    Raises:
        ConfigError: names the setting.
    """
    for name, field in fields(kind):
        value: Any = given
        for part in name.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        if isinstance(value, str) and not value.strip() and str in _kinds(field.annotation):
            raise ConfigError(f"{given_by}: {name}: is empty; give a value, or leave it out")


def _kinds(annotation: Any) -> tuple[Any, ...]:
    """Types that a field takes as they are: `str` and `None` of `Named | None`."""
    if get_origin(annotation) is Annotated:
        return _kinds(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        return tuple(kind for part in get_args(annotation) for kind in _kinds(part))
    return (annotation,)


def main_config(kind: type[C], purpose: str, argv: Sequence[str] | None = None) -> C:
    """Parses `argv` (default: of this process).

    Raises:
        ConfigError: as `parse`.
    """
    return parse(sys.argv[1:] if argv is None else argv, kind, purpose)


def program() -> str:
    """Returns what the command is called in its help: `run_mtil.py` or `condu-ray run`."""
    return Path(sys.argv[0]).name


def run_command() -> list[str]:
    """Returns the words that start a run, for messages: as this process was started, by a file or the console."""
    return [CONSOLE, "run"] if program().startswith(CONSOLE) else ["python", "jobs/run_mtil.py"]
