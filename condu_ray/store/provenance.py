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
    root = Path(__file__).parents[2]
    try:
        git = ["git", "-C", str(root), "rev-parse", "HEAD"]
        revision = subprocess.run(git, capture_output=True, text=True, timeout=5, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        revision = "unknown"
    return {"condu_ray": __version__, "python": platform.python_version(), "git": revision} | found


def command() -> str:
    """Returns the command line of this process, as reports record it: without passwords."""
    console = sys.argv[0].startswith("condu-ray ")  # with its command's name, as `commands` sets it
    return without_passwords(" ".join(sys.argv if console else ["python", *sys.argv]))
