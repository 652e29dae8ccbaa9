"""Where Ray Train keeps what is its own: beside the run, on its file system or in its bucket."""

from __future__ import annotations

from typing import Any, TypedDict

from pyarrow.fs import FileSystem, FSSpecHandler, PyFileSystem

from condu_ray.store.backend import on_disk
from condu_ray.store.bucket import connection
from condu_ray.store.location import Location, Place


class RayStorage(TypedDict):
    """Arguments of Ray's `RunConfig`."""

    storage_path: str
    storage_filesystem: FileSystem | None


def ray_storage(folder: Place) -> RayStorage:
    """Returns what Ray is told of a folder; a bucket is reached as by all else, by each node's own credentials."""
    if (path := on_disk(folder)) is not None:
        return RayStorage(storage_path=str(path.absolute()), storage_filesystem=None)
    from obstore.fsspec import FsspecStore

    place = Location(folder)
    kind: Any = FsspecStore  # its overloads ask for one scheme each
    client = kind(place.scheme, **connection(place.scheme))
    return RayStorage(
        storage_path=f"{place.bucket}/{place.key}", storage_filesystem=PyFileSystem(FSSpecHandler(client))
    )
