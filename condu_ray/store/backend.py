"""The storage interface: all that touches storage goes through these methods, by one backend or the other.

An object store has no folders that are renamed into place, no links, no times of change, no appends and no locks. What
stands here can be done there too (objects.py): an artifact by its last file, created if it is absent; a small object by
comparing and swapping; a log by an object an entry; a claim by an object whose owner counts it up.

Methods raise `OSError` as the system gives it (`FileNotFoundError` for what is not there); the functions above them
(artifacts.py, ledger.py, claims.py) name the file and say what to do.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from pathlib import Path
from typing import Protocol

from condu_ray.store.location import Location, Place
from condu_ray.store.objects import Objects
from condu_ray.store.posix import Posix


class Backend(Protocol):
    """One kind of storage. Everything is atomic: readers see all of what a method writes, or none."""

    def read(self, place: Place) -> bytes:
        """Returns a small object."""

    def exists(self, place: Place) -> bool:
        """Whether an object or a folder is there."""

    def names(self, place: Place) -> list[str]:
        """Returns the names in a folder, sorted, without hidden ones.

        Raises:
            FileNotFoundError: there is no such folder.
            NotADirectoryError: it is an object.
        """

    def sizes(self, place: Place) -> dict[str, int]:
        """Returns the files in a folder with their bytes, without hidden ones; errors as of `names`."""

    def local(self, place: Place) -> Path:
        """Returns a path at which this machine can read what is there: a file, or a folder with its files.

        Of a bucket it is a copy of what is there now, which stays for a while: who reads for long asks again.
        """

    def forget(self, path: Path) -> bool:
        """Lets a copy go that `local` gave and that is damaged, so that it is made again; False where it is no copy."""

    def replace(self, place: Place, content: bytes, unchanged: Hashable = None) -> bool:
        """Writes a small object; after this returns it survives a power cut.

        Args:
            place: where; folders above are made.
            content: what.
            unchanged: replace only what still has this stamp; of several that try, one does. On a file system there may
                be nothing for a moment, and a kill may leave it so: for claims, not for what has to last.

        Returns:
            Whether it is there now; always, without `unchanged`.
        """

    def create(self, place: Place, content: bytes) -> bool:
        """Writes a small object unless there is one; False when there is. Of several that try, one does.

        Their contents have to differ: what a request whose answer was lost has written is known by its content.
        """

    def remove(self, place: Place) -> None:
        """Removes an object or a folder; nothing where there is none."""

    def move(self, place: Place, target: Place) -> None:
        """Moves an object or a folder to where there is nothing; folders above are made."""

    def publish(self, place: Place, fill: Callable[[Path], None], last: str) -> None:
        """Makes a folder of files appear whole; one that is there already wins.

        Args:
            place: where. A folder there without `last` is put aside, with a warning.
            fill: writes the files into the local folder that it is given.
            last: the file by which the others count: it is there when all are.
        """

    def append(self, place: Place, line: bytes) -> None:
        """Appends a line, newline included, to a log that no other process appends to meanwhile.

        After this returns the line survives a power cut; where it fails the log is as it was.
        """

    def lines(self, place: Place) -> list[bytes]:
        """Returns the lines of a log, newlines included; a last one without is torn, as a kill leaves it."""

    def rewrite(self, place: Place, lines: Sequence[bytes]) -> None:
        """Replaces all lines of a log."""

    def stamp(self, place: Place) -> Hashable | None:
        """Returns what differs after every touch of an object and every write of another content, or None."""

    def touch(self, place: Place, content: bytes) -> bool:
        """Gives an object another stamp, its owner lives; False where it is no more what its owner wrote."""

    def probe(self, place: Place) -> None:
        """Makes a folder where there is none; raises OSError unless all that is needed can be done there."""

    def remove_drafts(self, place: Place, older: float, of: str | None = None) -> int:
        """Removes what writers below a folder left that died, and claims of the dead.

        Args:
            place: a storage folder, or another one in which artifacts are.
            older: seconds without a sign of life after which a writer counts as dead, by the storage's own clock.
            of: the name in it of the one artifact whose writers are meant; None: all.

        Returns:
            How many there were.
        """


POSIX, OBJECTS = Posix(), Objects()


def backend(place: Place) -> Backend:
    """Returns what stores a location; `Location` has refused those that nothing stores."""
    return OBJECTS if isinstance(place, Location) and place.scheme else POSIX


def on_disk(place: Place) -> Path | None:
    """Returns the path of what is on a file system of this machine, whether or not it is there; None in a bucket."""
    return None if isinstance(place, Location) and place.scheme else Path(place)


def real(place: Place) -> Place:
    """Returns what tells a place from others that lead to it by links, of which a bucket has none."""
    path = on_disk(place)
    return place if path is None else path.resolve()
