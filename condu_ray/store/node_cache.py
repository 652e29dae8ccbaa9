"""This machine's copies of what is in buckets: one a content, shared by all processes, bounded in size.

`blobs/<sha256>` holds contents, hashed while they stream in; `known/<digest>` says which content an object had at an
ETag, for objects of which nothing else says it; `views/<digest>/<name>` are links by which contents have their names.
Nothing in it is the truth about anything: it may be removed whenever no process works with it.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import shutil
import tempfile
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

FOLDER, LIMIT = "CONDU_RAY_CACHE", "CONDU_RAY_CACHE_GB"
"""What the environment may say: where copies go, and how many gigabytes they may take."""
DEFAULT_GB = 50.0
RECENT_SECONDS = 600.0
"""What was asked for since then stays, whatever the bound: it is about to be opened."""


class NodeCache:
    """Copies in one folder.

    Args:
        root: the folder.
        limit: bytes that copies may take; what was just asked for stays even so.
    """

    def __init__(self, root: Path, limit: int) -> None:
        self.root, self.limit = root, limit
        try:
            for name in ("blobs", "known", "views", "drafts", "locks"):
                (root / name).mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            words = f"copies of what is in a bucket cannot be kept there ({error.strerror}); set {FOLDER} to a folder"
            raise OSError(error.errno, words, str(root)) from error

    def blob(self, sha256: str) -> Path | None:
        """Returns the copy of a content, None where there is none."""
        path = self.root / "blobs" / sha256
        try:
            os.utime(path)
        except FileNotFoundError:
            return None
        return path

    def content(self, identity: str, expected: str | None, size: int, parts: Callable[[], Iterable[bytes]]) -> str:
        """Returns the sha256 of an object's content, of which there is a copy afterwards.

        Args:
            identity: what an object and its version are told by, such as its URL and ETag.
            expected: the sha256, where something says it.
            size: bytes.
            parts: reads the object, in order.

        Raises:
            OSError: it cannot be read, or this machine's disk is full.
        """
        known = self.root / "known" / _digest(identity)
        with self._lock(_digest(identity)):  # of several processes that want it, one reads it
            said = expected
            if said is None:
                with suppress(FileNotFoundError):
                    said = known.read_text(encoding="ascii")
            if said is not None and self.blob(said) is not None:
                return said
            self._make_room(size)
            found = self._filled(parts)
            if expected is None:
                beside = known.with_name(f".{uuid.uuid4().hex}")
                beside.write_text(found, encoding="ascii")
                beside.replace(known)
            return found

    def _filled(self, parts: Callable[[], Iterable[bytes]]) -> str:
        digest, beside = hashlib.sha256(), self.root / "drafts" / uuid.uuid4().hex
        try:
            with beside.open("xb") as file:
                for part in parts():
                    digest.update(part)
                    file.write(part)
            beside.replace(self.root / "blobs" / digest.hexdigest())
        except OSError as error:
            if error.errno == errno.ENOSPC:
                words = f"no space left for copies of what is in a bucket; set {FOLDER} to a folder of a larger disk"
                raise OSError(errno.ENOSPC, words, str(self.root)) from error
            raise
        finally:
            beside.unlink(missing_ok=True)
        return digest.hexdigest()

    def adopt(self, path: Path, sha256: str) -> None:
        """Takes a file that was just written to a bucket, so that this machine need not read it from there."""
        with suppress(OSError):  # it only saves work
            self._make_room(path.stat().st_size)
            path.replace(self.root / "blobs" / sha256)

    def forget(self, path: Path) -> bool:
        """Removes the copy behind a path of a view; False where it is none."""
        blob = path.resolve()
        if blob.parent != (self.root / "blobs").resolve():
            return False
        blob.unlink(missing_ok=True)
        return True

    def view(self, identity: str, files: Mapping[str, str]) -> Path:
        """Returns a folder in which contents have names.

        Args:
            identity: what the folder is told by; the same one may be asked for again with more files.
            files: sha256 by name.
        """
        folder = self.root / "views" / _digest(identity)
        folder.mkdir(exist_ok=True, mode=0o700)
        for name, sha256 in files.items():
            link, target = folder / name, os.path.join("..", "..", "blobs", sha256)
            with suppress(OSError):
                if os.readlink(link) == target:
                    continue
            beside = folder / f".{uuid.uuid4().hex}"
            beside.symlink_to(target)
            beside.replace(link)
        return folder

    def nowhere(self, name: str) -> Path:
        """Returns a path at which nothing is, for an object that is not there."""
        return self.root / "views" / "nothing" / name

    @contextmanager
    def draft(self) -> Iterator[Path]:
        """Makes a folder of this machine's disk for what is about to be written to a bucket."""
        folder = Path(tempfile.mkdtemp(dir=self.root / "drafts"))
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    @contextmanager
    def _lock(self, name: str) -> Iterator[None]:
        with (self.root / "locks" / name[:2]).open("ab") as file:  # some share one, so that they do not pile up
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _make_room(self, size: int) -> None:
        """Removes the copies that were used longest ago until another one fits the bound."""
        now, found = time.time(), []
        for path in (self.root / "blobs").iterdir():
            with suppress(FileNotFoundError):  # another process makes room too
                status = path.stat()
                found.append((status.st_mtime, status.st_size, path))
        total = sum(one for _, one, _ in found) + size
        for used, length, path in sorted(found):
            if total <= self.limit or now - used < RECENT_SECONDS:
                break
            path.unlink(missing_ok=True)
            total -= length
        self._clear(now)

    def _clear(self, now: float) -> None:
        """Removes what killed processes left, and views of which no content is here any more."""
        for path in (self.root / "drafts").iterdir():
            with suppress(OSError):
                if now - path.stat().st_mtime > 24 * 3600:
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
        for folder in (self.root / "views").iterdir():
            with suppress(OSError):
                if now - folder.stat().st_mtime > 24 * 3600 and not any(path.exists() for path in folder.iterdir()):
                    shutil.rmtree(folder)


def _digest(identity: str) -> str:
    return hashlib.sha256(identity.encode()).hexdigest()[:40]


def node_cache() -> NodeCache:
    """Returns this machine's cache, where the environment or the user's own cache folder has it.

    Raises:
        OSError: it cannot be written, or the bound is no number; the message says what to set.
    """
    above = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    folder, limit = os.environ.get(FOLDER) or os.path.join(above, "condu_ray"), os.environ.get(LIMIT) or str(DEFAULT_GB)
    try:
        most = int(float(limit) * 1e9)
    except (ValueError, OverflowError) as error:
        raise OSError(errno.EINVAL, f"{LIMIT} is {limit!r}; give gigabytes, such as 50", folder) from error
    return NodeCache(Path(folder).expanduser().absolute(), most)
