"""Fields of settings as flags: what each takes, and what it is where it is not given, in words for people."""

from __future__ import annotations

from argparse import Action
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

KINDS = {"str": "NAME", "Location": "PATH", "Path": "FILE", "bool": "{true,false}", "int": "INTEGER", "float": "NUMBER"}
"""What is written for a value, by the name of its type."""


def fields(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Yields every field with its dotted name, depth first."""
    for name, field in model.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            yield from fields(inner, f"{prefix}{name}.")
        else:
            yield prefix + name, field


def takes(annotation: Any) -> str:
    """Returns what a field's flag takes, such as `INTEGER`, `{stop,warn}`, `NAME,...` or `TASK=NUMBER,...`.

    Raises:
        KeyError: a type that no field has had so far.
    """
    origin, inner = get_origin(annotation), [one for one in get_args(annotation) if one not in (type(None), ...)]
    if origin is Literal:
        return f"{{{','.join(map(str, inner))}}}" if inner[1:] else str(inner[0])
    if origin is tuple:
        return f"{takes(inner[0])},..."
    if origin is dict:
        return f"TASK={takes(inner[1])},..."
    return takes(inner[0]) if inner else KINDS[annotation.__name__]


def default(value: Any) -> str:
    """Returns a field's default as a flag would have it; an empty text where there is none."""
    if value is None or (isinstance(value, tuple | Mapping) and not value):
        return ""
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    return str(value).lower() if isinstance(value, bool) else str(value)


def meaning(field: FieldInfo) -> str:
    """Returns argparse's help of a field: its docstring, and its default where it has one."""
    text, value = " ".join((field.description or "").split()), default(field.get_default(call_default_factory=True))
    return (f"{text} (default: {value})" if value else text).replace("%", "%%")


def for_people(actions: Iterable[Action], model: type[BaseModel]) -> None:
    """Has argparse's help say what flags take and are, where pydantic-settings has types and values of Python.

    Args:
        actions: of the parser; those of fields of the model are changed.
        model: of the settings.
    """
    known = dict(fields(model))
    for action in actions:
        if (field := known.get(action.dest)) is not None:
            action.metavar, action.help = takes(field.annotation), meaning(field)
