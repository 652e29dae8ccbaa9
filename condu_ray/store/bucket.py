"""One bucket of an object store: the few calls that the backend needs, each with an outcome that is known.

A request that times out, or is answered by a fault of the server, may have been carried out all the same, and obstore
may have sent it twice. So a conditional write that is refused, or whose answer is lost, looks at what is there: what
this process wrote itself is no other's.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

from condu_ray.store.location import Location
from condu_ray.store.passwords import without_passwords

ATTEMPTS = 5
"""How often a conditional write is tried whose answers are lost, beside what obstore tries again itself."""
PART_BYTES = 16 * 2**20
"""Bytes that a download or an upload moves by one request; four at a time."""
AT_ONCE = 4
ADDRESSES = {
    "s3": ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT"),
    "gs": ("GOOGLE_SERVICE_ACCOUNT_KEY",),
    "az": ("AZURE_STORAGE_ENDPOINT", "AZURE_ENDPOINT"),
}
"""Variables of the environment that may say where a store is, the first that does counts."""
CREDENTIALS = {
    "s3": "AWS_ACCESS_KEY_ID",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS",
    "az": "AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY",
}
FIRST_WAIT = timedelta(milliseconds=100)
"""Before a request is sent again that failed; then ever longer."""


class Tag(NamedTuple):
    """What differs between versions of an object: ETag, generation (GCS), time of the last write, bytes."""

    etag: str | None
    version: str | None
    modified: float
    size: int

    @classmethod
    def of(cls, meta: Any) -> Tag:
        """Returns the tag of obstore's ObjectMeta."""
        return cls(meta["e_tag"], meta["version"], meta["last_modified"].timestamp(), meta["size"])

    def condition(self) -> dict[str, str]:
        """Returns obstore's mode of writing only what still has this tag."""
        return _condition(self.etag, self.version)


def _condition(etag: str | None, version: str | None) -> dict[str, str]:
    found = {"e_tag": etag, "version": version}
    return {name: value for name, value in found.items() if value is not None}


class BucketError(OSError):
    """A request that an object store did not carry out, as far as can be told; `strerror` says why."""


class Bucket:
    """A bucket.

    Args:
        store: of obstore.
        url: its name for messages, such as `s3://bucket`.
    """

    def __init__(self, store: Any, url: str) -> None:
        self._store, self.url = store, url

    def get(self, key: str) -> tuple[bytes, Tag]:
        """Returns a small object and its tag; FileNotFoundError where there is none."""
        import obstore

        with self._asked(key):
            found = obstore.get(self._store, key)
            return bytes(found.bytes()), Tag.of(found.meta)

    def tag(self, key: str) -> Tag | None:
        """Returns an object's tag, None where there is none."""
        import obstore

        try:
            with self._asked(key):
                return Tag.of(obstore.head(self._store, key))
        except FileNotFoundError:
            return None

    def put(self, key: str, content: bytes) -> None:
        """Writes an object, whatever is there."""
        import obstore

        with self._asked(key):
            obstore.put(self._store, key, content, use_multipart=False)

    def create(self, key: str, content: bytes) -> bool:
        """Writes an object unless there is one; of several that try with different contents, one does.

        Raises:
            FileNotFoundError: there is no such bucket.
        """
        return self._conditionally(key, content, "create", lambda: self.tag(key) is None) is not None

    def swap(self, key: str, content: bytes, tag: Tag) -> bool:
        """Replaces an object that still has a tag; of several that try with different contents, one does."""
        return self._conditionally(key, content, tag.condition(), lambda: self.tag(key) == tag) is not None

    def follow(self, key: str, content: bytes, condition: Mapping[str, str]) -> Mapping[str, str] | None:
        """As `swap`, by the condition of what stands there; returns that of what it has written, None: it is another's.

        So a writer that goes on and on asks nothing else. An empty condition: it is written, by which tag is not known.
        """

        def still() -> bool:
            tag = self.tag(key)
            return tag is not None and tag.condition() == condition

        return self._conditionally(key, content, dict(condition), still)

    def _conditionally(
        self, key: str, content: bytes, mode: Any, still: Callable[[], bool]
    ) -> Mapping[str, str] | None:
        import obstore
        from obstore.exceptions import AlreadyExistsError, PreconditionError

        for attempt in range(ATTEMPTS):
            try:
                with self._asked(key):
                    made = obstore.put(self._store, key, content, mode=mode, use_multipart=False)
            except (AlreadyExistsError, PreconditionError, FileNotFoundError) as error:
                if mode == "create" and isinstance(error, FileNotFoundError):
                    raise  # there is no such bucket
                return {} if self._holds(key, content) else None
            except BucketError:  # what came of it?
                if self._holds(key, content):
                    return {}
                if not still():
                    return None
                if attempt == ATTEMPTS - 1:
                    raise
                time.sleep(0.1 * 2**attempt)
            else:
                return _condition(made["e_tag"], made["version"])
        raise AssertionError

    def _holds(self, key: str, content: bytes) -> bool:
        try:
            return self.get(key)[0] == content
        except FileNotFoundError:
            return False

    def upload(self, key: str, path: Path) -> None:
        """Writes a file of any size as an object."""
        import obstore

        with self._asked(key):
            obstore.put(self._store, key, path, chunk_size=PART_BYTES, max_concurrency=AT_ONCE)

    def parts(self, key: str, tag: Tag) -> Iterator[bytes]:
        """Yields an object's bytes in order, some parts of it read at once.

        Raises:
            BucketError: among others when the object is replaced meanwhile.
        """
        import obstore
        from obstore.exceptions import PreconditionError

        def part(start: int) -> bytes:
            options: Any = {"range": (start, min(start + PART_BYTES, tag.size))}
            if tag.etag is not None:
                options["if_match"] = tag.etag
            try:
                with self._asked(key):
                    return bytes(obstore.get(self._store, key, options=options).bytes())
            except PreconditionError as error:
                raise BucketError(errno.ESTALE, "was replaced while it was read", f"{self.url}/{key}") from error

        with ThreadPoolExecutor(AT_ONCE, thread_name_prefix="download") as pool:
            for start in range(0, tag.size, AT_ONCE * PART_BYTES):  # a few in memory, however large it is
                yield from pool.map(part, range(start, min(start + AT_ONCE * PART_BYTES, tag.size), PART_BYTES))

    def delete(self, keys: Sequence[str]) -> None:
        """Removes objects; those that are not there are no error."""
        import obstore

        if not keys:
            return
        try:
            with self._asked(keys[0]):
                obstore.delete(self._store, list(keys))
        except FileNotFoundError:
            for key in keys if len(keys) > 1 else ():
                self.delete([key])

    def copy(self, key: str, target: str) -> None:
        """Copies an object inside the bucket, by the store itself."""
        import obstore

        with self._asked(key):
            obstore.copy(self._store, key, target)

    def below(self, key: str) -> dict[str, Tag]:
        """Returns every object in a folder and in the folders in it, by its key.

        Some stores also list the folder itself, as an object that cannot be read; so in `folder`.
        """
        import obstore

        with self._asked(key):
            found = obstore.list(self._store, key or None).collect()
            return {meta["path"]: self._listed(meta) for meta in found if meta["path"] != key}

    def folder(self, key: str) -> tuple[dict[str, Tag], list[str]]:
        """Returns the objects right in a folder by name, and the names of the folders in it."""
        import obstore

        with self._asked(key):
            found = obstore.list_with_delimiter(self._store, key or None)
        objects = {_name(meta["path"]): self._listed(meta) for meta in found["objects"] if meta["path"] != key}
        return objects, [_name(prefix) for prefix in found["common_prefixes"]]

    def _listed(self, meta: Any) -> Tag:
        """The tag of what a listing says: Azure's leave out an ETag's quotes, which conditions are asked with."""
        tag = Tag.of(meta)
        bare = self.url.startswith("az:") and tag.etag is not None and not tag.etag.endswith('"')
        return tag._replace(etag=f'"{tag.etag}"') if bare else tag

    @contextmanager
    def _asked(self, key: str) -> Iterator[None]:
        """Makes obstore's errors those of a system, without what may be a password in them."""
        from obstore.exceptions import (
            AlreadyExistsError,
            BaseError,
            PermissionDeniedError,
            PreconditionError,
            UnauthenticatedError,
        )

        url = f"{self.url}/{key}"
        try:
            yield
        except FileNotFoundError as error:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), url) from error
        except (AlreadyExistsError, PreconditionError):
            raise
        except (PermissionDeniedError, UnauthenticatedError) as error:
            given = CREDENTIALS.get(self.url.partition("://")[0], "")
            words = f"the store refuses it: the environment has to give other credentials ({given}, ...) or an"
            words += " existing bucket has to be named"
            raise PermissionError(errno.EACCES, words, url) from error
        except BaseError as error:
            first = without_passwords(str(error).partition("\n\nDebug source")[0])
            raise BucketError(errno.EIO, " ".join(first.split())[:300], url) from None  # which may hold a signature


def _name(key: str) -> str:
    return key.rstrip("/").rpartition("/")[2]


CONNECTED: dict[str, Bucket] = {}
"""The buckets that this process has asked for something, by their URLs."""


def bucket_of(place: Location) -> Bucket:
    """Returns the bucket that a location is in; one connection a process."""
    root = f"{place.scheme}://{place.bucket}"
    if root not in CONNECTED:
        CONNECTED[root] = Bucket(_store(place.scheme, place.bucket), root)
    return CONNECTED[root]


def connection(scheme: str) -> dict[str, Any]:
    """Returns how obstore connects: addresses, deadlines, and how often it tries again; no credentials.

    Those, and addresses, are what the environment or the node says.
    """
    given = next((os.environ[one] for one in ADDRESSES[scheme] if os.environ.get(one)), "")
    options: Any = {"timeout": "5m", "connect_timeout": "10s", "read_timeout": "60s"}
    if given.startswith("http://") or (scheme == "gs" and '"http://' in given):
        options["allow_http"] = True
    retries: Any = {"max_retries": 10, "retry_timeout": timedelta(minutes=3), "backoff": {"init_backoff": FIRST_WAIT}}
    own = os.environ.get("AWS_ENDPOINT_URL_S3") if scheme == "s3" else None  # which obstore does not look at
    return {"config": {"endpoint": own} if own else None, "client_options": options, "retry_config": retries}


def _store(scheme: str, name: str) -> Any:
    from obstore.exceptions import BaseError
    from obstore.store import AzureStore, GCSStore, S3Store

    kinds: dict[str, Any] = {"s3": S3Store, "gs": GCSStore, "az": AzureStore}
    try:
        return kinds[scheme](name, **connection(scheme))
    except BaseError as error:
        said = without_passwords(" ".join(str(error).partition("\n\nDebug source")[0].split()))[:300]
        words = f"the environment does not say how it is reached ({said}): set {CREDENTIALS[scheme]}"
        raise PermissionError(errno.EACCES, words, f"{scheme}://{name}") from None
