"""Artifacts: folders that appear whole or not at all, with a checksum for every file.

A writer fills a folder beside the final one, syncs it, and renames it into place: a kill at any point leaves either
nothing or everything. The manifest (`meta.json`) holds the sha256 of each file, so that damage is found at load.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import platform
import re
import shutil
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError

from condu_ray import __version__
from condu_ray.store.layout import PLACES, marker_path
from condu_ray.store.passwords import without_passwords
from condu_ray.store.seal import FORMAT, SealError, opened, sealed

if TYPE_CHECKING:
    from torch import Tensor

log = logging.getLogger(__name__)

MANIFEST = "meta.json"
_HASH = re.compile(r"[0-9a-f]{64}")


class ArtifactError(RuntimeError):
    """An artifact that is missing, damaged or of another kind; the message names the file and what to do."""


class WriteError(ArtifactError, OSError):
    """A file that cannot be written; what was there before is untouched, and nothing half-written counts."""


@contextmanager
def writing(path: Path) -> Iterator[None]:
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
        full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "No space left" in why
        advice = "free some space" if full else "look at the disk and its permissions"
        raise WriteError(f"{path}: cannot be written ({why}); {advice}, then the same command goes on") from error


@cache
def provenance() -> dict[str, str]:
    """Returns the versions and git revision that artifacts and reports carry."""
    found = {name: version(name) for name in ("torch", "open_clip_torch", "ray", "safetensors")}
    root = Path(__file__).parents[2]
    try:
        command = ["git", "-C", str(root), "rev-parse", "HEAD"]
        revision = subprocess.run(command, capture_output=True, text=True, timeout=5, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        revision = "unknown"
    return {"condu_ray": __version__, "python": platform.python_version(), "git": revision} | found


def sync(path: Path) -> None:
    """Waits until a file or folder is on the disk (fsync)."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def file_hash(path: Path) -> str:
    """Returns the sha256 (hex) of a file, read in blocks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def draft_of(path: Path) -> Path:
    """Returns a new hidden name beside a file or folder that is being made: drafts.py finds what dead writers left."""
    return path.with_name(f".{path.name}.{uuid.uuid4().hex}")


def write_text(path: Path, text: str) -> None:
    """Replaces a small file atomically: write beside, fsync, rename, fsync the folder.

    Raises:
        WriteError: the file is as it was before.
    """
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = draft_of(path)
        try:
            beside.write_text(text, encoding="utf-8")
            sync(beside)
            beside.replace(path)
        finally:
            beside.unlink(missing_ok=True)
        sync(path.parent)


def write_sealed(path: Path, value: Mapping[str, Any]) -> None:
    """Writes an object as JSON with a seal (store/seal.py) that names the file and its folder, atomically.

    Raises:
        WriteError: the file is as it was before.
    """
    write_text(path, json.dumps(sealed(value, _place(path)), sort_keys=True))


def _place(path: Path) -> str:
    """What a seal says of where its object belongs; storage as a whole may be moved."""
    return f"{path.parent.name}/{path.name}"


def read_sealed(path: Path, *, required: bool = False) -> dict[str, Any]:
    """Returns what `write_sealed` wrote.

    Args:
        path: the file.
        required: whether to refuse an object without a seal, which may be from before there were any.

    Raises:
        FileNotFoundError: there is no such file.
        ArtifactError: it is damaged, another one's, or written by a newer release.
    """
    try:
        return opened(json.loads(path.read_text(encoding="utf-8")), _place(path), required=required)
    except FileNotFoundError:
        raise
    except SealError as error:
        raise ArtifactError(f"{path}: {error}; remove it to have it made again") from error
    except (OSError, ValueError, RecursionError) as error:
        raise ArtifactError(f"{path}: cannot be read as JSON ({error}); remove it to have it made again") from error


def publish(
    folder: Path, meta: Mapping[str, Any], write: Callable[[Path], None], *, seal: bool = False
) -> dict[str, Any]:
    """Publishes an artifact folder atomically; a folder that is already there wins.

    Args:
        folder: where the artifact shall appear. What is there without a manifest is moved aside, hidden.
        meta: what the manifest records beside versions and checksums; JSON values.
        write: fills the folder that it is given.
        seal: whether the manifest carries a checksum of its own and says where it belongs (store/seal.py); not for
            data sets, whose manifest is for people to edit.

    Returns:
        The manifest of the artifact that is in place afterwards, ours or an earlier one.

    Raises:
        WriteError: the disk is full or fails; nothing appeared.
        ArtifactError: the artifact that is there is damaged.
    """
    if (folder / MANIFEST).exists():
        return read_meta(folder)
    with writing(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        beside = draft_of(folder)
        beside.mkdir()
        try:
            write(beside)
            files = {path.name: file_hash(path) for path in sorted(beside.iterdir())}
            manifest = {**meta, "files": files, "versions": provenance()}
            manifest = sealed(manifest, _place(folder)) if seal else manifest
            (beside / MANIFEST).write_text(json.dumps(manifest, indent=1, sort_keys=True), encoding="utf-8")
            for path in beside.iterdir():
                sync(path)
            sync(beside)
            _appear(beside, folder)
        finally:
            shutil.rmtree(beside, ignore_errors=True)
        sync(folder.parent)
    return read_meta(folder)


def _appear(beside: Path, folder: Path) -> None:
    """Renames a filled folder into place, unless an artifact is there already."""
    try:
        beside.rename(folder)
    except OSError:
        if (folder / MANIFEST).exists():
            return
        if not folder.is_dir():
            raise
        # A folder without a manifest is no artifact; it must not keep one from ever being made.
        remains = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}.remains")
        folder.rename(remains)
        log.warning("%s: had no %s; it was made again, and what was there is now %s", folder, MANIFEST, remains.name)
        beside.rename(folder)


def exists(folder: Path) -> bool:
    """Whether an artifact is in place (its content is checked when it is loaded)."""
    return (folder / MANIFEST).is_file()


def read_meta(folder: Path) -> dict[str, Any]:
    """Returns an artifact's manifest, without its seal.

    Raises:
        ArtifactError: it is missing, no manifest, damaged, another artifact's, or written by a newer release.
    """
    path = folder / MANIFEST
    try:
        loaded = opened(json.loads(path.read_text(encoding="utf-8")), _place(folder))
        files = loaded.get("files")
        if not isinstance(files, dict):
            raise SealError("no list of files")
        for name, digest in files.items():
            if Path(name).name != name or not isinstance(digest, str) or not _HASH.fullmatch(digest):
                raise SealError(f"no checksum of a file in it: {name!r}")
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ArtifactError(f"{folder}: no artifact here ({MANIFEST} is missing)") from error
    except (OSError, ValueError, RecursionError) as error:
        raise ArtifactError(f"{path}: damaged manifest ({error}); remove {folder} to have it made again") from error
    return loaded


def verified(folder: Path, name: str) -> Path:
    """Returns the path of an artifact's file after its checksum was found right.

    Raises:
        ArtifactError: the file is missing, unlisted or differs from its checksum.
    """
    path, expected = folder / name, read_meta(folder)["files"].get(name)
    if expected is None or not path.is_file():
        raise ArtifactError(f"{path}: missing; remove {folder} to have it made again")
    try:
        found = file_hash(path)
    except OSError as error:
        raise ArtifactError(f"{path}: cannot be read ({error.strerror or error}); look at the disk") from error
    if found != expected:
        raise ArtifactError(f"{path}: content differs from its checksum; remove {folder} to have it made again")
    return path


def link(source: Path, target: Path) -> None:
    """Gives a file a second name, or copies it where that cannot be; files of artifacts are never changed in place."""
    source = source.resolve()  # os.link would link a symbolic link itself, which points out of the storage
    try:
        os.link(source, target)
    except OSError:  # another file system, one without links, or a file of another user
        shutil.copyfile(source, target)


def save_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Writes tensors (any dtype and shape, moved to the CPU) as one safetensors file.

    Raises:
        WriteError: the disk is full or fails.
    """
    from safetensors.torch import save_file  # here, for what reads data sets and reports needs no torch

    with writing(path):
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, path)


def load_tensors(folder: Path, name: str) -> dict[str, Tensor]:
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


def check_writable(folder: Path) -> None:
    """Refuses a storage folder that cannot be written or read, before any compute, and marks a new one's format.

    Raises:
        ArtifactError: names the folder and the system's reason, or the format of a newer release.
    """
    path = marker_path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for place in (folder, *(folder / name for name in PLACES)):
            if place == folder or os.path.lexists(place):
                _probe(place)
        if not path.exists():
            write_text(path, json.dumps({"format": FORMAT}))
        marker = json.loads(path.read_text(encoding="utf-8"))
    except (RecursionError, ValueError) as error:
        raise ArtifactError(f"--storage {folder}: {path.name} is damaged ({error}); remove it") from error
    except OSError as error:
        where = getattr(error, "filename", None) or folder
        raise ArtifactError(
            f"--storage {folder}: cannot be written ({error.strerror or error}: {where}); give another folder"
        ) from error
    written = marker.get("format") if isinstance(marker, dict) else None
    if not isinstance(written, int):
        raise ArtifactError(f"--storage {folder}: {path.name} is damaged (no format); remove it")
    if written > FORMAT:
        raise ArtifactError(
            f"--storage {folder}: written by a newer condu_ray (format {written}, this one reads {FORMAT}); "
            "update condu_ray, or give another folder"
        )


def _probe(folder: Path) -> None:
    """Writes and removes a file; raises OSError where that is not possible, a full disk included."""
    probe = folder / f".probe.{uuid.uuid4().hex}"
    try:
        probe.write_bytes(bytes(4096))
        sync(probe)
    finally:
        with suppress(OSError):  # where it could not be made, there is nothing to remove
            probe.unlink()


def command() -> str:
    """Returns the command line of this process, as reports record it: without passwords."""
    return without_passwords(" ".join(["python", *sys.argv]))
