"""The file of a unified delta: one safetensors file, no pickle.

Tensors: ``unified/<name>`` in the deltas' dtype, ``trigger/<name>`` ``uint8`` ``[T, ceil(numel / 8)]`` (layout in
``trigger.py``), ``rescalers`` and ``norms`` float64 ``[T]``. Metadata: one JSON text, so that the order of keys, and
with it the file's bytes, depends on the content alone; its ``fingerprint`` is a checksum of all that the file holds.
"""

import hashlib
import json
import os
import re
import uuid
from contextlib import suppress
from pathlib import Path
from typing import get_args

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from condu_ray.merging.delta import fingerprint
from condu_ray.merging.trigger import trigger_bytes
from condu_ray.merging.unify import Rescaler, Unification

FORMAT_VERSION = 1
"""Raised by one whenever the layout of the file or of the triggers changes."""

KEY = "condu_ray"
"""Where a file's metadata has its header."""
_HEADER = {"format", "version", "tasks", "rescaler"}


class UnifiedFileError(ValueError):
    """A file that holds no unified delta that this version can read; the message names the file."""


def flatten(tasks: tuple[str, ...], rescaler: Rescaler, state: Unification) -> tuple[dict[str, Tensor], str]:
    """The tensors and the header that a file holds.

    Args:
        tasks: Names of the T tasks.
        rescaler: How the norms were measured.
        state: What to write.

    Returns:
        Tensors by their key in the file, and the metadata's JSON text.
    """
    tensors = {
        "rescalers": torch.tensor(state.rescalers, dtype=torch.float64),
        "norms": torch.tensor(state.norms, dtype=torch.float64),
    }
    tensors.update({f"unified/{name}": u for name, u in state.unified.items()})
    tensors.update({f"trigger/{name}": rows for name, rows in state.triggers.items()})
    return tensors, header_of(tasks, rescaler)


def header_of(tasks: tuple[str, ...], rescaler: Rescaler) -> str:
    """The metadata's JSON text, without the checksum."""
    header = {"format": "unified_delta", "version": FORMAT_VERSION, "tasks": list(tasks), "rescaler": rescaler}
    return json.dumps(header, sort_keys=True)


def checksum(tensors: dict[str, Tensor], header: str) -> str:
    """SHA-256 (64 hex digits) of what :func:`flatten` returns, bit for bit."""
    return hashlib.sha256((header + fingerprint(tensors)).encode()).hexdigest()


def save(path: Path, tasks: tuple[str, ...], rescaler: Rescaler, state: Unification) -> None:
    """Write the file beside ``path`` and rename it into place, so that a kill leaves the old file or the new one.

    Raises:
        OSError: The disk is full or fails; what was at ``path`` is untouched.
    """
    write_whole(path, *flatten(tasks, rescaler, state))


def write_whole(path: Path, tensors: dict[str, Tensor], header: str) -> None:
    """Write tensors and a header with their checksum, as :func:`save` does; any file of this kind is written so.

    Raises:
        OSError: The disk is full or fails; what was at ``path`` is untouched.
    """
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        marked = json.loads(header) | {"fingerprint": checksum(tensors, header)}
        with partial.open("xb") as file:
            mode = os.fstat(file.fileno()).st_mode & 0o777
        save_file(tensors, partial, metadata={KEY: json.dumps(marked, sort_keys=True)})
        with suppress(OSError):  # a file system without permissions
            partial.chmod(mode)  # what a new file has here, by the umask: safetensors makes it for one user
        os.replace(partial, path)
    except SafetensorError as error:  # its writer's own form of an OSError
        if number := re.search(r"os error (\d+)", str(error)):
            raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from error
        raise OSError(f"{path}: cannot be written ({error})") from error
    finally:
        partial.unlink(missing_ok=True)


def load(path: Path, device: str) -> tuple[tuple[str, ...], Rescaler, Unification]:
    """Read and check a file.

    Args:
        path: The file.
        device: Where its tensors go, as torch names devices.

    Returns:
        Tasks, rescaler and state, as :func:`flatten` takes them.

    Raises:
        FileNotFoundError: There is no such file.
        UnifiedFileError: Truncated, damaged, no safetensors, another version, or inconsistent.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no unified delta at {path}")
    try:
        with safe_open(path, framework="pt", device=device) as file:
            metadata = file.metadata() or {}
            tasks, rescaler = read_header(path, metadata)
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a mapping)
    except SafetensorError as error:
        raise UnifiedFileError(f"{path}: truncated, or no safetensors file ({error})") from error
    _check(path, len(tasks), tensors)
    header = json.loads(metadata[KEY])
    written = header.pop("fingerprint", None)  # files from before there were checksums have none
    if header.keys() != _HEADER or metadata.keys() != {KEY}:
        raise UnifiedFileError(f"{path}: the metadata has keys that it should not have")
    if written is not None and written != checksum(tensors, json.dumps(header, sort_keys=True)):
        raise UnifiedFileError(f"{path}: content differs from its checksum")
    unified = {key.removeprefix("unified/"): t for key, t in tensors.items() if key.startswith("unified/")}
    triggers = {key.removeprefix("trigger/"): t for key, t in tensors.items() if key.startswith("trigger/")}
    rescalers, norms = tuple(tensors["rescalers"].tolist()), tuple(tensors["norms"].tolist())
    return tasks, rescaler, Unification(unified, triggers, norms, rescalers)


def read_header(path: Path, metadata: dict[str, str]) -> tuple[tuple[str, ...], Rescaler]:
    """Tasks and rescaler from the metadata; the version is checked before anything else of it is believed."""
    if KEY not in metadata:
        raise UnifiedFileError(f"{path}: a safetensors file, but without {KEY!r} in its metadata")
    try:
        header = json.loads(metadata[KEY])
        version = header["version"]
        if version != FORMAT_VERSION:
            raise UnifiedFileError(f"{path}: format version {version}, this release reads {FORMAT_VERSION}")
        tasks, rescaler = tuple(header["tasks"]), header["rescaler"]
        if not all(isinstance(task, str) for task in (*tasks, rescaler)):
            raise TypeError("tasks and rescaler should be texts")
    except UnifiedFileError:
        raise
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UnifiedFileError(f"{path}: the metadata cannot be read ({error!r})") from error
    if len(set(tasks)) != len(tasks) or rescaler not in get_args(Rescaler):
        raise UnifiedFileError(f"{path}: tasks {tasks} or rescaler {rescaler!r} make no sense")
    return tasks, rescaler


def _check(path: Path, tasks: int, tensors: dict[str, Tensor]) -> None:
    """Whether keys, shapes and dtypes fit together."""
    names = {key.partition("/")[2] for key in tensors if "/" in key}
    wanted = {"rescalers", "norms", *(f"{kind}/{name}" for kind in ("unified", "trigger") for name in names)}
    if missing := sorted(wanted - tensors.keys()):
        raise UnifiedFileError(f"{path}: {len(missing)} keys are missing, the first is {missing[0]!r}")
    if extra := sorted(tensors.keys() - wanted):
        raise UnifiedFileError(f"{path}: {len(extra)} keys are unknown, the first is {extra[0]!r}")
    shapes: dict[str, tuple[int, ...]] = {"rescalers": (tasks,), "norms": (tasks,)}
    shapes |= {f"trigger/{name}": (tasks, trigger_bytes(tensors[f"unified/{name}"].numel())) for name in names}
    for key, shape in shapes.items():
        dtype = torch.uint8 if "/" in key else torch.float64
        found = tensors[key]
        if found.dtype != dtype or tuple(found.shape) != shape:
            raise UnifiedFileError(
                f"{path}: {key!r} is {found.dtype} {tuple(found.shape)}, for {tasks} tasks it should be {dtype} {shape}"
            )
    for name in names:
        if not tensors[f"unified/{name}"].is_floating_point():
            raise UnifiedFileError(f"{path}: 'unified/{name}' is not floating-point")
    for key in ("rescalers", "norms"):
        if not bool((tensors[key].isfinite() & (tensors[key] >= 0)).all()):
            raise UnifiedFileError(f"{path}: {key!r} holds a value that is negative or not finite")
