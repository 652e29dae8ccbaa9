"""One writer of a user's own folder at a time, so that what an earlier one left there that died can be cleared away.

In storage a draft goes when nobody has touched it for a day (drafts.py); what `prepare` and `export` write is looked
through by no run, and half of SUN397 takes 37 GB.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from condu_ray.store.backend import backend
from condu_ray.store.claims import Claims
from condu_ray.store.location import Place


class BusyError(ValueError):
    """Another process is at a folder; the message says what to do."""


@contextmanager
def sole_writer(folder: Place) -> Iterator[None]:
    """Keeps a second process from making a folder meanwhile, and removes the drafts of it that dead ones left.

    Args:
        folder: what is made; a claim stands beside it, hidden, which a kill leaves for the next one.

    Raises:
        BusyError: a process that lives is making it.
        WriteError: nothing can be written there.
    """
    with Claims(folder.parent) as claims:
        if not claims.outlast(f".{folder.name}"):
            raise BusyError(f"{folder}: another process is writing it; wait for it, or give another folder")
        backend(folder).remove_drafts(folder.parent, 0.0, folder.name)
        yield
