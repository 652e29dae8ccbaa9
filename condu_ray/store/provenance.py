"""What artifacts and reports say of how they were made: versions, git revision, command line."""

from __future__ import annotations

import platform
import subprocess
import sys
from contextlib import suppress
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from condu_ray import __version__
from condu_ray.store.passwords import without_passwords


@cache
def provenance() -> dict[str, str]:
    """Returns the versions and git revision that artifacts and reports carry."""
    found = {}
    for name in ("torch", "open_clip_torch", "ray", "safetensors"):
        with suppress(PackageNotFoundError):  # what is done in one process needs no Ray
            found[name] = version(name)
    return {"condu_ray": __version__, "python": platform.python_version(), "git": _revision(Path(__file__))} | found


def _revision(file: Path) -> str:
    """Returns the revision of the repository that has this file; `unknown` where none has, as where it is installed."""
    # By the file: an environment often lies within a repository that is not this package's.
    git = ["git", "-C", str(file.parent), "rev-parse", "HEAD", f"HEAD:./{file.name}"]
    try:
        return subprocess.run(git, capture_output=True, text=True, timeout=5, check=True).stdout.split()[0]
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def command() -> str:
    """Returns the command line of this process, as reports record it: without passwords."""
    console = sys.argv[0].startswith("condu-ray ")  # with its command's name, as `commands` sets it
    return without_passwords(" ".join(sys.argv if console else ["python", *sys.argv]))
