"""Whether a node can work on the run: it sees the storage, and has the driver's versions of what computes."""

from __future__ import annotations

import socket
import time
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version

from condu_ray import __version__
from condu_ray.store import artifacts
from condu_ray.store.backend import on_disk
from condu_ray.store.location import Location

LATE_SECONDS = 60.0
"""How late another node may see what was written: NFS keeps what it knows of folders for so long."""
LOOK_SECONDS = 1.0
COMPUTE = ("torch", "open_clip_torch", "pillow")
"""What changes results by its version, beside this package. Ray compares its own and Python's when a node joins."""


class SightError(RuntimeError):
    """This node does not see what the driver has written; the message names both, and says what to give."""


class VersionsError(RuntimeError):
    """This node has other versions than the driver; the message names both."""


def versions() -> dict[str, str]:
    """Returns the versions here, without what says for which device one was built (`+cu130`, `+cpu`)."""
    found = {"condu_ray": __version__}  # which may be in a job's working folder, and not installed
    for name in COMPUTE:
        try:
            found[name] = version(name).partition("+")[0]
        except PackageNotFoundError:
            found[name] = "none"
    return found


def require_versions(driver: Mapping[str, str]) -> None:
    """Checks that what computes is here as it is with the driver, by which experts and measurements are kept.

    Args:
        driver: as its `versions` says.

    Raises:
        VersionsError: it is not.
    """
    here = versions()
    if other := [f"{name} {here[name]} (the driver: {said})" for name, said in driver.items() if here[name] != said]:
        raise VersionsError(
            f"{socket.gethostname()} has {', '.join(other)}, so that results would be of both; give all nodes one "
            "image, or the same packages, and the same command again"
        )


def require_sight(written: str | None) -> None:
    """Waits until this node sees what the driver has put into storage.

    Args:
        written: an artifact's folder, such as the backbone that is staged; None: nothing. One in a bucket is seen, or
            says for itself why not, when it is read.

    Raises:
        SightError: it does not, in time.
    """
    folder = None if written is None else on_disk(Location(written))
    if folder is None:
        return
    deadline = time.monotonic() + LATE_SECONDS
    while not artifacts.exists(folder):
        if time.monotonic() >= deadline:
            raise SightError(
                f"{folder}: is not there on {socket.gethostname()}, and the driver has written it: --storage has to be "
                "a folder that all nodes have at the same path, such as one of NFS, or in a bucket"
            )
        time.sleep(LOOK_SECONDS)
