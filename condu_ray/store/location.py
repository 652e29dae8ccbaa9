"""Where something is stored: one immutable type for `--storage`, `--data` and every path below them."""

from __future__ import annotations

import os
import re
from functools import total_ordering
from pathlib import Path, PurePath
from typing import TypeVar

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")


class LocationError(ValueError):
    """What is no place that can be written to or read from; the message names it and says what to give."""


def home(text: str) -> str:
    """Returns a path as a shell would give it: `~` and `~user` at its begin are home folders.

    Raises:
        LocationError: there is no such user.
    """
    found = os.path.expanduser(text)
    if found.startswith("~"):
        user = found.split("/")[0]
        raise LocationError(f"{user} is no user's home; for a folder of that name write ./{user}")
    return found


@total_ordering
class Location:
    """A folder or a file, by its name alone; whether it is there is asked of its backend (store/backend.py).

    It is joined with `/` as a `Path` is, and has none of a `Path`'s methods that look at a disk or change one: what is
    written with them would hold for a file system only. `os.fspath` works where the backend is a file system, the only
    one so far; code above store/ asks `artifacts.local` for a file that it can open. Immutable.

    Args:
        place: as a person writes it, a `Path` of the file system, or another location.

    Raises:
        LocationError: a `scheme://` that has no backend, or no path at all.
    """

    __slots__ = ("_text",)  # no dataclass: the command line would ask for JSON

    def __init__(self, place: str | PurePath | Location) -> None:
        if not isinstance(place, str | PurePath | Location):
            raise LocationError("is no path; give the name of a folder or file")
        if found := _SCHEME.match(str(place)):
            raise LocationError(f"{found[0]} has no storage here yet; give a folder of a local or shared file system")
        self._text = str(PurePath(str(place)))

    def __truediv__(self, name: str | os.PathLike[str]) -> Location:
        return Location(PurePath(self._text) / name)

    @property
    def name(self) -> str:
        """The last part."""
        return PurePath(self._text).name

    @property
    def parent(self) -> Location:
        """The folder that it is in."""
        return Location(PurePath(self._text).parent)

    def absolute(self) -> Location:
        """Returns the same place for a process that works in another folder."""
        return Location(Path(self._text).absolute())

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


def given(place: str | PurePath | Location) -> Location:
    """Returns the location that a person names, `~` and `~user` being home folders.

    Raises:
        LocationError: as `Location` and `home`.
    """
    return Location(home(str(place)) if isinstance(place, str | PurePath) else place)
