"""Where Ray Train and Ray Tune keep what is their own: beside the run, on its file system or in its bucket."""

from __future__ import annotations

from typing import Any, TypedDict

from pyarrow import NativeFile, PythonFile
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
    return RayStorage(storage_path=f"{place.bucket}/{place.key}", storage_filesystem=PyFileSystem(_Handler(client)))


class _Handler(FSSpecHandler):  # type: ignore[misc]
    """What pyarrow asks of obstore."""

    def open_output_stream(self, path: str, metadata: object) -> NativeFile:
        """Opens an object for writing: Ray Tune pickles its trials into one."""
        return PythonFile(_Writer(self.fs.open(path, mode="wb")), mode="w")


class _Writer:
    """A file to which pyarrow writes: it hands over buffers of signed bytes, which obstore refuses."""

    def __init__(self, file: Any) -> None:
        self._file = file

    def write(self, buffer: Any) -> int:
        """Writes a buffer's bytes."""
        return int(self._file.write(bytes(buffer)))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)
