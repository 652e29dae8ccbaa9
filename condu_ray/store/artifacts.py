"""Artifacts: folders that appear whole or not at all, with a checksum for every file.

A writer fills a folder beside the final one, syncs it, and renames it into place: a kill at any point leaves either
nothing or everything. The manifest (`meta.json`) holds the sha256 of each file, so that damage is found at load.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import uuid
from collections.abc import Callable, Mapping
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from condu_ray import __version__

MANIFEST = "meta.json"


class ArtifactError(RuntimeError):
    """An artifact that is missing, damaged or of another kind; the message names the file and what to do."""


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


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def file_hash(path: Path) -> str:
    """Returns the sha256 (hex) of a file, read in blocks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_text(path: Path, text: str) -> None:
    """Replaces a small file atomically: write beside, fsync, rename, fsync the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        beside.write_text(text, encoding="utf-8")
        _sync(beside)
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
    _sync(path.parent)


def publish(folder: Path, meta: Mapping[str, Any], write: Callable[[Path], None]) -> dict[str, Any]:
    """Publishes an artifact folder atomically; a folder that is already there wins.

    Args:
        folder: where the artifact shall appear.
        meta: what the manifest records beside versions and checksums; JSON values.
        write: fills the folder that it is given.

    Returns:
        The manifest of the artifact that is in place afterwards, ours or an earlier one.
    """
    if (folder / MANIFEST).exists():
        return read_meta(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    beside = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}")
    beside.mkdir()
    try:
        write(beside)
        files = {path.name: file_hash(path) for path in sorted(beside.iterdir())}
        manifest = {**meta, "files": files, "versions": provenance()}
        (beside / MANIFEST).write_text(json.dumps(manifest, indent=1, sort_keys=True), encoding="utf-8")
        for path in beside.iterdir():
            _sync(path)
        _sync(beside)
        try:
            beside.rename(folder)
        except OSError:
            if not (folder / MANIFEST).exists():
                raise
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    _sync(folder.parent)
    return read_meta(folder)


def exists(folder: Path) -> bool:
    """Whether an artifact is in place (its content is checked when it is loaded)."""
    return (folder / MANIFEST).is_file()


def read_meta(folder: Path) -> dict[str, Any]:
    """Returns an artifact's manifest.

    Raises:
        ArtifactError: it is missing or not JSON.
    """
    path = folder / MANIFEST
    try:
        loaded = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(loaded, dict) or not isinstance(loaded.get("files"), dict):
            raise ValueError("no list of files")
    except FileNotFoundError as error:
        raise ArtifactError(f"{folder}: no artifact here ({MANIFEST} is missing)") from error
    except ValueError as error:
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
    if file_hash(path) != expected:
        raise ArtifactError(f"{path}: content differs from its checksum; remove {folder} to have it made again")
    return path


def save_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Writes tensors (any dtype and shape, moved to the CPU) as one safetensors file."""
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, path)


def load_tensors(folder: Path, name: str) -> dict[str, Tensor]:
    """Loads an artifact's safetensors file onto the CPU, its checksum checked.

    Raises:
        ArtifactError: as `verified`, or the file is no safetensors file.
    """
    path = verified(folder, name)
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ArtifactError(f"{path}: not a safetensors file ({error})") from error


def check_writable(folder: Path) -> None:
    """Refuses a storage folder that cannot be written, before any compute.

    Raises:
        ArtifactError: names the folder and the system's reason.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".probe.{uuid.uuid4().hex}"
        probe.write_text("", encoding="utf-8")
        probe.unlink()
    except OSError as error:
        raise ArtifactError(f"--storage {folder}: cannot be written ({error.strerror or error})") from error


def command() -> str:
    """Returns the command line of this process, as reports record it."""
    return " ".join(["python", *sys.argv])
