"""Storage on a local or shared (NFS) file system.

A writer fills a hidden file or folder beside the final one, syncs it, and renames it into place: a kill at any point
leaves either nothing or everything. What a dead writer left is found by its name (posix_drafts.py).
"""

from __future__ import annotations

import errno
import logging
import os
import shutil
import uuid
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from condu_ray.store.location import Place
from condu_ray.store.posix_drafts import draft_of, remove_drafts
from condu_ray.store.posix_free_name import take_free_name

log = logging.getLogger(__name__)


def sync(path: Path) -> None:
    """Waits until a file or folder is on the disk (fsync)."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


class Posix:
    """The backend of file systems; `backend.Backend` says what each method does."""

    def read(self, place: Place) -> bytes:
        """Reads a file."""
        return Path(place).read_bytes()

    def exists(self, place: Place) -> bool:
        """Whether the name is taken, if only by a broken link."""
        return os.path.lexists(place)

    def names(self, place: Place) -> list[str]:
        """Lists a folder."""
        return sorted(name for name in os.listdir(place) if not name.startswith("."))

    def sizes(self, place: Place) -> dict[str, int]:
        """Asks each file."""
        folder = Path(place)
        return {name: (folder / name).stat().st_size for name in self.names(place) if not (folder / name).is_dir()}

    def local(self, place: Place) -> Path:
        """Files are read where they are."""
        return Path(place)

    def forget(self, path: Path) -> bool:
        """There are no copies."""
        return False

    def replace(self, place: Place, content: bytes, unchanged: Hashable = None) -> bool:
        """Write beside, fsync, rename, fsync the folder; with a stamp, what was there is first renamed away."""
        path = Path(place)
        with _draft(path, content) as beside:
            if unchanged is not None:
                return _swap(path, beside, unchanged)
            beside.replace(path)
        sync(path.parent)
        return True

    def create(self, place: Place, content: bytes) -> bool:
        """Write beside, fsync, and give it the name unless that is taken: a reader never sees half of it."""
        path = Path(place)
        with _draft(path, content) as beside:
            return take_free_name(beside, path)

    def remove(self, place: Place) -> None:
        """Removes a file or a folder."""
        path = Path(place)
        if path.is_dir() and not path.is_symlink():
            while path.exists():
                try:
                    shutil.rmtree(path)
                except FileNotFoundError:  # another removes it at the same time, as two runs that begin at once do
                    continue
        else:
            path.unlink(missing_ok=True)

    def move(self, place: Place, target: Place) -> None:
        """Renames; copies and removes where a folder above is a link to another disk."""
        Path(target).parent.mkdir(parents=True, exist_ok=True)
        try:
            Path(place).rename(target)
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            shutil.move(place, target)

    def publish(self, place: Place, fill: Callable[[Path], None], last: str) -> None:
        """Fill beside, fsync each file and the folder, rename, fsync the folder above."""
        folder = Path(place)
        folder.parent.mkdir(parents=True, exist_ok=True)
        beside = draft_of(folder)
        beside.mkdir()
        try:
            fill(beside)
            for path in beside.iterdir():
                _permit(path, beside)
                sync(path)
            sync(beside)
            _appear(beside, folder, last)
        finally:
            shutil.rmtree(beside, ignore_errors=True)
        sync(folder.parent)

    def append(self, place: Place, line: bytes) -> None:
        """Appends and fsyncs, of a new file its folder too; half a line that a full disk took is cut off again.

        A file with other names is written anew: those are of a copy that was made of links (`cp -al`), or a backup.
        """
        path = Path(place)
        if path.exists() and path.stat().st_nlink > 1:
            self.rewrite(place, [*self.lines(place), line])
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        # Without a buffer: closing the file would try to write what is left in it once more.
        with path.open("ab", buffering=0) as file:
            before = file.tell()
            try:
                if file.write(line) < len(line):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                os.fsync(file.fileno())
            except OSError:
                with suppress(OSError):  # else half a line would stand before the next one
                    os.truncate(path, before)
                raise
        if before == 0:
            sync(path.parent)

    def lines(self, place: Place) -> list[bytes]:
        """Reads a file's lines."""
        return self.read(place).splitlines(keepends=True)

    def rewrite(self, place: Place, lines: Sequence[bytes]) -> None:
        """Replaces the file."""
        self.replace(place, b"".join(lines))

    def stamp(self, place: Place) -> Hashable | None:
        """Inode, time of change and size."""
        try:
            return _stamp(Path(place))
        except (FileNotFoundError, NotADirectoryError):
            return None

    def touch(self, place: Place, content: bytes) -> bool:
        """Sets the time of change."""
        if Path(place).read_bytes() != content:
            return False
        os.utime(place)
        return True

    def probe(self, place: Place) -> None:
        """Writes, links, renames and removes a file; a full disk does not pass."""
        folder = Path(place)
        with suppress(FileExistsError):  # a folder; or something else, as the probe will say
            folder.mkdir(parents=True)
        names = [folder / f".probe.{uuid.uuid4().hex}" for _ in range(3)]
        try:
            names[0].write_bytes(bytes(4096))
            sync(names[0])
            _tried(names)
        finally:
            for name in names:
                with suppress(OSError):  # where it could not be made, there is nothing to remove
                    name.unlink()

    def remove_drafts(self, place: Place, older: float, of: str | None = None) -> int:
        """By names and times of change."""
        return remove_drafts(Path(place), older, of)


def _stamp(path: Path) -> Hashable:
    status = path.stat()
    return status.st_ino, status.st_mtime_ns, status.st_size


@contextmanager
def _draft(path: Path, content: bytes) -> Iterator[Path]:
    """Writes a hidden file beside a path, on the disk, and removes it in the end if it is still there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = draft_of(path)
    try:
        beside.write_bytes(content)
        sync(beside)
        yield beside
    finally:
        beside.unlink(missing_ok=True)


def _permit(path: Path, beside: Path) -> None:
    """Lets a file be read by whom the folder lets in, as the umask has it: safetensors makes files for one user."""
    has = path.stat().st_mode & 0o777
    wanted = has | (beside.stat().st_mode & 0o666)
    if wanted != has:
        with suppress(OSError):  # a link to a file of another user, a file system without permissions
            path.chmod(wanted)


def _tried(names: Sequence[Path]) -> None:
    """Links and renames a file, which mounts of buckets and some network file systems cannot.

    Raises:
        OSError: which of them cannot be done, and what to do.
    """
    advice = "give a folder of a local disk or NFS, or a bucket itself, as s3://BUCKET/PATH"
    for what, call in (("hard links", os.link), ("renaming", os.rename)):
        try:
            call(names[0], names[1])
            call(names[1], names[2])
        except OSError as error:
            words = f"its file system has no {what} ({error.strerror}), so that two writers could both win; {advice}"
            raise OSError(error.errno, words, str(names[0].parent)) from error
        names[1].unlink(missing_ok=True)
        names[2].unlink(missing_ok=True)


def _swap(path: Path, beside: Path, stamp: Hashable) -> bool:
    """Puts a draft in the place of a file that still has a stamp."""
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, "is a folder, and no claim; remove it", str(path))
    aside = draft_of(path)
    try:
        path.rename(aside)  # of several that take over, one wins
    except FileNotFoundError:
        return False
    if _stamp(aside) == stamp:
        done = take_free_name(beside, path)
    else:  # somebody else had taken over meanwhile: give it back
        done = False
        take_free_name(aside, path)
    aside.unlink(missing_ok=True)
    return done


def _appear(beside: Path, folder: Path, last: str) -> None:
    """Renames a filled folder into place, unless a whole one is there already."""
    try:
        beside.rename(folder)
    except OSError:
        if (folder / last).exists():
            return
        if not folder.is_dir():
            raise
        # A folder without it is no artifact; it must not keep one from ever being made.
        remains = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}.remains")
        folder.rename(remains)
        log.warning("%s: had no %s; it was made again, and what was there is now %s", folder, last, remains.name)
        beside.rename(folder)
