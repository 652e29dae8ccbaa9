"""Whether a file can be written, asked before hours are spent on what is to be in it."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from condu_ray.store.artifacts import writing
from condu_ray.store.backend import on_disk
from condu_ray.store.location import Place
from condu_ray.store.posix_drafts import draft_of


def require_writable(place: Place) -> None:
    """Makes sure that a file can be written, or replaced; what is there stays. Of one in a bucket nothing is known.

    Raises:
        WriteError: it cannot be; says why.
    """
    if (path := on_disk(place)) is None:
        return
    with writing(place):
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        probe = draft_of(_there(path))
        probe.touch()
        probe.unlink()


def _there(path: Path) -> Path:
    """What stands for a file whose folder is not made yet: one in the nearest folder above that is there."""
    while not path.parent.exists() and path.parent != path:
        path = path.parent
    return path
