"""Where something is stored: one immutable type for `--storage`, `--data` and every path below them."""

from __future__ import annotations

import os
import re
from functools import total_ordering
from pathlib import Path, PurePath
from typing import TypeVar

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_SHOWN = 80


class LocationError(ValueError):
    """What is no place that can be written to or read from; the message names it and says what to give."""


@total_ordering
class Location:
    """A folder or a file, by its name alone; whether it is there is asked of its backend (store/backend.py).

    It is joined with `/` as a `Path` is, and has none of a `Path`'s methods that look at a disk or change one: what is
    written with them would hold for a file system only. `os.fspath` works where the backend is a file system, the only
    one so far; code above store/ asks `artifacts.local` for a file that it can open. Immutable; `Location.of` takes
    what a person or a caller gives.

    Args:
        text: a path.
    """

    __slots__ = ("_text",)  # no dataclass: the command line would ask for JSON

    def __init__(self, text: str) -> None:
        self._text = text

    @classmethod
    def of(cls, place: str | os.PathLike[str] | Location) -> Location:
        """Returns the location of a text, a `Path` or a location.

        Raises:
            LocationError: a `scheme://` that has no backend, or no text at all.
        """
        if isinstance(place, Location):
            return place
        if not isinstance(place, str | PurePath):
            raise LocationError("is no path; give the name of a folder or file")
        if found := _SCHEME.match(str(place)):
            raise LocationError(
                f"{str(place)[:_SHOWN]!r}: there is no storage for {found[0]} yet; give a folder of a local or shared "
                "file system"
            )
        return cls(str(PurePath(place)))

    def __truediv__(self, name: str | os.PathLike[str]) -> Location:
        return Location(str(PurePath(self._text) / name))

    @property
    def name(self) -> str:
        """The last part."""
        return PurePath(self._text).name

    @property
    def parent(self) -> Location:
        """The folder that it is in."""
        return Location(str(PurePath(self._text).parent))

    def absolute(self) -> Location:
        """Returns the same place for a process that works in another folder."""
        return Location(str(Path(self._text).absolute()))

    def __str__(self) -> str:
        return self._text

    def __repr__(self) -> str:
        return f"Location({self._text!r})"

    def __eq__(self, other: object) -> bool:
        return self._text == other._text if isinstance(other, Location) else NotImplemented

    def __lt__(self, other: Location) -> bool:
        return PurePath(self._text) < PurePath(other._text)

    def __hash__(self) -> int:
        return hash(self._text)

    def __fspath__(self) -> str:
        return self._text


Place = Location | Path
"""What every function of store/ takes; a `Path` is a location of the file system."""
P = TypeVar("P", Location, Path, Location | Path)
