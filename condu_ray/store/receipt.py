"""The receipt of a finished run or sweep: by which files it was finished, so that the same command ends at once.

A command that is given again has nothing to do where its settings, this release, this machine and every file that it
read or wrote are what they were. Files are known by inode, size and times, as git knows them, so that nothing is
read and nothing heavy is loaded for it. Whatever differs goes the ordinary way, which looks at contents; so does what a
receipt does not cover, such as what is in a bucket.
"""

from __future__ import annotations

import glob
import json
import os
import platform
from collections.abc import Iterable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from condu_ray.config import Experiment, content_hash
from condu_ray.store.artifacts import ArtifactError, file_hash, read_sealed, write_sealed
from condu_ray.store.backend import on_disk
from condu_ray.store.location import Place

VERSION = 2
"""Raised whenever a receipt is to say more, or other things; those of before hold no more."""
PACKAGES = ("torch", "open_clip_torch", "numpy", "pillow", "pyarrow", "scikit-learn")
"""What results depend on beside this package."""
ROOT = Path(__file__).parents[1]


def circumstances(config: Experiment, more: Sequence[str] = ()) -> str:
    """Returns a hash of what decides what a command does and makes, but for the files that it reads.

    Args:
        config: the settings, as they are given.
        more: what else decides it, such as where MLflow is.
    """
    # Not what Python and numba compiled, which any command adds to, and makes anew where its source is another one.
    sources = sorted(path for path in ROOT.rglob("*") if path.parent.name != "__pycache__" and path.is_file())
    release = [[str(path.relative_to(ROOT)), *(_stamp(path) or ())] for path in sources]
    about = [VERSION, config.identity(), os.getcwd(), list(more), platform.python_version(), _versions(), _machine()]
    return content_hash([*about, release])


def digest(config: Experiment) -> str:
    """Returns by what the receipt of a sweep is found: a hash of its settings, as they are given."""
    return content_hash(config.identity())


def write_receipt(
    receipt: Place, config: Experiment, results: Place, files: Iterable[Place], folders: Iterable[Place],
    there: Iterable[Place], more: Sequence[str],
) -> None:  # fmt: skip
    """Writes the receipt of what is finished, and whose report is written.

    Args:
        receipt: where to.
        config: the settings, as they were given.
        results: the report's numbers.
        files: what was read and written; what is not there must not appear either.
        folders: of which other content would be other tasks.
        there: what only has to be there, for others write it too.
        more: as `circumstances` takes it.

    Raises:
        WriteError: there is none then.
        ValueError: some of it is in a bucket.
    """
    numbers = _path(results)
    written = {
        "circumstances": circumstances(config, more),
        "files": {str(path): _stamp(path) for path in sorted({numbers, *map(_path, files)})},
        "folders": {str(path): _listed(path) for path in sorted(set(map(_path, folders)))},
        "there": sorted({str(_path(place)) for place in there}),
        "results": [str(numbers), file_hash(numbers)],
    }
    write_sealed(receipt, written)


def receipted(receipt: Place, config: Experiment, more: Sequence[str] = ()) -> tuple[Path, dict[str, Any]] | None:
    """Returns the numbers of what is finished by exactly these settings and files, and where they are.

    Args:
        receipt: where it would be.
        config: the settings, as they are given.
        more: as `circumstances` takes it.

    Returns:
        None where there is no receipt, or anything is not as it says.
    """
    if on_disk(receipt) is None:
        return None
    try:
        found = read_sealed(receipt, required=True)
        if (
            found["circumstances"] != circumstances(config, more)
            or any(_stamp(Path(path)) != stamp for path, stamp in found["files"].items())
            or any(_listed(Path(path)) != names for path, names in found["folders"].items())
            or not all(os.path.exists(path) for path in found["there"])
        ):
            return None
        results, content = Path(found["results"][0]), found["results"][1]
        numbers: dict[str, Any] = json.loads(results.read_text(encoding="utf-8"))
        return (results, numbers) if file_hash(results) == content else None
    except (OSError, ArtifactError, ValueError):
        return None


def _path(place: Place) -> Path:
    if (path := on_disk(place)) is None:
        raise ValueError(f"{place}: is not on a disk")
    return path.absolute()


def _stamp(path: Path) -> list[int] | None:
    """What changes with every write of a file or what a link leads to, and is no content."""
    try:
        status = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return [status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns]


def _listed(folder: Path) -> list[str]:
    """The names in a folder and in the folders in it, which say what tasks there are."""
    found = []
    for name in sorted(os.listdir(folder)):
        inside = folder / name
        found += [f"{name}/{one}" for one in sorted(os.listdir(inside))] if inside.is_dir() else [name]
    return found


def _versions() -> list[str]:
    found = []
    for name in PACKAGES:
        try:
            found.append(version(name))
        except PackageNotFoundError:
            found.append("")
    return found


def _machine() -> list[Any]:
    """What `training.precision auto` depends on: the instructions of the CPU, and whether there is a GPU."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            flags = next((line for line in file if line.startswith(("flags", "Features"))), "")
    except OSError:
        flags = ""
    gpus = sorted(glob.glob("/dev/nvidia[0-9]*"))
    return [platform.machine(), sorted(flags.split()), gpus, os.environ.get("CUDA_VISIBLE_DEVICES")]
