"""Whether a bucket can be storage: writes that are made only under a condition are what everything else relies on."""

from __future__ import annotations

import errno
import os
import uuid

from condu_ray.store.bucket import Bucket
from condu_ray.store.location import Location

_good: set[tuple[int, str]] = set()
_ADVICE = (
    "two writers could both win there; give a store that honours If-None-Match and If-Match (Amazon S3, Google Cloud "
    "Storage, Azure Blob Storage, SeaweedFS, MinIO, Ceph, ...) in a version that does, or a shared folder"
)


def probe(bucket: Bucket, folder: Location) -> None:
    """Writes, reads and removes an object in every way that storage does, once a process and storage.

    Raises:
        OSError: this process cannot write or read there, or the store ignores conditions; what to do is in it.
    """
    known = os.getpid(), bucket.url
    if folder.key and bucket.tag(folder.key) is not None:
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(folder))
    if known in _good:
        return
    key = (folder / f".probe.{uuid.uuid4().hex}").key
    try:
        if not bucket.create(key, b"one"):
            raise OSError(errno.EIO, "what was written is not there", str(folder))
        wrong = _ignored(bucket, key)
    except FileNotFoundError as error:
        raise OSError(errno.ENOENT, "there is no such bucket; make it first", bucket.url) from error
    finally:
        _removed(bucket, key)
    if wrong:
        raise OSError(errno.ENOTSUP, f"the store {wrong}: {_ADVICE}", str(folder))
    _good.add(known)


def _ignored(bucket: Bucket, key: str) -> str:
    """Returns which condition a store ignores; empty for none."""
    if bucket.create(key, b"two") or bucket.get(key)[0] != b"one":
        return "ignores If-None-Match"
    _, tag = bucket.get(key)
    if tag.etag is None and tag.version is None:
        return "gives no ETag"
    if not bucket.swap(key, b"three", tag):
        return "refuses If-Match with the right ETag"
    if bucket.swap(key, b"four", tag) or bucket.get(key)[0] != b"three":
        return "ignores If-Match"
    return ""


def _removed(bucket: Bucket, key: str) -> None:
    try:
        bucket.delete([key])
    except OSError:  # where it could not be made, there is nothing to remove
        return
