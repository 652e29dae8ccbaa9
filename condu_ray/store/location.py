"""Where something is stored: one immutable type for `--storage`, `--data` and every path below them."""

from __future__ import annotations

import os
import re
from functools import total_ordering
from pathlib import Path, PurePath, PurePosixPath
from typing import TypeVar

BUCKETS = ("s3", "gs", "az")
"""Schemes of object stores: Amazon S3 and what speaks its protocol, Google Cloud Storage, Azure Blob Storage."""
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_PART = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*")
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


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
    written with them would hold for a file system only. `os.fspath` works where it is a place of a file system; code
    above store/ asks `artifacts.local` for a file that it can open. Immutable.

    Args:
        place: as a person writes it (a path, or `s3://`, `gs://` or `az://` with a bucket and a path in it), a `Path`
            of the file system, or another location.

    Raises:
        LocationError: a `scheme://` that has no backend, a bucket that is none, or no path at all.
    """

    __slots__ = ("_path", "_root")  # no dataclass: the command line would ask for JSON

    def __init__(self, place: str | PurePath | Location) -> None:
        if not isinstance(place, str | PurePath | Location):
            raise LocationError("is no path; give the name of a folder or file")
        text, self._root = str(place), ""
        if found := _SCHEME.match(text):
            self._root, text = _in_bucket(text, found)
        self._path = text if self._root else str(PurePath(text))

    @classmethod
    def _of(cls, root: str, path: str) -> Location:
        made = cls.__new__(cls)
        made._root, made._path = root, path
        return made

    def __truediv__(self, name: str | os.PathLike[str]) -> Location:
        if not self._root:
            if isinstance(name, str) and _PART.fullmatch(name) and self._path[-1] not in "/.":
                return Location._of("", f"{self._path}{os.sep}{name}")  # as `PurePath`, which takes longer
            return Location._of("", str(PurePath(self._path) / name))
        return Location._of(self._root, _key(f"{self._path}/{os.fspath(name)}", str(self)))

    @property
    def scheme(self) -> str:
        """`s3`, `gs` or `az`; empty for a place of the file system."""
        return self._root.partition("://")[0]

    @property
    def bucket(self) -> str:
        """The bucket (Azure: container); empty for a place of the file system."""
        return self._root.partition("://")[2]

    @property
    def key(self) -> str:
        """The path in the bucket, without a `/` at its begin and end."""
        return self._path

    @property
    def name(self) -> str:
        """The last part."""
        return PurePath(self._path).name

    @property
    def parent(self) -> Location:
        """The folder that it is in; a bucket is in itself, as `/` is."""
        above = str(PurePath(self._path).parent)
        return Location._of(self._root, "" if self._root and above == "." else above)

    def absolute(self) -> Location:
        """Returns the same place for a process that works in another folder."""
        return self if self._root else Location._of("", str(Path(self._path).absolute()))

    def __str__(self) -> str:
        return f"{self._root}/{self._path}".rstrip("/") if self._root else self._path

    def __repr__(self) -> str:
        return f"Location({str(self)!r})"

    def _parts(self) -> tuple[str, PurePath]:
        return self._root, PurePath(self._path)

    def __eq__(self, other: object) -> bool:
        return str(self) == str(other) if isinstance(other, Location) else NotImplemented

    def __lt__(self, other: Location) -> bool:
        return self._parts() < other._parts()

    def __hash__(self) -> int:
        return hash(str(self))

    def __fspath__(self) -> str:
        if self._root:
            raise TypeError(f"{self}: is in a bucket, and no file of this machine; ask artifacts.local for one")
        return self._path


def _in_bucket(text: str, scheme: re.Match[str]) -> tuple[str, str]:
    """Returns the bucket with its scheme, and the key; messages hold nothing that may be a password."""
    kind = scheme[1].lower()
    if kind not in BUCKETS:
        known = ", ".join(f"{one}://BUCKET/PATH" for one in BUCKETS)
        raise LocationError(
            f"{scheme[0]} has no storage here; give a folder of a local or shared file system, or {known}"
        )
    bucket, _, rest = text[scheme.end() :].partition("/")
    if not _BUCKET.fullmatch(bucket) or "?" in rest:
        raise LocationError(
            f"{scheme[0]} is followed by no bucket's name alone; write {scheme[0]}BUCKET/PATH, with credentials and "
            "addresses in the environment (AWS_ACCESS_KEY_ID, AWS_ENDPOINT_URL, ...)"
        )
    return f"{kind}://{bucket}", _key(rest, f"{kind}://{bucket}/{rest}")


def _key(path: str, shown: str) -> str:
    parts = PurePosixPath(path.lstrip("/")).parts
    if ".." in parts:
        raise LocationError(f"{shown}: a bucket has no folder above another; write the path without '..'")
    return "/".join(parts)


Place = Location | Path
"""What every function of store/ takes; a `Path` is a location of the file system."""
P = TypeVar("P", Location, Path, Location | Path)


def given(place: str | PurePath | Location) -> Location:
    """Returns the location that a person names, `~` and `~user` being home folders.

    Raises:
        LocationError: as `Location` and `home`; or it is empty, as a shell's variable that is not set.
    """
    if not str(place).strip():
        raise LocationError("is empty; give the name of a folder or file, such as . for the folder you are in")
    return Location(home(str(place)) if isinstance(place, str | PurePath) else place)
