"""Whether a node sees the run's storage: on a cluster, a folder that only the driver's machine has is soon given."""

from __future__ import annotations

import socket
import time

from condu_ray.store import artifacts
from condu_ray.store.backend import on_disk
from condu_ray.store.location import Location

LATE_SECONDS = 60.0
"""How late another node may see what was written: NFS keeps what it knows of folders for so long."""
LOOK_SECONDS = 1.0


class SightError(RuntimeError):
    """This node does not see what the driver has written; the message names both, and says what to give."""


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
