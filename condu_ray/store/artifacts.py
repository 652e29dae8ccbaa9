"""Artifacts: folders that appear whole or not at all, with a checksum for every file.

How one appears is the backend's (store/backend.py): a kill at any point leaves either nothing or everything. The
manifest (`meta.json`) holds the sha256 of each file, so that damage is found at load.
"""

from __future__ import annotations

import filecmp
import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError

from condu_ray.store.backend import backend, on_disk
from condu_ray.store.full import full_advice
from condu_ray.store.layout import PLACES, marker_path
from condu_ray.store.location import Place
from condu_ray.store.posix_drafts import whole_of
from condu_ray.store.provenance import command, provenance  # noqa: F401
from condu_ray.store.seal import FORMAT, SealError, opened, sealed, told

if TYPE_CHECKING:
    from torch import Tensor

log = logging.getLogger(__name__)

MANIFEST = "meta.json"
MARKED = 2
"""Format of storage whose ledgers have marks, which versions before them would take for damage; 1 without."""
_HASH = re.compile(r"[0-9a-f]{64}")


class ArtifactError(RuntimeError):
    """An artifact that is missing, damaged or of another kind; the message names the file and what to do."""


class WriteError(ArtifactError, OSError):
    """A file that cannot be written; what was there before is untouched, and nothing half-written counts."""


@contextmanager
def writing(path: Place) -> Iterator[None]:
    """Names the file that a block failed to write, the system's reason and what to do.

    Raises:
        WriteError: for every OSError and every failure of safetensors to write, inside the block.
    """
    try:
        yield
    except ArtifactError:
        raise
    except (OSError, SafetensorError) as error:
        why = getattr(error, "strerror", None) or str(error)
        advice = full_advice(error) or "look at the disk and its permissions"
        named = path if (local := on_disk(path)) is None else whole_of(local)  # people know no drafts
        raise WriteError(f"{named}: cannot be written ({why}); {advice}, then the same command goes on") from error


def file_hash(path: Path) -> str:
    """Returns the sha256 (hex) of a file, read in blocks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_bytes(place: Place) -> bytes:
    """Returns a small file.

    Raises:
        OSError: as the system gives it; FileNotFoundError where there is none.
    """
    return backend(place).read(place)


def read_text(place: Place) -> str:
    """Returns a small file's text, as `read_bytes`; ValueError where it is not UTF-8."""
    return read_bytes(place).decode()


def names(place: Place) -> list[str]:
    """Returns the names in a folder, sorted, without hidden ones; none where there is no such folder."""
    try:
        return backend(place).names(place)
    except (FileNotFoundError, NotADirectoryError):
        return []


def is_file(place: Place) -> bool:
    """Whether a single file is there, and no folder."""
    try:
        backend(place).names(place)
    except NotADirectoryError:
        return True
    except OSError:
        pass
    return False


def sizes(folder: Place) -> dict[str, int]:
    """Returns the files in a folder with their bytes, without hidden ones; OSError where it cannot be read."""
    return backend(folder).sizes(folder)


def local(place: Place) -> Path:
    """Returns a path at which this machine can read a file or folder of storage."""
    return backend(place).local(place)


def write_bytes(place: Place, content: bytes) -> None:
    """Replaces a small file atomically; folders above it are made.

    Raises:
        WriteError: the file is as it was before.
    """
    with writing(place):
        backend(place).replace(place, content)


def write_text(place: Place, text: str) -> None:
    """Replaces a small file of text atomically, as `write_bytes`."""
    write_bytes(place, text.encode())


def write_sealed(path: Place, value: Mapping[str, Any]) -> None:
    """Writes an object as JSON with a seal (store/seal.py) that names the file and its folder, atomically.

    Raises:
        WriteError: the file is as it was before.
    """
    write_text(path, json.dumps(sealed(value, _place(path)), sort_keys=True))


def _place(path: Place) -> str:
    """What a seal says of where its object belongs; storage as a whole may be moved."""
    return f"{path.parent.name}/{path.name}"


def read_sealed(path: Place, *, required: bool = False) -> dict[str, Any]:
    """Returns what `write_sealed` wrote.

    Args:
        path: the file.
        required: whether to refuse an object without a seal, which may be from before there were any.

    Raises:
        FileNotFoundError: there is no such file.
        ArtifactError: it is damaged, another one's, or written by a newer release.
    """
    try:
        return opened(json.loads(read_text(path)), _place(path), required=required)
    except FileNotFoundError:
        raise
    except SealError as error:
        raise ArtifactError(f"{path}: {told(error, str(error), 'it')}") from error
    except (OSError, ValueError, RecursionError) as error:
        raise ArtifactError(f"{path}: {told(error, f'cannot be read as JSON ({error})', 'it')}") from error


def publish(
    folder: Place, meta: Mapping[str, Any], write: Callable[[Path], None], *, seal: bool = False, anew: bool = False
) -> dict[str, Any]:
    """Publishes an artifact folder atomically; a folder that is already there wins, unless it shall be made `anew`.

    Args:
        folder: where the artifact shall appear. What is there without a manifest is moved aside, hidden.
        meta: what the manifest records beside versions and checksums; JSON values.
        write: fills the folder that it is given.
        seal: whether the manifest carries a checksum of its own and says where it belongs (store/seal.py); not for
            data sets, whose manifest is for people to edit.
        anew: whether what is there goes once its successor is filled.

    Returns:
        The manifest of the artifact that is in place afterwards, ours or an earlier one.

    Raises:
        WriteError: the disk is full or fails; nothing appeared.
        ArtifactError: the artifact that is there is damaged.
    """
    if exists(folder) and not anew:
        return read_meta(folder)

    def fill(beside: Path) -> None:
        write(beside)
        files = {path.name: file_hash(path) for path in sorted(beside.iterdir())}
        manifest = {**meta, "files": files, "versions": provenance()}
        manifest = sealed(manifest, _place(folder)) if seal else manifest
        (beside / MANIFEST).write_text(json.dumps(manifest, indent=1, sort_keys=True), encoding="utf-8")
        if anew:
            backend(folder).remove(folder)

    with writing(folder):
        backend(folder).publish(folder, fill, MANIFEST)
    return read_meta(folder)


def exists(folder: Place) -> bool:
    """Whether an artifact is in place (its content is checked when it is loaded)."""
    return backend(folder).exists(folder / MANIFEST)


def read_meta(folder: Place) -> dict[str, Any]:
    """Returns an artifact's manifest, without its seal.

    Raises:
        ArtifactError: it is missing, no manifest, damaged, another artifact's, or written by a newer release.
    """
    path = folder / MANIFEST
    try:
        loaded = opened(json.loads(read_text(path)), _place(folder))
        files = loaded.get("files")
        if not isinstance(files, dict):
            raise SealError("no list of files")
        for name, digest in files.items():
            if PurePath(name).name != name or not isinstance(digest, str) or not _HASH.fullmatch(digest):
                raise SealError(f"no checksum of a file in it: {name!r}")
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ArtifactError(f"{folder}: no artifact here ({MANIFEST} is missing)") from error
    except (OSError, ValueError, RecursionError) as error:
        raise ArtifactError(f"{path}: {told(error, f'damaged manifest ({error})', str(folder))}") from error
    return loaded


def verified(folder: Place, name: str) -> Path:
    """Returns the path of an artifact's file after its checksum was found right.

    Raises:
        ArtifactError: the file is missing, unlisted or differs from its checksum.
    """
    expected, place = read_meta(folder)["files"].get(name), folder / name
    for _ in range(2):  # once more where it was this machine's copy that was damaged
        try:
            path = local(place)
            if expected is None or not path.is_file():
                raise ArtifactError(f"{place}: missing; remove {folder} to have it made again")
            if file_hash(path) == expected:
                return path
            if not backend(place).forget(path):
                break
        except OSError as error:
            raise ArtifactError(f"{place}: cannot be read ({error.strerror or error}); look at the disk") from error
    raise ArtifactError(f"{place}: content differs from its checksum; remove {folder} to have it made again")


def link(source: Path, target: Path) -> None:
    """Gives a file a second name, or copies it where that cannot be; files of artifacts are never changed in place."""
    source = source.resolve()  # os.link would link a symbolic link itself, which points out of the storage
    try:
        os.link(source, target)
    except OSError:  # another file system, one without links, or a file of another user
        shutil.copyfile(source, target)


def share(draft: Path, earlier: Place) -> None:
    """Lets files of a draft take no room of their own where an artifact that is in place has the same, to the byte.

    Args:
        draft: a folder that is being filled, as `publish` gives it; its files keep names and content.
        earlier: the artifact; where its files cannot be linked, the draft's stay as they are.
    """
    if (folder := on_disk(earlier)) is None:
        return
    for name in sorted({path.name for path in draft.iterdir()}.intersection(names(earlier))):
        own, other, beside = draft / name, folder / name, draft / f".{name}"
        with suppress(OSError):
            # Content decides, not the earlier manifest: what was damaged since must not get into this artifact.
            if filecmp.cmp(own, other, shallow=False):
                os.link(other, beside)
                beside.replace(own)


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Writes tensors (any dtype and shape, moved to the CPU) as one safetensors file, with `metadata` in its header.

    Raises:
        WriteError: the disk is full or fails.
    """
    from safetensors.torch import save_file  # here, for what reads data sets and reports needs no torch

    with writing(path):
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, path, metadata)


def load_tensors(folder: Place, name: str) -> dict[str, Tensor]:
    """Loads an artifact's safetensors file onto the CPU, its checksum checked.

    Raises:
        ArtifactError: as `verified`, or the file is no safetensors file.
    """
    from safetensors.torch import load_file

    path = verified(folder, name)
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ArtifactError(f"{path}: not a safetensors file ({error})") from error


def check_writable(folder: Place) -> None:
    """Refuses a storage folder that cannot be written or read, before any compute, and marks a new one's format.

    Raises:
        ArtifactError: names the folder and the system's reason, or the format of a newer release.
    """
    store, marker = backend(folder), marker_path(folder)
    try:
        store.probe(folder)
        for place in filter(store.exists, (folder / name for name in PLACES)):
            store.probe(place)
        if not store.exists(marker):
            write_text(marker, json.dumps({"format": FORMAT}))
    except OSError as error:
        why = f"{error.strerror or error}: {getattr(error, 'filename', None) or folder}"
        advice = f"{freed}, or give another folder" if (freed := full_advice(error)) else "give another folder"
        raise ArtifactError(f"--storage {folder}: cannot be written ({why}); {advice}") from error
    check_format(folder)


def check_format(folder: Place) -> None:
    """Refuses a storage folder that a newer release wrote, as `check_writable`; writes nothing, and needs no mark."""
    path = marker_path(folder)
    try:
        marker = json.loads(read_text(path))
        if not isinstance(marker, dict) or not isinstance(written := marker.get("format"), int):
            raise ValueError("no format")
    except FileNotFoundError:
        return
    except OSError as error:
        raise ArtifactError(f"{path}: cannot be read ({error.strerror or error}); look at its permissions") from error
    except (RecursionError, ValueError) as error:
        raise ArtifactError(f"--storage {folder}: {path.name} is damaged ({error}); remove it") from error
    if written > MARKED:
        raise ArtifactError(
            f"--storage {folder}: written by a newer condu_ray (format {written}, this one reads {MARKED}); "
            "update condu_ray, or give another folder"
        )


def allow_marks(folder: Place) -> None:
    """Has versions that know no marks refuse a storage folder from here on; raises what `check_writable` does."""
    check_writable(folder)
    if json.loads(read_text(marker_path(folder)))["format"] < MARKED:
        write_text(marker_path(folder), json.dumps({"format": MARKED}))
