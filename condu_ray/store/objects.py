"""Storage in a bucket of an object store: S3 and what speaks its protocol, Google Cloud Storage, Azure Blob Storage.

A folder that appears whole is in published.py; a small object is compared and swapped by its ETag (bucket.py); a log is
a folder of an object a line; a claim has a counter at its end that its owner counts up, for writing the same content
again changes no ETag. Files are read from this machine's copies (node_cache.py).
"""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import re
import uuid
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from condu_ray.store.bucket import Bucket, BucketError, Tag, bucket_of
from condu_ray.store.bucket_drafts import remove_drafts
from condu_ray.store.bucket_log import Logs
from condu_ray.store.bucket_probe import probe
from condu_ray.store.location import Location, Place
from condu_ray.store.node_cache import node_cache
from condu_ray.store.published import INDEX, Published

log = logging.getLogger(__name__)

_TOUCHED = re.compile(rb"\0touched (\d{12})\Z")


class Objects:
    """The backend of buckets; `backend.Backend` says what each method does."""

    def __init__(self) -> None:
        self._known: dict[Location, Published] = {}  # asked again as soon as one of its files is gone
        self._logs = Logs()
        self._counted: dict[Location, tuple[Mapping[str, str], int]] = {}  # what this process touches: how it left it

    def read(self, place: Place) -> bytes:
        """Reads an object, or a file of a published folder."""
        bucket, location = _asked(place)
        if (known := self._known.get(location.parent)) and location.name in known.files:
            with suppress(FileNotFoundError):
                return bucket.get(_inside(location, known))[0]
        try:
            return _TOUCHED.sub(b"", bucket.get(location.key)[0])
        except FileNotFoundError:
            published = self._published(location.parent)
            if published is None or location.name not in published.files:
                raise
        return bucket.get(_inside(location, published))[0]

    def exists(self, place: Place) -> bool:
        """Whether there is an object, a file of a published folder, or anything visible below."""
        bucket, location = _asked(place)
        if location.key and bucket.tag(location.key) is not None:
            return True
        try:
            published = self._published(location.parent)
        except BucketError:
            raise
        except OSError:  # it is damaged, as whoever reads it is told
            return True
        if published is not None and location.name in published.files:
            return True
        objects, folders = bucket.folder(location.key)
        if INDEX in objects or any(not name.startswith(".") for name in objects):
            return True
        if not any(not name.startswith(".") for name in folders):
            return False
        return any(_visible(key.removeprefix(f"{location.key}/")) for key in bucket.below(location.key))

    def names(self, place: Place) -> list[str]:
        """Lists a folder; one request, and another where it is published.

        SeaweedFS goes on listing a folder for a while whose last object is gone; `exists` knows better.
        """
        return sorted(self._sizes(*_asked(place)))

    def sizes(self, place: Place) -> dict[str, int]:
        """As `names`, with what the listing says."""
        return {name: size for name, size in self._sizes(*_asked(place)).items() if size is not None}

    def _sizes(self, bucket: Bucket, location: Location) -> dict[str, int | None]:
        objects, folders = bucket.folder(location.key)
        if INDEX in objects and (published := self._published(location)) is not None:
            return {name: size for name, (_, size) in published.files.items()}
        found: dict[str, int | None] = {name: tag.size for name, tag in objects.items() if not name.startswith(".")}
        found |= {name: None for name in folders if not name.startswith(".")}
        if not found and not objects and not folders:
            published = self._published(location.parent)
            if bucket.tag(location.key) is not None or (published and location.name in published.files):
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(location))
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(location))
        return found

    def local(self, place: Place) -> Path:
        """Reads objects into this machine's cache."""
        bucket, location = _asked(place)
        folder, name = location.parent, location.name
        published = self._published(location)
        if published is not None:
            return self._view(bucket, location, published, list(published.files))
        if location.key and (tag := bucket.tag(location.key)) is not None:
            return self._copies(bucket, folder, {name: tag}, f"{location} {tag.etag} {tag.version}") / name
        published = self._published(folder)
        if published is not None:
            found = [name] if name in published.files else []
            return self._view(bucket, folder, published, found) / name
        visible = {name: tag for name, tag in bucket.folder(location.key)[0].items() if not name.startswith(".")}
        if not visible:
            return node_cache().nowhere(name)
        identity = " ".join(f"{name} {tag.etag} {tag.version}" for name, tag in sorted(visible.items()))
        return self._copies(bucket, location, visible, f"{location} {identity}")

    def _view(self, bucket: Bucket, folder: Location, published: Published, names: Sequence[str]) -> Path:
        cache, found = node_cache(), {}
        for name in names:
            sha256, size = published.files[name]
            key = _inside(folder / name, published)

            def parts(key: str = key) -> Iterator[bytes]:
                tag = bucket.tag(key)
                if tag is None:
                    self._known.pop(folder, None)
                    raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), f"{bucket.url}/{key}")
                return bucket.parts(key, tag)

            with suppress(FileNotFoundError):  # who opens it is told
                found[name] = cache.content(f"{bucket.url}/{key}", sha256, size, parts)
        return cache.view(f"{folder} {published.draft}", found)

    def _copies(self, bucket: Bucket, folder: Location, tags: dict[str, Tag], identity: str) -> Path:
        cache, found = node_cache(), {}
        for name, tag in tags.items():
            key = (folder / name).key

            def parts(key: str = key, tag: Tag = tag) -> Iterator[bytes]:
                return bucket.parts(key, tag)

            found[name] = cache.content(f"{bucket.url}/{key} {tag.etag} {tag.version}", None, tag.size, parts)
        return cache.view(identity, found)

    def replace(self, place: Place, content: bytes, unchanged: Hashable = None) -> bool:
        """Puts an object; with a stamp, by If-Match."""
        bucket, location = _asked(place)
        if unchanged is None:
            bucket.put(location.key, content)
            return True
        assert isinstance(unchanged, Tag)
        return bucket.swap(location.key, content, unchanged)

    def create(self, place: Place, content: bytes) -> bool:
        """Puts an object by If-None-Match: *."""
        bucket, location = _asked(place)
        return bucket.create(location.key, content)

    def remove(self, place: Place) -> None:
        """A published folder is none from its index on."""
        bucket, location = _asked(place)
        self._known.pop(location, None)
        self._counted.pop(location, None)
        self._logs.forget(location)
        published = self._readable(location)
        bucket.delete([location.key, _index(location)])
        if published is not None:
            bucket.delete(list(bucket.below((location.parent / published.draft).key)))
        bucket.delete(list(bucket.below(location.key)))

    def move(self, place: Place, target: Place) -> None:
        """Copies and removes; a published folder's index last."""
        bucket, location = _asked(place)
        _, wanted = _asked(target)
        published = self._readable(location)
        keys = [(key, wanted.key + key.removeprefix(location.key)) for key in bucket.below(location.key)]
        if bucket.tag(location.key) is not None:
            keys.append((location.key, wanted.key))
        if published is not None:
            hidden = (location.parent / published.draft).key
            there = (wanted.parent / published.draft).key
            keys += [(key, there + key.removeprefix(hidden)) for key in bucket.below(hidden)]
        index = _index(location)
        for key, copy in sorted(keys, key=lambda pair: pair[0] == index):
            bucket.copy(key, copy)
        self.remove(place)

    def publish(self, place: Place, fill: Callable[[Path], None], last: str) -> None:
        """Puts the files into a folder that no other writer has, then the index by If-None-Match: *."""
        bucket, location = _asked(place)
        draft = f".{location.name}.{uuid.uuid4().hex}"
        hidden = location.parent / draft
        with node_cache().draft() as beside:
            fill(beside)
            files = {path.name: (_sha256(path), path.stat().st_size) for path in sorted(beside.iterdir())}
            if bucket.tag((location / last).key) is not None:  # brought from a file system
                return
            done = False
            try:
                for name in files:
                    bucket.upload((hidden / name).key, beside / name)
                self._put_aside(bucket, location)
                done = bucket.create(_index(location), Published(draft, files).content())
            finally:
                if not done:
                    with suppress(OSError):  # what is left is a draft
                        bucket.delete([(hidden / name).key for name in files])
            for name, (sha256, _) in files.items():
                node_cache().adopt(beside / name, sha256)

    def _put_aside(self, bucket: Bucket, location: Location) -> None:
        """A folder without its last file is no artifact; it must not keep one from ever being made."""
        remains = [key for key in bucket.below(location.key) if key != _index(location)]
        if not remains or bucket.tag(_index(location)) is not None:
            return
        aside = location.parent / f".{location.name}.{uuid.uuid4().hex}.remains"
        for key in remains:
            bucket.copy(key, aside.key + key.removeprefix(location.key))
        bucket.delete(remains)
        log.warning("%s: was no artifact; it is made again, and what was there is now %s", location, aside.name)

    def append(self, place: Place, line: bytes) -> None:
        """Creates the next object."""
        self._logs.append(*_asked(place), line)

    def lines(self, place: Place) -> list[bytes]:
        """Reads a line an object."""
        return self._logs.lines(*_asked(place))

    def rewrite(self, place: Place, lines: Sequence[bytes]) -> None:
        """Removes the lines that are no more."""
        self._logs.rewrite(*_asked(place), lines)

    def stamp(self, place: Place) -> Hashable | None:
        """ETag, generation, time and size."""
        bucket, location = _asked(place)
        tag = bucket.tag(location.key)
        if tag is None and (published := self._published(location.parent)) and location.name in published.files:
            return published.files[location.name]
        return tag

    def touch(self, place: Place, content: bytes) -> bool:
        """Counts on the number at the object's end, by If-Match: one request where this process did so before."""
        bucket, location = _asked(place)

        def counted(condition: Mapping[str, str], count: int) -> bool:
            made = bucket.follow(location.key, content + b"\0touched %012d" % count, condition)
            if made is not None:
                self._counted[location] = made, count
            return made is not None

        condition, count = self._counted.pop(location, ({}, 0))
        if condition and counted(condition, count + 1):
            return True
        there, tag = bucket.get(location.key)  # for the first time, or it is another's, or made anew
        found = _TOUCHED.search(there)
        return _TOUCHED.sub(b"", there) == content and counted(tag.condition(), int(found[1]) + 1 if found else 1)

    def forget(self, path: Path) -> bool:
        """Removes a copy."""
        return node_cache().forget(path)

    def probe(self, place: Place) -> None:
        """Tries what everything else relies on, once a process and bucket."""
        probe(*_asked(place))

    def remove_drafts(self, place: Place, older: float, of: str | None = None) -> int:
        """By names and times of the store."""
        return remove_drafts(*_asked(place), older, of)

    def _readable(self, location: Location) -> Published | None:
        """As `_published`; of a damaged index the files are found by nobody, as those of a dead writer."""
        try:
            return self._published(location)
        except BucketError:
            raise
        except OSError:
            return None

    def _published(self, location: Location) -> Published | None:
        """Returns what a folder's index says now."""
        if not location.key:
            return None
        bucket, key = bucket_of(location), _index(location)
        try:
            found = Published.read(bucket.get(key)[0], f"{bucket.url}/{key}")
        except FileNotFoundError:
            self._known.pop(location, None)
            return None
        self._known[location] = found
        return found


def _asked(place: Place) -> tuple[Bucket, Location]:
    assert isinstance(place, Location)
    return bucket_of(place), place


def _visible(key: str) -> bool:
    folder, _, name = key.rpartition("/")
    parts = folder.split("/") if folder else []
    return not any(part.startswith(".") for part in parts) and (name == INDEX or not name.startswith("."))


def _index(location: Location) -> str:
    return (location / INDEX).key


def _inside(file: Location, published: Published) -> str:
    return (file.parent.parent / published.draft / file.name).key


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
