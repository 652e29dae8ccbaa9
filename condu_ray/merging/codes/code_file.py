"""Files of codes: one safetensors file a task, and one for what the tasks share; no pickle.

Metadata: one JSON text with ``format``, ``version`` and the ``fingerprint`` of all that the file holds, and no more: a
task's file does not say when it was learned, so that its bytes depend on its delta and the settings alone.
"""

from __future__ import annotations

import json
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from condu_ray.merging.unified_file import KEY, checksum, write_whole

VERSIONS = {"low_rank_code": 1, "sign_code": 1, "shared_magnitude": 1}
"""By format; raised by one whenever what its tensors mean changes."""
SHARED = "magnitude.safetensors"
"""What all tasks of `condu-sign` share."""
_PREFIX, _SUFFIX = "task-", ".safetensors"


class CodeFileError(ValueError):
    """A file that holds no code that this version can read; the message names the file."""


def task_file(folder: Path, task: str) -> Path:
    """Returns a task's file in the folder of a value."""
    return folder / f"{_PREFIX}{task}{_SUFFIX}"


def tasks_of(folder: Path) -> list[str]:
    """Returns the tasks that have a file in a folder, sorted.

    Raises:
        FileNotFoundError: there is no such folder.
    """
    names = [path.name for path in folder.iterdir()]
    return sorted(
        name.removeprefix(_PREFIX).removesuffix(_SUFFIX)
        for name in names
        if name.startswith(_PREFIX) and name.endswith(_SUFFIX)
    )


def write(path: Path, kind: str, tensors: dict[str, Tensor]) -> None:
    """Writes a file beside `path` and renames it into place.

    Raises:
        OSError: the disk is full or fails; what was at `path` is untouched.
    """
    write_whole(path, tensors, json.dumps({"format": kind, "version": VERSIONS[kind]}, sort_keys=True))


def read(path: Path, kind: str) -> dict[str, Tensor]:
    """Reads and checks a file.

    Raises:
        FileNotFoundError: there is none.
        CodeFileError: truncated, damaged, no safetensors, of another format or version.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no {kind} at {path}")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a mapping)
        header = json.loads(metadata[KEY])
        written, found, version = header.pop("fingerprint"), header["format"], header["version"]
    except SafetensorError as error:
        raise CodeFileError(f"{path}: truncated, or no safetensors file ({error})") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CodeFileError(f"{path}: the metadata cannot be read ({error!r})") from error
    if metadata.keys() != {KEY}:
        raise CodeFileError(f"{path}: the metadata has keys that it should not have")
    if (found, version) != (kind, VERSIONS[kind]):
        raise CodeFileError(f"{path}: is {found} of version {version}, and {kind} {VERSIONS[kind]} is read there")
    if written != checksum(tensors, json.dumps(header, sort_keys=True)):
        raise CodeFileError(f"{path}: content differs from its checksum")
    return tensors
